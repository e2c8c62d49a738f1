"""Write the findings of an experiment: `results.json`, `table.md`, one picture per figure, and one page.

Works on tables of marked-up cells, relations, figures and notes, independent of any particular experiment.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup, escape

from hafrm import atomic
from hafrm.report.charts import caption_of, standalone
from hafrm.report.html import render
from hafrm.report.wording import count, points, with_interval

Rival = Literal["baseline", "dpo"]
Cell = str | Markup
"""Plain text, or inline markup that both Markdown and HTML accept: b, u, sup, sub, small."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """HAF's accuracy compared to another method's; differences are in units of 1, not percent."""

    backbone: str
    trained_on: str
    tested_on: str
    over: Rival
    difference: float
    """Mean over seeds, on the pairs that both scored."""
    ci95: tuple[float, float] | None
    """95%, over prompts; for an average, computed from the sets' intervals as if the sets were independent."""
    by_seed: tuple[float, ...]
    paper: float | None = None
    """The paper's difference in the same units; None if the paper has no comparable number."""

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else None

    @property
    def verdict(self) -> Literal["above", "below", "undecided"]:
        """Return whether the interval puts HAF above or below the other method."""
        low, high = self.ci95 or (-math.inf, math.inf)
        return "above" if low > 0 else "below" if high < 0 else "undecided"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"spread": self.spread, "verdict": self.verdict, "haf_ahead": self.difference > 0}


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows."""

    title: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """How to read it; only shown on the page."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", tuple(self.header))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that an experiment reports."""

    title: str
    intro: str
    """What was run, in plain words."""
    statements: tuple[str, ...] = ()
    """The conclusions, one or two sentences each."""
    results: Mapping[str, Any]
    """Contents of `results.json` in addition to the relations and notes."""
    tables: tuple[Table, ...]
    """Our tables, then the paper's."""
    figures: Mapping[str, Markup] = field(default_factory=dict)
    """Figures by file name without extension."""
    relations: tuple[Relation, ...] = ()
    notes: tuple[str, ...] = ()
    values: tuple[Mapping[str, Any], ...] = ()
    """Lines of the experiment's record: the values of single prompts or pairs from which the results follow."""


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write an experiment's files into its folder; first `results.json`, which shows whose files the others are.

    Returns:
        The page's path.
    """
    figures = [(caption_of(svg), svg) for svg in findings.figures.values()]
    page = render("findings.html.j2", findings=findings, figures=figures, tables=all_tables(findings))
    relations = [each.as_dict() for each in findings.relations]
    results = {"title": findings.title, **findings.results, "relations": relations, "notes": list(findings.notes)}
    atomic.write_json(folder / "results.json", results)
    for name, svg in findings.figures.items():
        atomic.write_text(folder / f"{name}.svg", standalone(svg))
    atomic.write_text(folder / "table.md", findings_markdown(findings))
    atomic.write_text(folder / "index.html", page)
    return folder / "index.html"


def ranked(values: Sequence[float | None], words: Sequence[str]) -> list[Cell]:
    """Return the words, the best value's in bold and the second's underlined, as in the paper's tables; ties share a
    mark.
    """
    order = sorted({value for value in values if value is not None}, reverse=True)
    marks = dict(zip(order, ("b", "u"), strict=False))
    return [
        Markup("<{0}>{1}</{0}>").format(Markup(marks[value]), word) if value is not None and value in marks else word
        for value, word in zip(values, words, strict=True)
    ]


def relation_table(relations: Sequence[Relation]) -> Table:
    """Tabulate whether HAF is ahead, with intervals over prompts, the seeds' spread, and the paper's difference."""
    several = any(each.spread is not None for each in relations)
    printed = any(each.paper is not None for each in relations)
    header = ["HAF above", "trained on", "tested on", "points, 95% interval", "HAF is"]
    header += ["by seed"] * several + ["paper"] * printed
    rows = []
    for each in relations:
        row = [
            f"{'the baseline' if each.over == 'baseline' else 'DPO'} ({each.backbone})",
            each.trained_on,
            each.tested_on,
            with_interval(each.difference, each.ci95, points),
            each.verdict,
        ]
        row += [", ".join(map(points, each.by_seed)) + f" (sd {100 * (each.spread or 0):.1f})"] * several
        row += ["–" if each.paper is None else points(each.paper)] * printed
        rows.append(row)
    return Table("Is HAF ahead?", header, rows)


def all_tables(findings: Findings) -> tuple[Table, ...]:
    """Return the tables of an experiment, with the one of its relations last."""
    return (*findings.tables, *((relation_table(findings.relations),) if findings.relations else ()))


def findings_markdown(findings: Findings, *, pictures: str = "") -> str:
    """Format findings as Markdown.

    Args:
        pictures: The folder of the figures relative to the text, ending in a slash.
    """
    parts = [f"# {findings.title}\n", f"{findings.intro}\n"]
    if findings.statements:
        parts.append("".join(f"- {statement}\n" for statement in findings.statements))
    parts += [
        f"![{caption}]({pictures}{name}.svg)\n\n*{caption}*\n"
        for name, caption in ((name, escape(caption_of(svg))) for name, svg in findings.figures.items())
    ]
    parts += [f"## {table.title}\n\n{table_markdown(table)}" for table in all_tables(findings)]
    if findings.notes:
        parts.append("## Notes\n\n" + "".join(f"- {note}\n" for note in findings.notes))
    return "\n".join(parts)


def table_markdown(table: Table) -> str:
    """Return a table's lines, without its title."""
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    return "".join(f"| {' | '.join(map(_md_cell, line))} |\n" for line in lines)


def _md_cell(cell: Cell) -> str:
    return re.sub(r"\s*\n\s*", " ", str(cell if isinstance(cell, Markup) else escape(cell))).replace("|", "\\|")


def made_with_note(environment: Mapping[str, Any]) -> str:
    """Return the sentence that says with which versions and on which machine results were computed."""
    versions = "".join(f"{name} {number}, " for name, number in environment["versions"].items())
    revision, machine = environment["git_revision"], environment["machine"]
    changes = " with changes" if revision and "+" in revision else ""
    at = f"at revision {revision[:12]}{changes}, " if revision else ""
    device = "" if machine["device"] == "cpu" else f"{machine['device']} and "
    return f"Computed with {versions}{at}on {device}{machine['processor']}, {count(machine['threads'], 'thread')}."
