"""The study's tables, figures and sentences, from `results.json` alone.

Sentences are in the template `study.md.j2`, so that none becomes outdated when numbers change.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from markupsafe import Markup

from hafrm.paper import numbers
from hafrm.paper.measures import AVERAGE
from hafrm.paper.plans import FROZEN, PARTS, WORDS
from hafrm.paper.scales import Job
from hafrm.paper.study import AVERAGES, ENOUGH, collect
from hafrm.paper.tables import (
    METHOD_NAMES,
    cell_text,
    difference_cells,
    grid_bars,
    lines_of,
    ranked_rows,
    template,
)
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Cell, Findings, Table, table_markdown
from hafrm.report.wording import count, p_value, percent, points, signed, with_interval
from hafrm.stats import FEWEST_GROUPS

Results = Mapping[str, Any]
_Grid = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Cells by column and row."""

_ROWS = {
    **METHOD_NAMES,
    WORDS: "bag of words",
    FROZEN: "frozen backbone",
    "none": "no policy loss",
    "ipo": "IPO",
    "simpo": "SimPO",
    "sft": "SFT",
    "bradley_terry": "Bradley-Terry",
    "cauchy": "Cauchy",
    "haf fitted": "HAF, fitted head",
    "baseline fitted": "Baseline, fitted head",
    "trl": "TRL's RewardTrainer",
}
"""Display names of the rows that have one."""


def _label(row: str) -> str:
    if _placed(row) is None:
        return _ROWS.get(row, row)
    method, _, place = row.partition(" ")
    shown = "all pairs" if place == "1/1" else f"{place} flipped" if place.endswith("%") else place
    return f"{_ROWS[method]}, {shown}"


def _placed(row: str) -> tuple[str, float] | None:
    """Return the method and the percentage of a row of the parts on shares ("haf 1/4") and on flipped labels ("haf
    20%").
    """
    found = re.fullmatch(r"(\w+) (?:1/(\d+)|(\d+)%)", row)
    return None if found is None else (found[1], 100 / int(found[2]) if found[2] else float(found[3]))


def _sentences(macro: str, results: Results, **facts: Any) -> tuple[str, ...]:
    """Return the lines of a macro of the template."""
    return tuple(lines_of(getattr(template("study"), macro)(results, **facts)))


def find(job: Job) -> Findings:
    """Collect all available results into tables, figures and sentences."""
    return findings_of(collect(job))


def findings_of(results: Results, about: str | None = None) -> Findings:
    """Build all tables, figures and sentences.

    Args:
        results: Results of `collect`, or its file's contents.
        about: How this study differs from the main one, for the title. Default: its backbones, the number of its pairs,
            and its part if it has one besides accuracies in domain.
    """
    parts = [part for part in PARTS if part in results["parts"]]
    return Findings(
        title=f"The study: {about or _subject(results)}",
        intro=" ".join(_sentences("intro", results)),
        statements=tuple(_statements(results)),
        results=results,
        tables=(
            *(table for part in parts for table in _tables(results, part)),
            *_certainty(results),
            _rate_table(results),
            *_account(results),
        ),
        figures=dict(_figures(results)),
        notes=_sentences("notes", results, **_facts(results)),
    )


def _subject(results: Results) -> str:
    """Return what a study is about: backbones, pairs, and its part if it has one besides accuracies in domain."""
    others = [part for part in PARTS if part in results["parts"] and part != "table2"]
    where = f", {PARTS[others[0]].where.lower()}" if len(others) == 1 else ""
    world = " in the simulated world" if results["scale"] == "world" else ""
    pairs = f", {results['cap']:,} pairs" if results["cap"] else ""
    return f"{', '.join(results['backbones'])}{world}{pairs}{where}"


def readme_block(results: Results) -> str:
    """Render the README's table: accuracy in domain on all backbones, with HAF against baseline and DPO below.

    Comparisons with a bag of words are on the study's page.
    """
    said = [line for line in _statements(results) if line.startswith(PARTS["table2"].where) and WORDS not in line]
    lines = "".join(f"- {line}\n" for line in said)
    return f"{' '.join(_sentences('intro', results))}\n\n{table_markdown(_accuracies(results, 'table2'))}\n{lines}"


def _tables(results: Results, part: str) -> Iterator[Table]:
    yield _accuracies(results, part)
    if found := [each for each in results["comparisons"] if each["part"] == part]:
        yield _differences(part, found)


def _accuracies(results: Results, part: str) -> Table:
    grids: Mapping[str, _Grid] = results["parts"].get(part, {})
    columns = list(dict.fromkeys(column for grid in grids.values() for column in grid))
    rows = []
    for backbone, grid in grids.items():
        names = list(dict.fromkeys(row for column in grid.values() for row in column if row != WORDS))
        table = [[grid.get(column, {}).get(name) for name in names] for column in columns]
        marked = [_column(cells, results["seeds"]) for cells in table]
        means = [_mean(cells, len(results["seeds"])) for cells in zip(*table, strict=True)]
        marked.append([(mean, "–" if mean is None else percent(mean)) for mean in means])
        rows += ranked_rows([f"{_label(name)} ({backbone})" for name in names], marked)
    if part == "table2":
        rows += _beside(results, columns)
    return Table(PARTS[part].title, ("accuracy, %", *columns, AVERAGE), rows)


def _column(cells: Sequence[Mapping[str, Any] | None], seeds: Sequence[int]) -> list[tuple[float | None, str]]:
    """Return a column's values with their texts; only values for the same seeds can be ranked."""
    alike = len({tuple(cell["seeds"]) for cell in cells if cell}) == 1
    return [(cell["accuracy"] if cell and alike else None, _text(cell, seeds)) for cell in cells]


def _text(cell: Mapping[str, Any] | None, seeds: Sequence[int]) -> str:
    if cell is None:
        return "–"
    some = len(cell["seeds"]) != len(seeds)
    return cell_text(cell, f"({len(cell['seeds'])} of {count(len(seeds), 'seed')})" if some else "")


def _mean(cells: Sequence[Mapping[str, Any] | None], seeds: int) -> float | None:
    """Return a row's mean over columns, unweighted, if the row has all columns and seeds."""
    whole = [cell for cell in cells if cell and len(cell["seeds"]) == seeds]
    return statistics.fmean(cell["accuracy"] for cell in whole) if len(whole) == len(cells) else None


def _beside(results: Results, columns: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """Yield the reference rows that don't depend on a backbone."""
    grids = results["parts"]["table2"].values()
    words = [next((g[c][WORDS] for g in grids if WORDS in g.get(c, {})), None) for c in columns]
    lengths = [next(cell["length_accuracy"] for g in grids if c in g for cell in g[c].values()) for c in columns]
    texts = [_text(cell and {**cell, "spread": None}, results["seeds"]) for cell in words]
    mean = percent(statistics.fmean(cell["accuracy"] for cell in words if cell)) if all(words) else "–"
    yield (_ROWS[WORDS], *texts, mean)
    yield ("the longer response", *map(percent, lengths), percent(statistics.fmean(lengths)))
    yield ("random", *["50.0"] * (len(columns) + 1))


def _differences(part: str, found: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            f"{_label(each['a'])} - {_label(each['b'])} ({each['backbone']})",
            each["column"],
            *difference_cells(each["difference"], each["ci95"], each["by_seed"].values(), points),
            "–" if each["p"] is None else p_value(each["p"]),
            p_value(each["p_holm"]) if "p_holm" in each else "–",
            f"{each['n']:,}",
        )
        for each in found
    )
    columns = ("points", "on", "difference, 95% interval", "by seed", "p", "p, Holm", "pairs")
    return Table(f"{PARTS[part].title}: differences", columns, rows)


def _certainty(results: Results) -> Iterator[Table]:
    """Tabulate how certain models are of their choices, and how often they are right."""
    in_thousandths = partial(signed, decimals=3)
    rows = tuple(
        (
            _label(name) if name == WORDS else f"{_label(name)} ({backbone})",
            column,
            percent(cell["right"]),
            percent(cell["stated"]),
            percent(cell["ece"]),
            f"{cell['brier']:.3f}",
            "–" if (over := cell["over"]) is None else with_interval(over["difference"], over["ci95"], in_thousandths),
        )
        for backbone, columns in results.get("certainty", {}).items()
        for column, cells in columns.items()
        for name, cell in cells.items()
    )
    if rows:
        names = ("", "on", "right, %", "certainty, %", "calibration error, %", "Brier score", "against the baseline")
        yield Table("Calibration in domain", names, rows)


def _choices(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each method's choice among learning rates, named with its backbone."""
    return [
        (f"{_ROWS[method]} ({backbone})", choice)
        for backbone, methods in results["rates"].items()
        for method, choice in methods.items()
    ]


def _rate_table(results: Results) -> Table:
    rows = []
    for name, choice in _choices(results):
        marks = [
            f"{rate}: {'failed' if rate in choice['failed'] else '–' if mark is None else percent(mark)}"
            for rate, mark in choice["marks"].items()
        ]
        chosen = "not chosen yet" if choice["rate"] is None else f"{choice['rate']:g}"
        rows.append((name, "; ".join(marks) or "none was tried", chosen))
    column = f"validation accuracy of each rate, {_choosing_seeds(results)}, mean over sets"
    return Table("Learning rates", ("", column, "chosen"), rows)


def _choosing_seeds(results: Results) -> str:
    """Describe which seeds chose the rates."""
    seeds = results["rate_seeds"]
    if seeds == 1:
        return "the first seed"
    return "all seeds" if seeds == len(results["seeds"]) else f"the first {seeds} seeds"


def _account(results: Results) -> Iterator[Table]:
    """Tabulate failed and unfinished runs, so that the page accounts for every run that was started."""
    failed = [(each["what"], each["reason"]) for each in results["failures"]]
    stopped = [(what, "started and not finished; it resumes when the study needs it") for what in results["unfinished"]]
    if failed or stopped:
        yield Table("Runs without a result", ("run", "reason"), (*failed, *stopped))


def _statements(results: Results) -> Iterator[str]:
    """Yield a sentence per comparison: columns ahead, the mean, the seeds, and the paper's result."""
    rivals = dict.fromkeys(
        tuple(each[name] for name in ("part", "backbone", "a", "b")) for each in results["comparisons"]
    )
    for part, backbone, a, b in sorted(rivals, key=lambda each: list(PARTS).index(each[0])):
        found = {
            each["column"]: each
            for each in results["comparisons"]
            if (each["part"], each["backbone"], each["a"], each["b"]) == (part, backbone, a, b)
        }
        single = [each for column, each in found.items() if column not in AVERAGES]
        certain = [each["difference"] for each in single if each.get("p_holm", 1) < 0.05]
        judged = found.get(ENOUGH) or found.get(AVERAGE)
        yield from _sentences(
            "statement",
            results,
            part=PARTS[part],
            backbone=backbone,
            a=_label(a),
            b=_label(b),
            ahead=sum(each["difference"] > 0 for each in single),
            of=len(single),
            above=sum(value > 0 for value in certain),
            below=sum(value < 0 for value in certain),
            mean=found.get(AVERAGE),
            enough=found.get(ENOUGH),
            judged=judged,
            verdict=judged and verdict(judged),
            printed=_printed(b, judged["columns"]) if judged and part == "table2" and a == "haf" else [],
        )


def verdict(mean: Mapping[str, Any]) -> str:
    """Return whether a mean is "above" or "below" 0, "undecided", or "unknown" if it has no p-value."""
    if mean["p"] is None:
        return "unknown"
    low, high = mean["ci95"]
    return "above" if low > 0 else "below" if high < 0 else "undecided"


def _printed(rival: str, sets: Sequence[str]) -> list[float]:
    """Return HAF's mean lead over a method in the paper's Table 2, over the given sets; a share per backbone."""
    if rival not in numbers.METHODS:
        return []
    leads = []
    for backbone in numbers.BACKBONES:
        rows: dict[str, Mapping[str, float]] = {
            row.method: row.accuracy for row in numbers.TABLE_2 if row.backbone == backbone
        }
        leads.append(round(statistics.fmean(rows["haf"][name] - rows[rival][name] for name in sets), 2) / 100)
    return leads


def _facts(results: Results) -> dict[str, Any]:
    """Return the values for the notes on the results."""
    in_domain: Mapping[str, _Grid] = results["parts"].get("table2", {})
    cells = [(column, cell) for grid in in_domain.values() for column, row in grid.items() for cell in row.values()]
    incomplete = [
        part
        for part, grids in results["parts"].items()
        for grid in grids.values()
        if any(len(cell["seeds"]) < len(results["seeds"]) for row in grid.values() for cell in row.values())
    ]
    counts = results["counts"]
    return {
        "choosing": _choosing_seeds(results),
        "choices": [choice for _, choice in _choices(results)],
        "edges": [f"{name}, the {end}" for name, choice in _choices(results) if (end := _edge(choice))],
        "few": {column: cell["prompts"] for column, cell in cells if cell["prompts"] < FEWEST_GROUPS},
        "incomplete": [f'"{PARTS[part].title}"' for part in dict.fromkeys(incomplete)],
        "left_out": _left_out(in_domain),
        "seen": {column: sizes for part in results["seen"].values() for column, sizes in part.items()},
        "stopped": counts["started"] - counts["finished"] - counts["failed"],
    }


def _edge(choice: Mapping[str, Any]) -> str:
    """Return "lowest" or "highest" if the chosen rate is at an edge of those tried."""
    tried = [float(rate) for rate in choice["marks"]]
    if len(tried) < 2 or choice["rate"] not in (min(tried), max(tried)):
        return ""
    return "lowest" if choice["rate"] == min(tried) else "highest"


def _left_out(in_domain: Mapping[str, _Grid]) -> str:
    """Describe how many test pairs were not scored, by set, and by backbone if they differ."""
    by_backbone = {
        backbone: ", ".join(
            f"{column} {cell['unscored']:,} of {cell['unscored'] + cell['n']:,}"
            for column, row in grid.items()
            if (cell := max(row.values(), key=itemgetter("unscored")))["unscored"]
        )
        for backbone, grid in in_domain.items()
    }
    if len(set(by_backbone.values())) == 1:
        return next(iter(by_backbone.values()))
    return "; ".join(f"{backbone}: {counts or 'none'}" for backbone, counts in by_backbone.items())


_DRAWN = {
    "sizes": "percent of the training pairs",
    "noise": "percent of flipped labels",
    "ratios": "policy ratio",
}
"""Parts that are drawn as curves, with the quantity on their x axis."""


def _figures(results: Results) -> Iterator[tuple[str, Markup]]:
    """Yield the figures by name: accuracies in domain and on mixtures, and curves over shares, flips and ratios."""
    for part in ("table2", "mixed"):
        for backbone, grid in results["parts"].get(part, {}).items():
            yield f"{part}-{backbone}", grid_bars(_bars_caption(part, backbone, grid, results), grid)
    for part, label in _DRAWN.items():
        for backbone, grid in results["parts"].get(part, {}).items():
            # Points of different seeds would show seed effects as a trend.
            every = (set(cell["seeds"]) for row in grid.values() for cell in row.values())
            seeds = sorted(set.intersection(*every))
            if curves := _curves(part, grid, seeds):
                caption = f"{PARTS[part].title}, {backbone}: the mean over {', '.join(grid)} and {_named(seeds)}"
                yield f"{part}-{backbone}", curve_panels(caption, [Panel("accuracy, %", curves, label)])


def _bars_caption(part: str, backbone: str, grid: _Grid, results: Results) -> str:
    """Describe the bars: which seeds they average, and where there are no intervals."""
    cells = [cell for row in grid.values() for method, cell in row.items() if method in METHOD_NAMES]
    fewer = "" if all(len(cell["seeds"]) == len(results["seeds"]) for cell in cells) else ", where available"
    bare = [column for column, row in grid.items() if any(cell["ci95"] is None for cell in row.values())]
    without = f" ({', '.join(bare)}: too few prompts for one)" if bare else ""
    return (
        f"{PARTS[part].title}, {backbone}: the mean over {_named(results['seeds'])}{fewer}, with 95% intervals over "
        f"prompts{without}"
    )


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _points(grid: _Grid, seeds: Sequence[int], places: Mapping[str, float]) -> tuple[tuple[float, float], ...]:
    """Return (place, accuracy in percent) of rows, averaged over sets and seeds, for those that have all of them."""
    found = []
    for row, place in places.items():
        cells = [column[row] for column in grid.values() if row in column]
        if len(cells) == len(grid) and seeds:
            by_seed = [dict(zip(cell["seeds"], cell["by_seed"], strict=True)) for cell in cells]
            found.append((place, 100 * statistics.fmean(each[seed] for each in by_seed for seed in seeds)))
    return tuple(sorted(found))


def _curves(part: str, grid: _Grid, seeds: Sequence[int]) -> tuple[Curve, ...]:
    rows = dict.fromkeys(row for column in grid.values() for row in column)
    placed = {row: ("haf", float(row)) if part == "ratios" else _placed(row) for row in rows}
    curves = []
    for method, kind in (("haf", "positive"), ("baseline", "negative"), ("dpo", "dpo dash1")):
        places = {row: found[1] for row, found in placed.items() if found is not None and found[0] == method}
        if known := _points(grid, seeds, places):
            curves.append(Curve(_ROWS[method], kind, known))
    return tuple(curves)
