"""What the experiments' pages share: names of methods, sentences on the setting, tables and bars of accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hafrm.paper.measures import AVERAGE, Grid, Measured, Row, average_of
from hafrm.paper.scales import Job
from hafrm.report.figures import Bar, BarGroup
from hafrm.report.findings import Cell, Table, ranked
from hafrm.report.wording import count, interval, percent

METHOD_NAMES: Mapping[str, str] = {"dpo": "DPO", "baseline": "Baseline", "haf": "HAF"}
"""Display names of the methods, in the paper's order."""

LEGEND = tuple(METHOD_NAMES.items())
"""Legend of the figures."""


def setting(job: Job, seeds: Sequence[int]) -> str:
    """Describe scale, backbones and seeds in a sentence; without seeds if nothing is trained."""
    return f"Scale {job.scale.name}, backbones {', '.join(job.backbones)}{', ' if seeds else ''}{seeds_words(seeds)}."


def seeds_words(seeds: Sequence[int]) -> str:
    """Describe the number of seeds and list them; empty for none."""
    return f"{count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})" if seeds else ""


def scale_notes(job: Job) -> tuple[str, ...]:
    """Return the notes needed to compare our numbers with the paper's."""
    if job.in_world:
        return (
            "The simulated world stands for the paper's models and sets by role only: compare signs and sizes of "
            "differences, not accuracies. Annotators there err, so no model can reach 100.",
        )
    if job.scale.name == "small":
        return ("The files stand for the paper's sets by role only, and the backbone is another: compare differences.",)
    return ()


def header(job: Job, **results: Any) -> dict[str, Any]:
    """Return results with the job's scale and seeds."""
    return {"scale": job.scale.name, "seeds": list(job.seeds), **results}


def cell_text(cell: Mapping[str, Any] | Measured, more: str = "") -> str:
    """Format an accuracy with its interval, and with the spread over seeds if there are several.

    Args:
        cell: A measurement, or its JSON form.
        more: Text to append.
    """
    cell = cell.as_dict() if isinstance(cell, Measured) else cell
    spread = "" if cell["spread"] is None else f"± {percent(cell['spread'])}"
    return " ".join(filter(None, (percent(cell["accuracy"]), spread, interval(cell["ci95"], percent), more)))


def ranked_rows(names: Sequence[str], columns: Sequence[Sequence[tuple[float | None, str]]]) -> list[tuple[Cell, ...]]:
    """Return named rows from columns of values with their texts; the best value is bold, the second underlined."""
    marked = [ranked([value for value, _ in column], [text for _, text in column]) for column in columns]
    return [(name, *cells) for name, cells in zip(names, zip(*marked, strict=True), strict=True)]


def method_rows(backbone: str, rows: Sequence[Row]) -> list[tuple[Cell, ...]]:
    """Return a line for each method, with a column for each row of measurements."""
    names = [f"{name} ({backbone})" for name in METHOD_NAMES.values()]
    return ranked_rows(names, [[(row[m].accuracy, cell_text(row[m])) for m in METHOD_NAMES] for row in rows])


def with_average(grid: Grid) -> list[Row]:
    """Return the rows of a grid, and their average."""
    return [*grid.values(), {m: average_of([row[m] for row in grid.values()]) for m in METHOD_NAMES}]


def accuracy_table(title: str, job: Job, grids: Mapping[str, Grid]) -> Table:
    """Tabulate each backbone's methods, followed by picking the longer response, and guessing."""
    rows: list[tuple[Cell, ...]] = []
    for backbone, grid in grids.items():
        columns = with_average(grid)
        lengths = [percent(row["haf"].length_accuracy) for row in columns]
        rows += method_rows(backbone, columns)
        rows += [("the longer response", *lengths), ("random", *["50.0"] * len(lengths))]
    return Table(title, ("accuracy, %", *job.sets, AVERAGE), tuple(rows))


def bar_group(name: str, row: Mapping[str, Mapping[str, Any]], light: Mapping[str, Any] | None = None) -> BarGroup:
    """Return one set's bars, from measurements in JSON form."""
    bars = (
        Bar(m, row[m]["accuracy"], row[m]["ci95"] and tuple(row[m]["ci95"]), light[m]["accuracy"] if light else None)
        for m in METHOD_NAMES
        if m in row
    )
    return BarGroup(name, tuple(bars))
