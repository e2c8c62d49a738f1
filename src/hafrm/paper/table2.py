"""Table 2: accuracy in domain. Each set's models are tested on that set's test pairs (section 4.1.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hafrm.paper import numbers
from hafrm.paper.measures import (
    AVERAGE,
    RIVALS,
    Measured,
    Relation,
    SetTable,
    as_json,
    average_of,
    average_relation,
    measure,
    relation,
)
from hafrm.paper.plans import Job, Plan, comparison_plan
from hafrm.report.figures import Bar, BarGroup, accuracy_bars
from hafrm.report.findings import Cell, Findings, Table, ranked
from hafrm.report.wording import interval, percent
from hafrm.training.config import Method

METHOD_NAMES: Mapping[Method, str] = {"dpo": "DPO", "baseline": "Baseline", "haf": "HAF"}
"""Display names of the methods, in the paper's order."""

LEGEND = tuple(METHOD_NAMES.items())
"""Legend of the figures."""


def plan(job: Job) -> Plan:
    """Plan HAF, the baseline and DPO for each set, tested on the same set."""
    return comparison_plan(job, [((name,), (name,)) for name in job.sets])


def find(job: Job) -> Findings:
    """Build the table (ours above the paper's), the relations and the bars."""
    cells = {backbone: own_cells(job, backbone) for backbone in job.backbones}
    relations = [each for backbone, table in cells.items() for each in _relations(job, backbone, table)]
    return Findings(
        title="Table 2: accuracy in domain",
        intro=intro(job, "Each set's models are tested on that set's test pairs."),
        results={
            "scale": job.scale.name,
            "seeds": list(job.seeds),
            "accuracy": {backbone: as_json(table) for backbone, table in cells.items()},
        },
        tables=(_ours(job, cells), _papers()),
        figures={
            f"table2-{backbone}": accuracy_bars(
                f"Accuracy in domain, {backbone}", [group_of(name, row) for name, row in table.items()], LEGEND
            )
            for backbone, table in cells.items()
        },
        relations=tuple(relations),
        notes=(*numbers.NOTES["table2"], *scale_notes(job)),
    )


def intro(job: Job, what: str) -> str:
    """Describe what was run and how to read the accuracies."""
    spread = "; ± is the standard deviation over seeds" if len(job.seeds) > 1 else ""
    return (
        f"{what} {setting(job, job.seeds)} Accuracies in percent, a tie counting one half; in brackets 95% intervals, "
        f"resampling prompts{spread}."
    )


def setting(job: Job, seeds: Sequence[int]) -> str:
    """Describe scale, backbones and seeds in a sentence; without seeds if nothing is trained."""
    return f"Scale {job.scale.name}, backbones {', '.join(job.backbones)}{', ' if seeds else ''}{seeds_words(seeds)}."


def seeds_words(seeds: Sequence[int]) -> str:
    """Describe the number of seeds and list them; empty for none."""
    return f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})" if seeds else ""


def scale_notes(job: Job) -> tuple[str, ...]:
    """Return the notes needed to compare our numbers with the paper's."""
    if job.scale.name == "world":
        return (
            "The simulated world stands for the paper's models and sets by role only: compare signs and sizes of "
            "differences, not accuracies. Annotators there err, so no model can reach 100.",
        )
    if job.scale.name == "small":
        return ("The files stand for the paper's sets by role only, and the backbone is another: compare differences.",)
    return ()


def own_cells(job: Job, backbone: str) -> SetTable:
    """Measure each set's models on that set."""
    return {name: measure(job, (name,), (name,), backbone=backbone)[name] for name in job.sets}


def measured_cell(cell: Measured) -> str:
    """Format an accuracy with its interval, and with the spread over seeds if there are several."""
    spread = f"± {percent(cell.spread)}" if cell.spread is not None else ""
    return " ".join(part for part in (percent(cell.accuracy), spread, interval(cell.ci95, percent)) if part)


def group_of(name: str, row: Mapping[Method, Measured], light: Mapping[Method, Measured] | None = None) -> BarGroup:
    """Return one set's bars."""
    return BarGroup(
        name,
        tuple(
            Bar(method, row[method].accuracy, row[method].ci95, light[method].accuracy if light else None)
            for method in METHOD_NAMES
        ),
    )


def accuracy_rows(backbone: str, table: SetTable) -> list[tuple[Cell, ...]]:
    """Return one backbone's rows (best in bold, second underlined per set), followed by length-only and random."""
    averages = {method: average_of([row[method] for row in table.values()]) for method in METHOD_NAMES}
    columns = [
        ranked([row[m].accuracy for m in METHOD_NAMES], [measured_cell(row[m]) for m in METHOD_NAMES])
        for row in (*table.values(), averages)
    ]
    rows: list[tuple[Cell, ...]] = [
        (f"{name} ({backbone})", *cells)
        for name, cells in zip(METHOD_NAMES.values(), zip(*columns, strict=True), strict=True)
    ]
    lengths = [percent(row["haf"].length_accuracy) for row in (*table.values(), averages)]
    return [*rows, ("the longer response", *lengths), ("random", *["50.0"] * len(lengths))]


def _ours(job: Job, cells: Mapping[str, SetTable]) -> Table:
    rows = [row for backbone, table in cells.items() for row in accuracy_rows(backbone, table)]
    return Table("Ours", ("accuracy, %", *job.sets, AVERAGE), tuple(rows))


def _papers() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for backbone in numbers.BACKBONES:
        printed = [row for row in numbers.TABLE_2 if row.backbone == backbone]
        values = [[*row.accuracy.values(), row.average] for row in printed]
        columns = [ranked(column, [f"{value:.2f}" for value in column]) for column in zip(*values, strict=True)]
        marked = zip(*columns, strict=True)
        rows += [
            (f"{METHOD_NAMES[row.method]} ({backbone})", *cells) for row, cells in zip(printed, marked, strict=True)
        ]
    return Table("The paper's", ("accuracy, %", *numbers.SETS, AVERAGE), tuple(rows))


def _relations(job: Job, backbone: str, table: SetTable) -> Sequence[Relation]:
    printed = _printed(job.scale.backbone(backbone).paper_name)
    found: list[Relation] = []
    for over in RIVALS:
        each = [
            relation(row, over, backbone=backbone, trained_on=name, tested_on=name, paper=_gain(printed, over, name))
            for name, row in table.items()
        ]
        whole = tuple(table) == numbers.SETS
        found += [*each, average_relation(each, paper=_gain(printed, over, AVERAGE) if whole else None)]
    return found


def _printed(paper_name: str | None) -> dict[str, dict[str, float]]:
    """Return the paper's accuracies of one backbone by method and set, including the printed average."""
    return {row.method: {**row.accuracy, AVERAGE: row.average} for row in numbers.TABLE_2 if row.backbone == paper_name}


def _gain(printed: Mapping[str, Mapping[str, float]], over: str, name: str) -> float | None:
    """Return HAF's printed accuracy minus another method's, as a share."""
    return round(printed["haf"][name] - printed[over][name], 2) / 100 if printed else None
