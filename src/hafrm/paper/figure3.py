"""Figure 3: training on a mixture of all sets, with single-set models as light background bars (section 4.1.2)."""

from __future__ import annotations

from collections.abc import Mapping

from hafrm.errors import ConfigError
from hafrm.paper.measures import AVERAGE, RIVALS, Relation, SetTable, as_json, average_relation, measure, relation
from hafrm.paper.plans import Job, Plan, comparison_plan
from hafrm.paper.table2 import LEGEND, METHOD_NAMES, accuracy_rows, group_of, intro, own_cells, scale_notes
from hafrm.paper.table2 import plan as single_sets
from hafrm.report.figures import accuracy_bars
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import points


def plan(job: Job) -> Plan:
    """Plan the three methods on the mixture, tested on every set, and Table 2's runs.

    Raises:
        ConfigError: there is only one set, so nothing to mix.
    """
    if len(job.sets) < 2:
        raise ConfigError("sets: figure3 mixes sets: name two or more.")
    return comparison_plan(job, [(job.sets, job.sets)]) + single_sets(job)


def find(job: Job) -> Findings:
    """Compare accuracies after mixed and after single-set training: tables, relations and bars."""
    mixed = {backbone: measure(job, job.sets, job.sets, backbone=backbone) for backbone in job.backbones}
    single = {backbone: own_cells(job, backbone) for backbone in job.backbones}
    return Findings(
        title="Figure 3: training on a mixture of all sets",
        intro=intro(job, "One model a method, trained on an even mixture and tested on each set."),
        results={
            "scale": job.scale.name,
            "seeds": list(job.seeds),
            "mixed": {backbone: as_json(table) for backbone, table in mixed.items()},
            "single": {backbone: as_json(table) for backbone, table in single.items()},
        },
        tables=(
            Table(
                "Mixed training",
                ("accuracy, %", *job.sets, AVERAGE),
                tuple(row for backbone, table in mixed.items() for row in accuracy_rows(backbone, table)),
            ),
            _changes(job, mixed, single),
        ),
        figures={
            f"figure3-{backbone}": accuracy_bars(
                f"Accuracy after mixed training, {backbone}; light: trained on the set alone",
                [group_of(name, row, single[backbone][name]) for name, row in table.items()],
                LEGEND,
            )
            for backbone, table in mixed.items()
        },
        relations=tuple(each for backbone, table in mixed.items() for each in _relations(backbone, table)),
        notes=(
            "The paper's Figure 3 prints no numbers, so there is nothing to set ours beside. It says that HAF is best "
            "overall, and that DPO falls most on CA and Helpful.",
            "The paper mixes sets evenly and does not say how many pairs.",
            *scale_notes(job),
        ),
    )


def _changes(job: Job, mixed: Mapping[str, SetTable], single: Mapping[str, SetTable]) -> Table:
    """Tabulate how mixed training changes the accuracy on each set."""
    rows = tuple(
        (
            f"{label} ({backbone})",
            *(points(table[name][method].accuracy - single[backbone][name][method].accuracy) for name in job.sets),
        )
        for backbone, table in mixed.items()
        for method, label in METHOD_NAMES.items()
    )
    return Table("Mixed less single training, points", ("", *job.sets), rows)


def _relations(backbone: str, table: SetTable) -> list[Relation]:
    found: list[Relation] = []
    for over in RIVALS:
        each = [
            relation(row, over, backbone=backbone, trained_on="mixture", tested_on=name) for name, row in table.items()
        ]
        found += [*each, average_relation(each)]
    return found
