"""Findings in a terminal: the inline markup of cells becomes styles, and nothing else is interpreted."""

from __future__ import annotations

import io

from markupsafe import Markup
from rich.console import Console

from hafrm.cli.printing import print_findings
from hafrm.report.findings import Cell, Findings, Table


def printed(*cells: Cell) -> str:
    """Print a table of one row, with terminal codes."""
    table = Table(title="t", header=("name",) * len(cells), rows=(cells,))
    findings = Findings(
        title="Title",
        intro="Why [bold]so[/bold].",
        statements=(Markup("haf is <b>above</b>"), "a < b"),
        results={},
        tables=(table,),
        notes=(Markup("x<sup>2</sup> &lt; y"),),
    )
    stream = io.StringIO()
    print_findings(findings, Console(file=stream, force_terminal=True, color_system="truecolor", width=200))
    return stream.getvalue()


def test_markup_becomes_styles() -> None:
    """1 is bold, 2 faint, 4 underlined; a style ends with its own tag."""
    found = printed(Markup("<b>one <u>two</u> three</b> four <small>five</small>"))
    for styled in ("\x1b[1mone ", "\x1b[1;4mtwo\x1b[0m", "\x1b[1m three\x1b[0m four ", "\x1b[2mfive\x1b[0m"):
        assert styled in found


def test_raised_letters_are_set_apart_and_entities_read() -> None:
    found = printed(Markup("10<sup>2</sup>"), Markup("<sup>a</sup> b"), Markup("c <sub>d</sub> &amp; e"), "<b>f &amp;")
    row = next(line for line in found.splitlines() if "10" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["10 2", "a b", "c d & e", "<b>f &amp;"]
    assert "│ a b" in row


def test_statements_and_notes_are_lists_and_texts_are_not_markup() -> None:
    lines = printed("cell").splitlines()
    for line in ("Why [bold]so[/bold].", "- haf is above", "- a < b", "- x 2 < y"):
        assert line in lines
