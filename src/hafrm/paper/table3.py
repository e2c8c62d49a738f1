"""Table 3: accuracy out of domain. A model is tested on the other sets of its category (section 4.1.3)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from markupsafe import Markup

from hafrm.paper import numbers
from hafrm.paper.external import section_accuracies
from hafrm.paper.measures import (
    AVERAGE,
    RIVALS,
    Relation,
    SetTable,
    as_json,
    average_of,
    average_relation,
    measure,
    relation,
)
from hafrm.paper.plans import ALL_METHODS, Job, Plan, comparison_plan
from hafrm.paper.table2 import intro, scale_notes
from hafrm.report.findings import Cell, Findings, Table
from hafrm.training.config import Method


def plan(job: Job) -> Plan:
    """Plan each set's models, tested on the other sets of its category."""
    return comparison_plan(job, [((name,), others_of(name)) for name in _order(job)])


def others_of(name: str) -> tuple[str, ...]:
    """Return the other sets of a set's category, in the paper's order."""
    return tuple(other for other in numbers.CATEGORIES[numbers.category_of(name)] if other != name)


def find(job: Job) -> Findings:
    """Build the table in the paper's format (ours above the paper's) and the relations."""
    cells = {
        backbone: {name: measure(job, (name,), others_of(name), backbone=backbone) for name in _order(job)}
        for backbone in job.backbones
    }
    external = _external(job) if job.rewardbench is not None else {}
    relations = [each for backbone, table in cells.items() for each in _relations(job, backbone, table)]
    return Findings(
        title="Table 3: accuracy out of domain",
        intro=intro(
            job,
            "Models trained on one set, tested on the others of its category. Shown is HAF's accuracy, above what it "
            "is over the baseline, below what it is over DPO.",
        ),
        results={
            "scale": job.scale.name,
            "seeds": list(job.seeds),
            "internal": {
                backbone: {trained: as_json(table) for trained, table in tables.items()}
                for backbone, tables in cells.items()
            },
            "external": external,
        },
        tables=(_ours(job, cells, external), _papers()),
        relations=tuple(relations),
        notes=(*_notes(job), *numbers.NOTES["table3"], *scale_notes(job)),
    )


def transfer_cell(haf: float, above_baseline: float, above_dpo: float) -> Markup:
    """Format a cell as in the paper, from shares: HAF's accuracy, the gain over the baseline above, over DPO below."""
    return Markup("{:.2f} <sup>({})</sup><sub>({})</sub>").format(100 * haf, _arrow(above_baseline), _arrow(above_dpo))


def _arrow(gain: float) -> str:
    shown = f"{abs(100 * gain):.2f}"
    return shown if shown == "0.00" else f"{shown}{'↑' if gain > 0 else '↓'}"


def _order(job: Job) -> tuple[str, ...]:
    return tuple(name for name in numbers.TRANSFER_SETS if name in job.sets)


def _gains(accuracies: Mapping[Method, float]) -> tuple[float, float, float]:
    haf = accuracies["haf"]
    return haf, haf - accuracies["baseline"], haf - accuracies["dpo"]


def _row(name: str, source: str, columns: list[Mapping[Method, float]]) -> tuple[Cell, ...]:
    mean = {method: statistics.fmean(column[method] for column in columns) for method in ALL_METHODS}
    return (f"{name}, {source}", *(transfer_cell(*_gains(column)) for column in (*columns, mean)))


def _ours(
    job: Job, cells: Mapping[str, Mapping[str, SetTable]], external: Mapping[str, Mapping[str, Mapping[Method, float]]]
) -> Table:
    rows = []
    for backbone, tables in cells.items():
        columns = [
            {method: average_of([row[method] for row in table.values()]).accuracy for method in ALL_METHODS}
            for table in tables.values()
        ]
        rows.append(_row(backbone, "internal", list(columns)))
        if backbone in external:
            rows.append(_row(backbone, "external", list(external[backbone].values())))
    return Table("Ours", ("accuracy, %", *map(_with_category, _order(job)), AVERAGE), tuple(rows))


def _papers() -> Table:
    rows = tuple(
        (
            f"{row.backbone}, {row.source}",
            *(
                transfer_cell(each.haf / 100, each.above_baseline / 100, each.above_dpo / 100)
                for each in (*row.cells.values(), row.average)
            ),
        )
        for row in numbers.TABLE_3
    )
    return Table("The paper's", ("accuracy, %", *map(_with_category, numbers.TRANSFER_SETS), AVERAGE), rows)


def _with_category(name: str) -> Markup:
    return Markup("{}<sub>{}</sub>").format(name, numbers.category_of(name)[0])


def _relations(job: Job, backbone: str, tables: Mapping[str, SetTable]) -> list[Relation]:
    """For each rival, compare per training set (averaged over its test sets) and averaged over training sets."""
    printed = {(row.backbone, row.source): row for row in numbers.TABLE_3}.get(
        (job.scale.backbone(backbone).paper_name or "", "internal")
    )
    found = []
    for over in RIVALS:
        means = []
        for trained, table in tables.items():
            each = [
                relation(row, over, backbone=backbone, trained_on=trained, tested_on=tested)
                for tested, row in table.items()
            ]
            gain = None if printed is None else getattr(printed.cells[trained], f"above_{over}") / 100
            means.append(average_relation(each, tested_on="+".join(table), paper=gain))
        whole = printed is not None and len(tables) == len(numbers.TRANSFER_SETS)
        gain = getattr(printed.average, f"above_{over}") / 100 if whole and printed is not None else None
        found += [*means, average_relation(means, paper=gain)]
    return found


def _external(job: Job) -> dict[str, dict[str, dict[Method, float]]]:
    """Measure accuracies on RewardBench's section of each training set's category, by backbone, set and method."""
    assert job.rewardbench is not None
    table: dict[str, dict[str, dict[Method, float]]] = {}
    for backbone in job.backbones:
        for name in _order(job):
            runs = {
                method: [run.folder(job.scale, job.out) for run in job.runs((name,), method, backbone=backbone)]
                for method in ALL_METHODS
            }
            out = job.root / "evaluations" / backbone / f"{name}-rewardbench"
            found = section_accuracies(
                job.rewardbench, numbers.category_of(name), [each for some in runs.values() for each in some], out
            )
            table.setdefault(backbone, {})[name] = {
                method: statistics.fmean(found[each] for each in some) for method, some in runs.items()
            }
    return table


def _notes(job: Job) -> tuple[str, ...]:
    own = "An average's interval treats the sets tested on as independent; a set is tested on by several models."
    if job.rewardbench is None:
        return (own, "The external half, RewardBench, was not run: --rewardbench was not given.")
    return (own,)
