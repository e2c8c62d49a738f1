"""Format an evaluation's tables, accuracies, comparisons and published benchmarks, and write them as `table.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hafrm import atomic
from hafrm.errors import DataError
from hafrm.evaluation.results import Cell, Comparison
from hafrm.report.diagnostics import difference_bar
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.wording import count, interval, p_value, percent, points, short_names
from hafrm.stats import FEWEST_GROUPS

TABLE_FILE = "table.md"


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
    """Names of data sets, each with its formatted numbers of pairs and prompts; or of scores, with nothing."""
    models: tuple[TableRow, ...]
    baselines: tuple[TableRow, ...]


@dataclass(frozen=True)
class AccuracyTable(Grid):
    """The accuracies on each data set."""

    undecided: tuple[str, ...]
    """The data sets on which no model is marked as best, although several have intervals."""
    few: tuple[str, ...]
    """The data sets with pairs from fewer than six prompts, which have no intervals."""


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
    decided: bool
    """Whether the interval excludes 0."""


def accuracy_table(evaluation: Evaluation) -> AccuracyTable:
    """Format the accuracies, and mark the best model of each data set if the difference is significant."""
    best = {data: marked_best(evaluation, data) for data in evaluation.data}
    few = tuple(data for data in evaluation.data if 0 < _groups(evaluation, data) < FEWEST_GROUPS)
    several = [data for data in evaluation.data if len(evaluation.measured_on(data)) > 1 and data not in few]
    return AccuracyTable(
        columns=tuple((data, _size(evaluation, data)) for data in evaluation.data),
        models=tuple(
            TableRow(model, tuple(_worded(evaluation.on(data).get(model), best[data] == model) for data in best))
            for model in evaluation.models
        ),
        baselines=(
            TableRow("the longer response", _baselines(evaluation, "length_accuracy")),
            TableRow("random", _baselines(evaluation, "random_accuracy")),
        ),
        undecided=tuple(data for data in several if best[data] is None),
        few=few,
    )


def marked_best(evaluation: Evaluation, data: str) -> str | None:
    """Return the most accurate model on a data set, if the interval of its difference to the second excludes 0."""
    ranked = sorted(evaluation.measured_on(data).items(), key=lambda item: item[1].accuracy, reverse=True)
    if len(ranked) < 2:
        return None
    first, second = ranked[0][0], ranked[1][0]
    between = [c for c in evaluation.results.comparisons if c.data == data and {c.a, c.b} == {first, second}]
    return first if any(c.better == first for c in between) else None


def comparison_rows(comparisons: Sequence[Comparison]) -> dict[str, tuple[ComparisonRow, ...]]:
    """Format the comparisons, by data set; their bars share one scale, that of the widest interval."""
    extent = max((abs(end) for c in comparisons for end in (c.difference, *(c.ci95 or ()))), default=0.0) or 0.01
    return {
        data: tuple(_comparison_row(c, extent) for c in comparisons if c.data == data)
        for data in dict.fromkeys(c.data for c in comparisons)
    }


def _comparison_row(comparison: Comparison, extent: float) -> ComparisonRow:
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


def _baselines(evaluation: Evaluation, name: str) -> tuple[TableCell | None, ...]:
    fullest = [evaluation.fullest_on(data) for data in evaluation.data]
    return tuple(TableCell(percent(getattr(measured, name))) if measured else None for measured in fullest)


@dataclass(frozen=True)
class SuiteDifference:
    """A formatted paired difference of two models on one score, in points."""

    score: str
    a: str
    b: str
    difference: str
    interval: str
    decided: bool
    """Whether the interval excludes 0."""


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
        differences=tuple(_difference(row) for row in raw["comparisons"]),
        notes=_notes(raw),
    )


def _scores(raw: Mapping[str, Any], *levels: str) -> Grid:
    baselines = {"the longest response": raw["baselines"]["length"], "random": raw["baselines"]["random"]}
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


def _difference(row: Mapping[str, Any]) -> SuiteDifference:
    low, high = row["ci95"] or (0.0, 0.0)
    worded = {"difference": points(row["difference"]), "interval": interval(row["ci95"], points)}
    return SuiteDifference(row["score"], row["a"], row["b"], **worded, decided=low > 0 or high < 0)


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
    return (*missing, *unscored, *unknown, *few, f"{raw['citation']}. Licence: {raw['licence']}.")


def write_markdown(folder: Path) -> Path:
    """Write an evaluation's tables into its folder, as `table.md`."""
    path = folder / TABLE_FILE
    atomic.write_text(path, markdown_table(folder))
    return path


def markdown_table(folder: Path) -> str:
    """Format the accuracies of an evaluation's folder, with their 95% intervals, above the length-only and random
    baselines.

    If there are suites, a table for each follows, with its notes; without data sets there are only these.
    """
    evaluation = read_evaluation(folder)
    names = short_names(evaluation.models) | short_names(evaluation.data)
    tables = [_markdown("accuracy, %", accuracy_table(evaluation), names)] if evaluation.data else []
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
