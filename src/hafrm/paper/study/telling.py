"""Turn the study's numbers into tables and sentences, from `results.json` alone.

Every sentence that depends on a number is generated here, so that none becomes outdated when numbers change.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hafrm.paper import numbers
from hafrm.paper.measures import AVERAGE
from hafrm.paper.study.drawing import figures_of
from hafrm.paper.study.labels import ROWS, TITLES
from hafrm.paper.study.options import PARTS
from hafrm.paper.study.results import AVERAGES
from hafrm.report.findings import Cell, Findings, Table, ranked, table_markdown
from hafrm.report.wording import count, interval, p_value, percent, points
from hafrm.stats import FEWEST_GROUPS

Results = Mapping[str, Any]


def findings_of(results: Results, about: str | None = None) -> Findings:
    """Build all tables, figures and sentences.

    Args:
        results: Results of `collect`, or its file's contents.
        about: How this study differs from the main one, for the title.
    """
    return Findings(
        title=f"The study: {about or 'does hybrid alignment pay?'}",
        intro=_intro(results),
        statements=tuple(_statements(results)),
        results=results,
        tables=(
            *(table for part in PARTS if part in results["parts"] for table in _tables(results, part)),
            _rate_table(results),
            *_account(results),
        ),
        figures=dict(figures_of(results)),
        notes=tuple(_notes(results)),
    )


def readme_block(results: Results) -> str:
    """Render the README's table: accuracy in domain on all backbones, with HAF's comparisons below."""
    said = [line for line in _statements(results) if line.startswith("In domain")]
    return f"{_intro(results)}\n\n{table_markdown(_accuracies(results, 'table2'))}\n" + "".join(
        f"- {line}\n" for line in said
    )


def _intro(results: Results) -> str:
    cap = "" if results["cap"] is None else f", of at most {results['cap']:,} training pairs a set"
    return (
        f"Scale {results['scale']}: {count(len(results['sets']), 'set')}{cap}, backbones "
        f"{', '.join(results['backbones'])}, {count(len(results['seeds']), 'seed')}, {results['steps']:,} steps of "
        f"{results['batch']} pairs, the best checkpoint by validation accuracy. Accuracies in percent on test pairs, a "
        "tie counting one half; ± is the standard deviation over seeds, in brackets the 95% interval over prompts of "
        "the seeds' mean."
    )


def _label(row: str) -> str:
    method, _, share = row.partition(" 1/")
    named = ROWS.get(method, method)
    return f"{named}, {'all pairs' if share == '1' else f'1/{share}'}" if share else named


def _columns(results: Results, part: str) -> list[str]:
    return list(dict.fromkeys(c for grid in results["parts"].get(part, {}).values() for c in grid))


def _tables(results: Results, part: str) -> Iterator[Table]:
    yield _accuracies(results, part)
    if found := [each for each in results["comparisons"] if each["part"] == part]:
        yield _differences(part, found)


def _accuracies(results: Results, part: str) -> Table:
    columns = _columns(results, part)
    rows: list[tuple[Cell, ...]] = []
    for backbone, grid in results["parts"].get(part, {}).items():
        names = list(dict.fromkeys(row for column in grid.values() for row in column if row != "words"))
        table = {name: [grid.get(column, {}).get(name) for column in columns] for name in names}
        marked = [_marked([table[name][place] for name in names], results["seeds"]) for place in range(len(columns))]
        means = _marked_means([table[name] for name in names], results["seeds"])
        rows += [
            (f"{_label(name)} ({backbone})", *(column[place] for column in marked), means[place])
            for place, name in enumerate(names)
        ]
    if part == "table2":
        rows += _beside(results, columns)
    return Table(TITLES[part], ("accuracy, %", *columns, AVERAGE), tuple(rows))


def _marked(cells: Sequence[Mapping[str, Any] | None], seeds: Sequence[int]) -> list[Cell]:
    """Return a column with the best in bold and the second underlined, if all cells are for the same seeds."""
    alike = len({tuple(cell["seeds"]) for cell in cells if cell}) == 1
    values = [cell["accuracy"] if cell and alike else None for cell in cells]
    return ranked(values, [_worded(cell, seeds) for cell in cells])


def _worded(cell: Mapping[str, Any] | None, seeds: Sequence[int]) -> str:
    if cell is None:
        return "–"
    spread = "" if cell["spread"] is None else f"± {percent(cell['spread'])}"
    of = "" if len(cell["seeds"]) == len(seeds) else f"({len(cell['seeds'])} of {count(len(seeds), 'seed')})"
    return " ".join(part for part in (percent(cell["accuracy"]), spread, interval(cell["ci95"], percent), of) if part)


def _marked_means(rows: Sequence[Sequence[Mapping[str, Any] | None]], seeds: Sequence[int]) -> list[Cell]:
    """Return each row's mean over columns, unweighted, if the row has all columns and seeds."""
    whole = [all(cell and len(cell["seeds"]) == len(seeds) for cell in row) for row in rows]
    means = [
        statistics.fmean(cell["accuracy"] for cell in row if cell) if complete else None
        for row, complete in zip(rows, whole, strict=True)
    ]
    return ranked(means, ["–" if mean is None else percent(mean) for mean in means])


def _beside(results: Results, columns: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """Yield the reference rows that don't depend on a backbone."""
    grids = results["parts"]["table2"].values()
    words = [next((g[c]["words"] for g in grids if "words" in g.get(c, {})), None) for c in columns]
    lengths = [next(cell["length_accuracy"] for g in grids if c in g for cell in g[c].values()) for c in columns]
    plain = [None if cell is None else {**cell, "spread": None} for cell in words]
    mean = statistics.fmean(cell["accuracy"] for cell in words if cell) if all(words) else None
    yield ("bag of words", *(_worded(cell, results["seeds"]) for cell in plain), "–" if mean is None else percent(mean))
    yield ("the longer response", *map(percent, lengths), percent(statistics.fmean(lengths)))
    yield ("random", *["50.0"] * (len(columns) + 1))


def _differences(part: str, found: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            f"{_label(each['a'])} less {_label(each['b'])} ({each['backbone']})",
            each["column"],
            f"{points(each['difference'])} {interval(each['ci95'], points)}".strip(),
            ", ".join(map(points, each["by_seed"].values())),
            "–" if each["p"] is None else p_value(each["p"]),
            p_value(each["p_holm"]) if "p_holm" in each else "–",
            f"{each['n']:,}",
        )
        for each in found
    )
    header = ("points", "on", "difference, 95% interval", "by seed", "p", "p, Holm", "pairs")
    return Table(f"{TITLES[part]}: differences", header, rows)


def _rate_table(results: Results) -> Table:
    rows = []
    for backbone, methods in results["rates"].items():
        for method, choice in methods.items():
            marks = [
                f"{rate}: {'failed' if rate in choice['failed'] else '–' if mark is None else percent(mark)}"
                for rate, mark in choice["marks"].items()
            ]
            chosen = "not chosen yet" if choice["rate"] is None else f"{choice['rate']:g}"
            rows.append((f"{ROWS[method]} ({backbone})", "; ".join(marks) or "none was tried", chosen))
    header = f"validation accuracy of each rate, {_choosing_seeds(results)}, mean over sets"
    return Table("Learning rates", ("", header, "chosen"), tuple(rows))


def _choosing_seeds(results: Results) -> str:
    """Describe which seeds chose the rates."""
    seeds = results.get("rate_seeds", 1)  # 1 for results of versions that did not record it
    return "first seed" if seeds == 1 else "all seeds" if seeds == len(results["seeds"]) else f"first {seeds} seeds"


def _at_the_edge(results: Results) -> list[str]:
    """List the chosen rates that are the lowest or highest tried."""
    found = []
    for backbone, methods in results["rates"].items():
        for method, choice in methods.items():
            tried = [float(rate) for rate in choice["marks"]]
            if len(tried) > 1 and choice["rate"] in (min(tried), max(tried)):
                end = "lowest" if choice["rate"] == min(tried) else "highest"
                found.append(f"{ROWS[method]} ({backbone}), the {end}")
    return found


def _account(results: Results) -> Iterator[Table]:
    """Tabulate failed and unfinished runs, so that the page accounts for every run that was started."""
    failed = [(each["what"], each["reason"]) for each in results["failures"]]
    stopped = [
        (what, "was started and not finished: it goes on when the study needs it") for what in results["unfinished"]
    ]
    if failed or stopped:
        yield Table("Runs without a result", ("run", "reason"), (*failed, *stopped))


def _statements(results: Results) -> Iterator[str]:
    for part in PARTS:
        for backbone in results["parts"].get(part, {}):
            yield from _said(results, part, backbone)


def _said(results: Results, part: str, backbone: str) -> Iterator[str]:
    """Yield a sentence per comparison: columns ahead, the mean, the seeds, and the paper's result."""
    found = [each for each in results["comparisons"] if (each["part"], each["backbone"]) == (part, backbone)]
    for a, b in dict.fromkeys((each["a"], each["b"]) for each in found):
        both = [each for each in found if (each["a"], each["b"]) == (a, b)]
        single = [each for each in both if each["column"] not in AVERAGES]
        mean, enough = (next((each for each in both if each["column"] == name), None) for name in AVERAGES)
        ahead = sum(each["difference"] > 0 for each in single)
        certain = [each for each in single if "p_holm" in each and each["p_holm"] < 0.05]
        above, below = (sum(sign * each["difference"] > 0 for each in certain) for sign in (1, -1))
        yield (
            f"{_WHERE[part]}, {backbone}: {_label(a)} is above {_label(b)} on {ahead} of {len(single)} "
            f"(significantly above on {above} and below on {below}: p < 0.05 after Holm's correction)"
            f"{_mean_said(mean, enough)}{_paper_said(part, a, b, enough or mean)}."
        )


_WHERE = {
    "table2": "In domain",
    "ood": "Out of domain",
    "heads": "By heads",
    "mixed": "After mixed training",
    "losses": "By policy loss",
    "ratios": "By policy ratio",
    "sizes": "By share of the pairs",
    "priors": "By reward loss",
}


def _mean_said(mean: Mapping[str, Any] | None, enough: Mapping[str, Any] | None) -> str:
    """Describe the mean over columns; if some have too few prompts, the verdict uses the others."""
    if mean is None:
        return ""
    judged = enough or mean
    seeds = list(judged["by_seed"].values())
    above = sum(value > 0 for value in seeds)
    each = f" ({', '.join(map(points, seeds))})" if len(seeds) > 1 else ""
    by_seed = f"; above in {above} of {count(len(seeds), 'seed')}{each}" if seeds else ""
    without = f"; over those of {FEWEST_GROUPS} prompts or more {_by(judged)}" if enough else ""
    return f"; on average {_by(mean)}{without}, which {_verdict(judged)}{by_seed}"


def _by(mean: Mapping[str, Any]) -> str:
    near = any(0 < abs(end) < 0.0005 for end in mean["ci95"])  # show two decimals so that the sign is visible
    return f"by {points(mean['difference'])} points {interval(mean['ci95'], _finely if near else points)}"


def _finely(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def _verdict(mean: Mapping[str, Any]) -> str:
    if mean["p"] is None:
        return "says nothing of other prompts"
    low, high = mean["ci95"]
    return "is above 0" if low > 0 else "is below 0" if high < 0 else "the pairs can't tell from 0"


def _paper_said(part: str, a: str, b: str, mean: Mapping[str, Any] | None) -> str:
    """Describe the paper's result for the same comparison, averaged over the same sets, and whether ours agrees.

    Our verdict uses only sets with enough prompts.
    """
    if part != "table2" or a != "haf" or b not in ("baseline", "dpo") or mean is None:
        return ""
    gains = [_printed(name, b, mean["columns"]) for name in numbers.BACKBONES]
    agrees = {"is above 0": "agrees", "is below 0": "contradicts it"}.get(
        _verdict(mean), "neither agrees nor contradicts"
    )
    shown = ", ".join(map(points, gains))
    excluded = "; gains as large as those are outside of the interval" if 0 < mean["ci95"][1] < min(gains) else ""
    return f". The paper's three backbones on these sets: {shown} points; this {agrees}{excluded}"


def _printed(backbone: str, rival: str, sets: Sequence[str]) -> float:
    """Return HAF's mean lead over a rival in the paper's Table 2 over the given sets, as a share."""
    rows: dict[str, Mapping[str, float]] = {
        row.method: row.accuracy for row in numbers.TABLE_2 if row.backbone == backbone
    }
    return round(statistics.fmean(rows["haf"][name] - rows[rival][name] for name in sets), 2) / 100


def _few_prompts(results: Results) -> dict[str, int]:
    """Return in-domain test sets with too few prompts for an interval, with their number of prompts."""
    cells = [
        (c, cell)
        for grid in results["parts"].get("table2", {}).values()
        for c, row in grid.items()
        for cell in row.values()
    ]
    return {column: cell["prompts"] for column, cell in cells if cell["prompts"] < FEWEST_GROUPS}


def _of_fewer_seeds(results: Results) -> str:
    """List the parts with cells that lack seeds."""
    short = [
        part
        for part, grids in results["parts"].items()
        for grid in grids.values()
        if any(len(cell["seeds"]) < len(results["seeds"]) for column in grid.values() for cell in column.values())
    ]
    return ", ".join(f'"{TITLES[part]}"' for part in dict.fromkeys(short))


def _left_out(results: Results) -> str:
    """Describe how many test pairs were not scored, by set, and by backbone if they differ."""
    by_backbone = {
        backbone: ", ".join(
            f"{column} {unscored:,} of {unscored + next(iter(row.values()))['n']:,}"
            for column, row in grid.items()
            if (unscored := max(int(cell["unscored"]) for cell in row.values()))
        )
        for backbone, grid in results["parts"].get("table2", {}).items()
    }
    if len(set(by_backbone.values())) == 1:
        return next(iter(by_backbone.values()))
    return "; ".join(f"{backbone}: {told or 'none'}" for backbone, told in by_backbone.items())


def _seen(results: Results) -> str:
    """Describe by column how many test pairs were excluded because their prompts were trained on."""
    found = {column: sizes for part in results["seen"].values() for column, sizes in part.items()}
    return ", ".join(f"{column} {seen:,} of {of:,}" for column, (seen, of) in found.items())


def _notes_on_rates(results: Results) -> Iterator[str]:
    choices = [choice for methods in results["rates"].values() for choice in methods.values()]
    if any(choice["marks"] for choice in choices):
        failed = any(choice["failed"] for choice in choices)
        yield (
            "Learning rates: every method tries the same rates with the same number of steps and pairs, on every set "
            f"with the {_choosing_seeds(results)}, and keeps the one with the best mean validation accuracy; its runs "
            "that were tried are kept too. Losses, ratios, shares and mixtures take HAF's, the baseline's or DPO's "
            "rate as it is."
            f"{' A rate at which a run failed is not chosen.' if failed else ''}"
        )
    else:
        yield "Learning rates were not chosen on validation pairs: another may suit a method better."
    if edges := _at_the_edge(results):
        yield f"At the edge of the rates that were tried, so that another may be better: {', '.join(edges)}."


def _notes(results: Results) -> Iterator[str]:
    yield from _notes_on_rates(results)
    yield (
        "Intervals and p-values are over prompts and hold for the seeds that were run; a method's own luck with a seed "
        "shows in the column by seed. Means over sets weigh sets alike."
    )
    if few := _few_prompts(results):
        sizes = ", ".join(f"{column}: {prompts}" for column, prompts in few.items())
        yield (
            f"Test pairs of fewer than {FEWEST_GROUPS} prompts ({sizes}) tell nothing of other prompts: they have no "
            "interval and no p-value. In means over sets their pairs are resampled one by one, so those intervals "
            "are of these prompts alone, and too narrow as far as pairs share a response: the mean of the other sets "
            "stands beside them."
        )
    if "mixed" in results["parts"]:
        yield (
            "A mixture's runs take as many steps as those of single sets, so they see fewer pairs of each set: compare "
            "methods there, and not mixtures with single sets."
        )
    if "table2" in results["parts"]:
        yield (
            "Bag of words is a logistic regression on word counts of the responses, fitted on the same training pairs, "
            "and tested on the same test pairs."
        )
    if incomplete := _of_fewer_seeds(results):
        yield (
            f"Some cells of {incomplete} are of fewer seeds than asked for, which they say: they are in no mean, and "
            "no cell of their column is marked as best."
        )
    if left_out := _left_out(results):
        yield f"Left out of all accuracies are test pairs longer than {results['max_length']:,} tokens: {left_out}."
    if seen := _seen(results):
        yield f"Left out are test pairs whose prompt is in the training or validation pairs, too: {seen}."
    if results["scale"] != "paper":
        yield "The sets stand for the paper's by role only, and the backbones are others: compare signs and sizes."
    counts = results["counts"]
    again = counts["started"] - counts["finished"] - counts["failed"]
    yield (
        f"Started: {counts['started']:,} runs and scorings; finished {counts['finished']:,}, failed "
        f"{counts['failed']:,}" + (f", stopped on the way {again:,}." if again else ".")
    )
    yield from results["missing"]
