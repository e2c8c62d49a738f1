"""Format the page's two tables: accuracies with their intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hafrm.report.loading import Cell, Comparison, Evaluation
from hafrm.report.plots import difference_bar
from hafrm.report.wording import count, interval, p_value, percent, points
from hafrm.stats import FEWEST_GROUPS


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
class AccuracyTable:
    """A row per model, a column per data set."""

    columns: tuple[tuple[str, str], ...]
    """Each data set with its formatted numbers of pairs and prompts."""
    models: tuple[TableRow, ...]
    baselines: tuple[TableRow, ...]
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
            TableRow(model, tuple(_worded(evaluation.cells.get((model, data)), best[data] == model) for data in best))
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
    between = [c for c in evaluation.comparisons if c.data == data and {c.a, c.b} == {first, second}]
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
    return max(cell.groups for cell in evaluation.on(data).values())


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
