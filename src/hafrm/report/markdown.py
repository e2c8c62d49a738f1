"""Write an evaluation's accuracies and suites as Markdown tables for READMEs: `table.md`, next to the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hafrm import atomic
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.suites import SuiteTable, suite_tables
from hafrm.report.tables import TableCell, TableRow, accuracy_table
from hafrm.report.wording import short_names

TABLE_FILE = "table.md"


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
    names = short_names(evaluation.models)
    tables = [_accuracies(evaluation, names)] if evaluation.data else []
    return "\n".join([*tables, *(_suite(suite, names) for suite in suite_tables(evaluation))])


def _accuracies(evaluation: Evaluation, names: Mapping[str, str]) -> str:
    table, data = accuracy_table(evaluation), short_names(evaluation.data)
    columns = ("accuracy, %", *(data[name] for name, _ in table.columns))
    return _table(columns, (*table.models, *table.baselines), names)


def _suite(suite: SuiteTable, names: Mapping[str, str]) -> str:
    """Format a suite's overall score and sections, and its notes, one paragraph each."""
    table = _table((f"{suite.title}, %", *suite.columns), (*suite.models, *suite.baselines), names)
    return table + "".join(f"\n{note}\n" for note in suite.notes)


def _table(columns: Sequence[str], rows: Iterable[TableRow], names: Mapping[str, str]) -> str:
    lines = [columns, ["---"] * len(columns)]
    lines += [[names.get(row.name, row.name), *map(cell_text, row.cells)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell_text(cell: TableCell | None) -> str:
    """Format a cell in one line: accuracy, interval, and the number of pairs without a reward."""
    if cell is None:
        return "-"
    return " ".join(part for part in (cell.accuracy, cell.interval, f"({cell.note})" if cell.note else "") if part)
