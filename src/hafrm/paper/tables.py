"""What the experiments' pages share: names of methods, sentences on the setting, tables and bars of accuracies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from markupsafe import Markup

from hafrm.paper.measures import AVERAGE, Grid, Measured, Row, average_of
from hafrm.paper.numbers import NOTES
from hafrm.paper.scales import Job
from hafrm.report.figures import Bar, BarGroup, accuracy_bars
from hafrm.report.findings import Cell, Findings, Relation, Table, made_with_note, ranked
from hafrm.report.html import templates
from hafrm.report.wording import count, interval, percent, points, signed, with_interval
from hafrm.stats import FEWEST_GROUPS
from hafrm.training.manifest import environment

METHOD_NAMES: Mapping[str, str] = {"dpo": "DPO", "baseline": "Baseline", "haf": "HAF"}
"""Display names of the methods, in the paper's order."""

_JsonGrid = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Measurements by column and row, as in `results.json`."""


def points_of(ends: Sequence[float]) -> Callable[[float], str]:
    """Return how to format an interval: with two decimals if one would not show the sign of an end."""
    near = any(0 < abs(end) < 0.0005 for end in ends)
    return (lambda share: signed(100 * share, 2)) if near else points


@cache
def template(name: str) -> Any:
    """Load a template of sentences, whose macros are attributes of the result."""
    environment = templates("paper", autoescape=False)
    environment.filters |= {"points": points, "percent": percent, "thousands": "{:,}".format}
    environment.globals |= {
        "points_of": points_of,
        "count": count,
        "interval": interval,
        "fewest": FEWEST_GROUPS,
        "printed": NOTES,
    }
    return environment.get_template(f"{name}.md.j2").module


def lines_of(text: Markup | str) -> list[str]:
    """Return the lines of rendered sentences; a line that ends in a backslash continues on the next."""
    joined = (re.sub(r"\s+", " ", line).strip() for line in str(text).replace("\\\n", "").splitlines())
    return [line for line in joined if line]


def build_findings(
    job: Job,
    name: str,
    results: Mapping[str, Any],
    tables: Sequence[Table],
    figures: Mapping[str, Markup] | None = None,
    relations: Iterable[Relation] = (),
    values: Iterable[Mapping[str, Any]] = (),
    **facts: Any,
) -> Findings:
    """Build an experiment's page; its words are in the template `pages.md.j2`.

    Args:
        results: Contents of `results.json`, besides the scale.
        tables: Our tables, then the paper's.
        figures: Figures by file name.
        relations: Comparisons of HAF with the other methods.
        values: Lines of the record; see `hafrm.paper.record.values_line`.
        facts: Further values for the template.
    """
    words, made_with = template("pages"), environment()
    title, *lines = lines_of(getattr(words, name)(job, **facts))
    more = lines_of(words.scale_notes(job, name))
    return Findings(
        title=title.removeprefix("# "),
        intro=" ".join(line for line in lines if not line.startswith("- ")),
        results={"scale": job.scale.name, "environment": made_with, **results},
        tables=tuple(tables),
        figures=figures or {},
        relations=tuple(relations),
        notes=(
            *(line.removeprefix("- ") for line in (*lines, *more) if line.startswith("- ")),
            made_with_note(made_with),
        ),
        values=tuple(values),
    )


def cell_text(cell: Mapping[str, Any] | Measured, more: str = "") -> str:
    """Format an accuracy with its interval, and with the spread over seeds if there are several.

    Args:
        cell: A measurement, or its JSON form.
        more: Text to append.
    """
    cell = cell.as_dict() if isinstance(cell, Measured) else cell
    spread = "" if cell["spread"] is None else f"± {percent(cell['spread'])}"
    return " ".join(filter(None, (percent(cell["accuracy"]), spread, interval(cell["ci95"], percent), more)))


def difference_cells(
    value: float, ends: tuple[float, float] | None, by_seed: Iterable[float], worded: Callable[[float], str]
) -> tuple[str, str]:
    """Format a difference with its interval, and those of single seeds."""
    return with_interval(value, ends, worded), ", ".join(map(worded, by_seed))


def differences_table(title: str, differences: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate differences in the judge's reward, each with `mean`, `ci95` and `by_seed`."""
    rows = [
        (name, *difference_cells(each["mean"], each["ci95"], each["by_seed"], "{:+.2f}".format))
        for name, each in differences.items()
    ]
    return Table(title, ("ways", "judge's reward, 95% interval", "by seed"), rows)


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
    rows = []
    for backbone, grid in grids.items():
        columns = with_average(grid)
        lengths = [percent(row["haf"].length_accuracy) for row in columns]
        rows += method_rows(backbone, columns)
        rows += [("the longer response", *lengths), ("random", *["50.0"] * len(lengths))]
    return Table(title, ("accuracy, %", *job.sets, AVERAGE), rows)


def grid_bars(label: str, grid: _JsonGrid, light: _JsonGrid | None = None) -> Markup:
    """Draw the methods' accuracies in each column of a grid, given in JSON form.

    Args:
        label: Describes the figure.
        grid: The grid.
        light: Another grid, which is drawn behind it in a lighter shade.
    """
    groups = []
    for column, row in grid.items():
        behind = {m: cell["accuracy"] for m, cell in light[column].items()} if light else {}
        cells = {m: row[m] for m in METHOD_NAMES if m in row}
        bars = (
            Bar(m, each["accuracy"], each["ci95"] and tuple(each["ci95"]), behind.get(m)) for m, each in cells.items()
        )
        groups.append(BarGroup(column, tuple(bars)))
    return accuracy_bars(label, groups, list(METHOD_NAMES.items()))
