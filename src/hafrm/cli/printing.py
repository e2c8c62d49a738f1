"""Print results in a terminal: accuracies, comparisons and findings as tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hafrm.report.findings import Cell, Findings, all_tables
from hafrm.report.loading import Evaluation
from hafrm.report.tables import Grid, accuracy_table, cell_text, comparison_rows, suite_tables
from hafrm.report.verdict import verdicts
from hafrm.report.wording import short_names
from hafrm.stats import FEWEST_GROUPS

_STYLES = {"b": "bold", "u": "underline", "small": "dim", "sup": "", "sub": ""}
"""Terminal styles of the inline markup of findings."""


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print an evaluation's accuracies, benchmarks and comparisons."""
    if evaluation.data:
        _print_accuracies(evaluation, console)
    for suite in suite_tables(evaluation):
        console.print(_grid(suite.title, suite.scores, evaluation))
        for note in suite.notes:
            say(console, note)
    if rows := list(_comparisons(evaluation)):
        table = Table(
            title="Differences in accuracy, paired",
            caption="p by Holm is corrected for all comparisons and decides; the interval and McNemar's p are not.",
        )
        for name in ("on", "models", "points, 95% interval", "p, Holm", "p, McNemar", "n"):
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in verdicts(evaluation):
        say(console, line)


def _print_accuracies(evaluation: Evaluation, console: Console) -> None:
    worded = accuracy_table(evaluation)
    console.print(_grid("Accuracy", worded, evaluation))
    if worded.note:
        say(console, worded.note)
    if worded.few:
        names = short_names(evaluation.data)
        listed = ", ".join(names[data] for data in worded.few)
        say(
            console,
            f"No interval and no p on {listed}: pairs from fewer than {FEWEST_GROUPS} prompts can't be resampled.",
        )


def _grid(title: str, grid: Grid, evaluation: Evaluation) -> Table:
    """Return scores with their 95% intervals, above the baselines."""
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    table = Table(title=f"{title} in %, with 95% intervals over prompts")
    table.add_column("model", overflow="fold")
    for name, size in grid.columns:
        table.add_column(Text(f"{data.get(name, name)}\n{size}".strip()), overflow="fold")
    for row in grid.models:
        table.add_row(Text(models[row.name]), *map(Text, map(cell_text, row.cells)))
    table.add_section()
    for row in grid.baselines:
        table.add_row(row.name, *map(Text, map(cell_text, row.cells)))
    return table


def _comparisons(evaluation: Evaluation) -> Iterator[tuple[Text, ...]]:
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    for name, rows in comparison_rows(evaluation.results.comparisons, evaluation.scores).items():
        for row in rows:
            words = (data[name], f"{models[row.a]} - {models[row.b]}", f"{row.difference} {row.interval}")
            yield tuple(map(Text, (*words, row.p_holm, row.p_mcnemar, row.n)))


def print_findings(findings: Findings, console: Console) -> None:
    """Print the findings of an experiment: conclusions, tables and notes."""
    console.print(Text(findings.title, style="bold"))
    for text in (findings.intro, *(f"- {_styled(each)}" for each in findings.statements)):
        say(console, text)
    for found in all_tables(findings):
        console.print(Text(f"\n{found.title}", style="italic"), soft_wrap=True)
        table = Table()
        for name in found.header:
            table.add_column(_styled(name), overflow="fold")
        for row in found.rows:
            table.add_row(*map(_styled, row))
        console.print(table)
    for note in findings.notes:
        say(console, f"- {_styled(note)}")


def _styled(cell: Cell) -> Text:
    """Convert the inline markup of findings to a terminal's."""
    if not isinstance(cell, Markup):
        return Text(cell)
    text, styles = Text(), list[str]()
    for part in re.split(r"(</?\w+>)", str(cell)):
        if tag := re.fullmatch(r"<(/?)(\w+)>", part):
            if part in ("<sup>", "<sub>") and text and not text.plain.endswith(" "):
                text.append(" ")  # a terminal has only one height of letters
            styles = styles[:-1] if tag[1] else [*styles, _STYLES.get(tag[2], "")]
        else:
            text.append(unescape(part), style=" ".join(filter(None, styles)))
    return text


def say(console: Console, line: str) -> None:
    """Print a line as it is, without markup and line breaks."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
