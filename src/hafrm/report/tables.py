"""Format an evaluation's tables, accuracies, comparisons and published benchmarks, and write them as `table.md`."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hafrm import atomic
from hafrm.errors import DataError
from hafrm.evaluation.results import SIGNIFICANT, Cell, Comparison, Interval
from hafrm.evaluation.scoring import PairScore
from hafrm.evaluation.words import FITTED_ON
from hafrm.report.diagnostics import difference_bar
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.wording import count, interval, p_value, percent, points, short_names
from hafrm.stats import FEWEST_GROUPS, holm_correction

TABLE_FILE = "table.md"
AVERAGE = "average"
"""The column with the mean over the data sets, if there are several."""
WORDS = "a bag of words"
WORDS_NOTE = f"A bag of words: logistic regression on word counts, {FITTED_ON}."


@dataclass(frozen=True)
class TableCell:
    """One formatted accuracy."""

    accuracy: str
    interval: str = ""
    note: str = ""
    """The number of pairs without a reward; empty if there are none."""
    best: bool = False


@dataclass(frozen=True)
class TableRow:
    """One model or baseline over all data sets; None if it was not evaluated."""

    name: str
    cells: tuple[TableCell | None, ...]


@dataclass(frozen=True)
class Grid:
    """A row per model and baseline, a column per data set or score."""

    columns: tuple[tuple[str, str], ...]
    """Names of data sets, with their formatted numbers of pairs and prompts; or names of scores, with ""."""
    models: tuple[TableRow, ...]
    baselines: tuple[TableRow, ...]


@dataclass(frozen=True)
class AccuracyTable(Grid):
    """The accuracies: their average if there are several data sets, and those on each."""

    few: tuple[str, ...]
    """The data sets with pairs from fewer than six prompts, which have no intervals."""
    note: str
    """What the bag of words is fitted on; empty if there is none."""


@dataclass(frozen=True)
class ComparisonRow:
    """One formatted paired comparison; differences are a's minus b's, in points."""

    a: str
    b: str
    n: str
    difference: str
    interval: str
    bar: Markup
    p_bootstrap: str
    p_holm: str
    p_mcnemar: str
    only_a: str
    """Number of pairs on which only a is right; a tie is not right."""
    only_b: str
    decided: bool
    """Whether the corrected test finds a difference."""


def accuracy_table(evaluation: Evaluation) -> AccuracyTable:
    """Format the accuracies, and mark the best model of each data set, if there is one; see `marked_best`."""
    best = {data: marked_best(evaluation, data) for data in evaluation.data}
    several = len(best) > 1
    words = _baselines(evaluation, "words_accuracy", average=several)
    return AccuracyTable(
        columns=(
            *(((AVERAGE, f"{len(best)} sets"),) if several else ()),
            *((data, _size(evaluation, data)) for data in best),
        ),
        models=tuple(
            TableRow(
                model,
                (
                    *((_average(evaluation, model),) if several else ()),
                    *(_worded(evaluation.on(data).get(model), best[data] == model) for data in best),
                ),
            )
            for model in evaluation.models
        ),
        baselines=(
            TableRow("the longer response", _baselines(evaluation, "length_accuracy", average=several)),
            *((TableRow(WORDS, words),) if any(words) else ()),
            TableRow("random", _baselines(evaluation, "random_accuracy", average=several)),
        ),
        few=tuple(data for data in evaluation.data if 0 < _groups(evaluation, data) < FEWEST_GROUPS),
        note=WORDS_NOTE if any(words) else "",
    )


def marked_best(evaluation: Evaluation, data: str) -> str | None:
    """Return the most accurate model on a data set, if it is ahead of the second by the corrected test."""
    ranked = sorted(evaluation.measured_on(data).items(), key=lambda item: item[1].accuracy, reverse=True)
    if len(ranked) < 2:
        return None
    first, second = ranked[0][0], ranked[1][0]
    between = [c for c in evaluation.results.comparisons if c.data == data and {c.a, c.b} == {first, second}]
    return first if any(c.better == first for c in between) else None


def comparison_rows(
    comparisons: Sequence[Comparison], scores: Sequence[PairScore]
) -> dict[str, tuple[ComparisonRow, ...]]:
    """Format the comparisons, by data set; their bars share one scale, that of the widest interval."""
    right: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
    for score in scores:
        if score.margin is not None:
            right[score.data, score.model][score.id] = score.margin > 0
    extent = max((abs(end) for c in comparisons for end in (c.difference, *(c.ci95 or ()))), default=0.0) or 0.01
    return {
        data: tuple(
            _comparison_row(c, extent, right[data, c.a], right[data, c.b]) for c in comparisons if c.data == data
        )
        for data in dict.fromkeys(c.data for c in comparisons)
    }


def _comparison_row(
    comparison: Comparison, extent: float, right_a: Mapping[str, bool], right_b: Mapping[str, bool]
) -> ComparisonRow:
    both = right_a.keys() & right_b.keys()
    few = comparison.ci95 is None
    return ComparisonRow(
        a=comparison.a,
        b=comparison.b,
        n=f"{comparison.n:,}",
        difference=points(comparison.difference),
        interval=interval(comparison.ci95, points) or "–",
        bar=difference_bar(comparison.difference, comparison.ci95, extent),
        p_bootstrap="–" if few else p_value(comparison.p_bootstrap),
        p_holm="–" if few else p_value(comparison.p_holm),
        p_mcnemar="–" if few else p_value(comparison.p_mcnemar),  # treats pairs of a prompt as independent
        only_a=f"{sum(right_a[each] and not right_b[each] for each in both):,}",
        only_b=f"{sum(right_b[each] and not right_a[each] for each in both):,}",
        decided=comparison.better is not None,
    )


def _size(evaluation: Evaluation, data: str) -> str:
    pairs = max(cell.n + cell.unscored for cell in evaluation.on(data).values())
    return f"{count(pairs, 'pair')}, {count(_groups(evaluation, data), 'prompt')}"


def _groups(evaluation: Evaluation, data: str) -> int:
    return max((measured.groups for measured in evaluation.measured_on(data).values()), default=0)


def _worded(cell: Cell | None, best: bool) -> TableCell | None:
    if cell is None:
        return None
    note = f"n {cell.n:,}, {cell.unscored:,} unscored" if cell.unscored else ""
    if cell.measured is None:
        return TableCell("–", note=note)
    return TableCell(percent(cell.measured.accuracy), interval(cell.measured.ci95, percent), note, best)


def _average(evaluation: Evaluation, model: str) -> TableCell | None:
    """Average a model's accuracies over the data sets; None unless it has one on each."""
    cells = [evaluation.on(data).get(model) for data in evaluation.data]
    found = [cell.measured for cell in cells if cell and cell.measured]
    if len(found) < len(cells):
        return None
    mean = statistics.fmean(each.accuracy for each in found)
    return TableCell(percent(mean), interval(_interval_of_mean(mean, [each.ci95 for each in found]), percent))


def _interval_of_mean(mean: float, intervals: Sequence[Interval | None]) -> Interval | None:
    """Return the 95% interval of a mean of independent accuracies; None if one of them has none."""
    halves = [(ends[1] - ends[0]) / 2 for ends in intervals if ends]
    if len(halves) < len(intervals):
        return None
    half = math.hypot(*halves) / len(halves)
    return max(0.0, mean - half), min(1.0, mean + half)


def _baselines(evaluation: Evaluation, name: str, *, average: bool) -> tuple[TableCell | None, ...]:
    fullest = [evaluation.fullest_on(data) for data in evaluation.data]
    shares: list[float | None] = [getattr(measured, name) if measured else None for measured in fullest]
    if average:
        known = [share for share in shares if share is not None]
        shares.insert(0, statistics.fmean(known) if len(known) == len(shares) else None)
    return tuple(None if share is None else TableCell(percent(share)) for share in shares)


@dataclass(frozen=True)
class SuiteDifference:
    """A formatted paired difference of two models on one score, in points."""

    score: str
    a: str
    b: str
    difference: str
    interval: str
    p_holm: str
    """Corrected for the comparisons within the benchmark."""
    better: str | None
    """The model that is ahead by the corrected test."""


@dataclass(frozen=True)
class SuiteTable:
    """One published benchmark."""

    name: str
    title: str
    scores: Grid
    """The overall score and the sections'."""
    subsets: Grid
    differences: tuple[SuiteDifference, ...]
    notes: tuple[str, ...]
    """Its source, what is missing, and what each model did not score."""


def suite_tables(evaluation: Evaluation) -> tuple[SuiteTable, ...]:
    """Format the suites of an evaluation.

    Raises:
        DataError: the results of a suite are malformed.
    """
    try:
        return tuple(_suite_table(name, raw) for name, raw in evaluation.results.suites.items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"The results of the suites can't be read ({type(error).__name__}: {error}). Evaluate again."
        ) from error


def _suite_table(name: str, raw: Mapping[str, Any]) -> SuiteTable:
    return SuiteTable(
        name=name,
        title=raw["title"],
        scores=_scores(raw, "overall", "sections", "pooled"),
        subsets=_scores(raw, "subsets"),
        differences=_differences(raw["comparisons"]),
        notes=_notes(raw),
    )


def _scores(raw: Mapping[str, Any], *levels: str) -> Grid:
    names = {"length": "the longest response", "words": WORDS, "random": "random"}
    baselines = {name: raw["baselines"][key] for key, name in names.items() if key in raw["baselines"]}
    keys = [(level, name) for level in levels for name in baselines["random"][level]]
    return Grid(
        tuple((f"{name}, pooled" if level == "pooled" else name, "") for level, name in keys),
        tuple(TableRow(model, tuple(_score(found, *key) for key in keys)) for model, found in raw["models"].items()),
        tuple(TableRow(name, tuple(_score(found, *key) for key in keys)) for name, found in baselines.items()),
    )


def _score(found: Mapping[str, Mapping[str, Any]], level: str, name: str) -> TableCell | None:
    """Format a score: a baseline's is a number, a model's has an interval."""
    value = found[level].get(name)
    if isinstance(value, Mapping):
        return TableCell(percent(value["value"]), interval(value["ci95"], percent))
    return None if value is None else TableCell(percent(value))


def _differences(rows: Sequence[Mapping[str, Any]]) -> tuple[SuiteDifference, ...]:
    corrected = holm_correction([row["p_bootstrap"] for row in rows]).tolist() if rows else list[float]()
    return tuple(
        SuiteDifference(
            score=row["score"],
            a=row["a"],
            b=row["b"],
            difference=points(row["difference"]),
            interval=interval(row["ci95"], points),
            p_holm=p_value(p) if row["ci95"] else "–",
            better=row["a" if row["difference"] > 0 else "b"] if row["ci95"] and p < SIGNIFICANT else None,
        )
        for row, p in zip(rows, corrected, strict=True)
    )


def _notes(raw: Mapping[str, Any]) -> tuple[str, ...]:
    missing = [f"Left out because there are no rows: {', '.join(raw['missing'])}."] if raw["missing"] else []
    unscored = [
        f"{model}: {count(found['unscored'], 'prompt')} without all rewards, left out."
        for model, found in raw["models"].items()
        if found["unscored"]
    ]
    unknown = [
        f"{model}: nothing scored of {', '.join(found['missing'])}, so there is no score that includes it."
        for model, found in raw["models"].items()
        if found["missing"]
    ]
    levels = ("overall", "sections", "pooled", "subsets")
    scores = [score for found in raw["models"].values() for level in levels for score in found[level].values()]
    without = any(score["ci95"] is None for score in scores)
    few = ["There is no interval where a subset has fewer than six prompts: too few for resampling."] if without else []
    words = [WORDS_NOTE] if "words" in raw["baselines"] else []
    return (*missing, *unscored, *unknown, *few, *words, f"{raw['citation']}. Licence: {raw['licence']}.")


def write_markdown(folder: Path) -> Path:
    """Write an evaluation's tables into its folder, as `table.md`."""
    path = folder / TABLE_FILE
    atomic.write_text(path, markdown_table(folder))
    return path


def markdown_table(folder: Path) -> str:
    """Format the accuracies of an evaluation's folder, with their 95% intervals, above the baselines.

    If there are suites, a table for each follows, with its notes; without data sets there are only these.
    """
    evaluation = read_evaluation(folder)
    names = short_names(evaluation.models) | short_names(evaluation.data)
    tables = []
    if evaluation.data:
        table = accuracy_table(evaluation)
        tables.append(_markdown("accuracy, %", table, names) + (f"\n{table.note}\n" if table.note else ""))
    for suite in suite_tables(evaluation):
        notes = "".join(f"\n{note}\n" for note in suite.notes)
        tables.append(_markdown(f"{suite.title}, %", suite.scores, names) + notes)
    return "\n".join(tables)


def _markdown(title: str, grid: Grid, names: Mapping[str, str]) -> str:
    columns = [title, *(names.get(name, name) for name, _ in grid.columns)]
    rows = [[names.get(row.name, row.name), *map(cell_text, row.cells)] for row in (*grid.models, *grid.baselines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [columns, ["---"] * len(columns), *rows])


def cell_text(cell: TableCell | None) -> str:
    """Format a cell in one line: accuracy, interval, and the number of pairs without a reward."""
    if cell is None:
        return "-"
    return " ".join(part for part in (cell.accuracy, cell.interval, f"({cell.note})" if cell.note else "") if part)
