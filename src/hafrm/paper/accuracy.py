"""Accuracies on test pairs: Table 2 in domain, Table 3 out of domain, Figure 3 after training on a mixture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from markupsafe import Markup

from hafrm.errors import ConfigError, DataError
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.paper import numbers
from hafrm.paper.measures import (
    AVERAGE,
    RIVALS,
    Grid,
    as_json,
    average_of,
    average_relation,
    left_out_of,
    measure,
    relation,
    relations,
)
from hafrm.paper.plans import Plan, comparison_plan, groups, others_of, single_sets
from hafrm.paper.runs import seed_runs
from hafrm.paper.scales import METHODS, Job
from hafrm.paper.tables import METHOD_NAMES, accuracy_table, build_findings, grid_bars, ranked_rows
from hafrm.report.findings import Cell, Findings, Relation, Rival, Table
from hafrm.report.wording import points


def own_grid(job: Job, backbone: str) -> Grid:
    """Measure each set's models on that set."""
    return {name: measure(job, (name,), (name,), backbone=backbone)[name] for name in job.sets}


def find_in_domain(job: Job) -> Findings:
    """Build Table 2 (ours above the paper's), the relations and the bars."""
    grids = {backbone: own_grid(job, backbone) for backbone in job.backbones}
    return build_findings(
        job,
        "table2",
        results={"seeds": list(job.seeds), "accuracy": as_json(grids)},
        tables=(accuracy_table("Ours", job, grids), _papers_in_domain()),
        figures={
            f"table2-{backbone}": grid_bars(f"Accuracy in domain, {backbone}", as_json(grid))
            for backbone, grid in grids.items()
        },
        relations=relations(grids, printed={backbone: _printed_leads(job, backbone) for backbone in grids}),
        left_out=left_out_of(grids),
    )


def _papers_in_domain() -> Table:
    rows = []
    for backbone in numbers.BACKBONES:
        printed = [row for row in numbers.TABLE_2 if row.backbone == backbone]
        values = zip(*([*row.accuracy.values(), row.average] for row in printed), strict=True)
        names = [f"{METHOD_NAMES[row.method]} ({backbone})" for row in printed]
        rows += ranked_rows(names, [[(value, f"{value:.2f}") for value in column] for column in values])
        reach = (_reach(statistics.fmean(row.accuracy[name] for row in printed)) for name in numbers.SETS)
        rows.append((f"95%, {numbers.TEST_PAIRS:,} pairs ({backbone})", *(f"±{each:.1f}" for each in reach), "–"))
    return Table("The paper's", ("accuracy, %", *numbers.SETS, AVERAGE), rows)


def _reach(accuracy: float) -> float:
    """Return half of a 95% interval of an accuracy in percent, for the paper's number of test pairs."""
    return 1.96 * math.sqrt(accuracy * (100 - accuracy) / numbers.TEST_PAIRS)


def _printed_leads(job: Job, backbone: str) -> dict[tuple[Rival, str], float]:
    """Return HAF's printed leads over rivals on each set, and on average if the job has all sets, as shares."""
    paper_name = job.scale.backbone(backbone).paper_name
    printed = {row.method: row for row in numbers.TABLE_2 if row.backbone == paper_name}
    columns = {method: {**row.accuracy, AVERAGE: row.average} for method, row in printed.items()}
    names = [*numbers.SETS, *([AVERAGE] if job.sets == numbers.SETS else [])] if printed else []
    return {(over, n): round(columns["haf"][n] - columns[over][n], 2) / 100 for over in RIVALS for n in names}


def plan_mixture(job: Job) -> Plan:
    """Plan the three methods on the mixture, tested on every set, and Table 2's runs.

    Raises:
        ConfigError: there is only one set, so nothing to mix.
    """
    if len(job.sets) < 2:
        raise ConfigError("sets: figure3 mixes sets: name two or more.")
    return comparison_plan(job, groups("mixture", job.sets)) + single_sets(job)


def find_mixture(job: Job) -> Findings:
    """Compare accuracies after mixed and after single-set training (section 4.1.2): tables, relations and bars."""
    mixed = {backbone: measure(job, job.sets, job.sets, backbone=backbone) for backbone in job.backbones}
    single = {backbone: own_grid(job, backbone) for backbone in job.backbones}
    changes = tuple(
        (
            f"{label} ({backbone})",
            *(points(grid[name][method].accuracy - single[backbone][name][method].accuracy) for name in job.sets),
        )
        for backbone, grid in mixed.items()
        for method, label in METHOD_NAMES.items()
    )
    results = as_json({"mixed": mixed, "single": single})
    return build_findings(
        job,
        "figure3",
        results={"seeds": list(job.seeds), **results},
        tables=(
            accuracy_table("Mixed training", job, mixed),
            Table("Mixed training - single training, points", ("", *job.sets), changes),
        ),
        figures={
            f"figure3-{backbone}": grid_bars(
                f"Accuracy after mixed training, {backbone}; light: trained on the set alone",
                grid,
                results["single"][backbone],
            )
            for backbone, grid in results["mixed"].items()
        },
        relations=relations(mixed, trained_on="mixture"),
        left_out=left_out_of(mixed),
    )


def plan_transfer(job: Job) -> Plan:
    """Plan each set's models, tested on the other sets of its category (section 4.1.3)."""
    return comparison_plan(job, groups("category", _transfer_sets(job)))


def find_transfer(job: Job) -> Findings:
    """Build Table 3 in the paper's format (ours above the paper's) and the relations."""
    tables = {
        backbone: {name: measure(job, (name,), others_of(name), backbone=backbone) for name in _transfer_sets(job)}
        for backbone in job.backbones
    }
    external = _external(job) if job.rewardbench is not None else {}
    return build_findings(
        job,
        "table3",
        results={"seeds": list(job.seeds), "internal": as_json(tables), **external},
        tables=(_ours_transfer(job, tables, external), _papers_transfer()),
        relations=[each for backbone, grids in tables.items() for each in _transfer_relations(job, backbone, grids)],
        left_out=left_out_of(
            {f"{backbone}, {name}": grid for backbone, grids in tables.items() for name, grid in grids.items()}
        ),
    )


def transfer_cell(haf: float, above_baseline: float, above_dpo: float) -> Markup:
    """Format a cell as in the paper, from shares: HAF's accuracy, the gain over the baseline above, over DPO below."""
    return Markup("{:.2f} <sup>({})</sup><sub>({})</sub>").format(100 * haf, _arrow(above_baseline), _arrow(above_dpo))


def _arrow(gain: float) -> str:
    shown = f"{abs(100 * gain):.2f}"
    return shown if shown == "0.00" else f"{shown}{'↑' if gain > 0 else '↓'}"


def _transfer_sets(job: Job) -> tuple[str, ...]:
    """Return the job's sets in Table 3's order."""
    return tuple(name for name in numbers.TRANSFER_SETS if name in job.sets)


def _transfer_row(name: str, columns: Sequence[Mapping[str, float]]) -> tuple[Cell, ...]:
    """Return a line of cells from the methods' accuracies, and their average."""
    mean = {str(method): statistics.fmean(column[method] for column in columns) for method in METHODS}
    gains = ((row["haf"], row["haf"] - row["baseline"], row["haf"] - row["dpo"]) for row in (*columns, mean))
    return (name, *(transfer_cell(*each) for each in gains))


def _ours_transfer(
    job: Job, tables: Mapping[str, Mapping[str, Grid]], external: Mapping[str, Mapping[str, _Transfers]]
) -> Table:
    rows = []
    for backbone, grids in tables.items():
        columns = [
            {str(method): average_of([row[method] for row in grid.values()]).accuracy for method in METHODS}
            for grid in grids.values()
        ]
        rows.append(_transfer_row(f"{backbone}, internal", columns))
        for how, label in _SECTIONS.items() if external else ():
            rows.append(_transfer_row(f"{backbone}, {label}", list(external[how][backbone].values())))
    return Table("Ours", _transfer_header(_transfer_sets(job)), rows)


def _papers_transfer() -> Table:
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
    return Table("The paper's", _transfer_header(numbers.TRANSFER_SETS), rows)


def _transfer_header(sets: Sequence[str]) -> tuple[Cell, ...]:
    named = (Markup("{}<sub>{}</sub>").format(name, numbers.category_of(name)[0]) for name in sets)
    return ("accuracy, %", *named, AVERAGE)


def _transfer_relations(job: Job, backbone: str, grids: Mapping[str, Grid]) -> list[Relation]:
    """Compare HAF with each rival, per training set (averaged over its test sets) and over all training sets."""
    paper_name = job.scale.backbone(backbone).paper_name
    rows = [row for row in numbers.TABLE_3 if (row.backbone, row.source) == (paper_name, "internal")]
    printed = {name: cell for row in rows for name, cell in {**row.cells, AVERAGE: row.average}.items()}
    found = []
    for over in RIVALS:
        paper = {name: getattr(cell, f"above_{over}") / 100 for name, cell in printed.items()}
        means = []
        for trained, grid in grids.items():
            each = [
                relation(row, over, backbone=backbone, trained_on=trained, tested_on=on) for on, row in grid.items()
            ]
            means.append(average_relation(each, tested_on="+".join(grid), paper=paper.get(trained)))
        whole = len(grids) == len(numbers.TRANSFER_SETS)
        found += [*means, average_relation(means, paper=paper.get(AVERAGE) if whole else None)]
    return found


def _external(job: Job) -> dict[str, dict[str, _Transfers]]:
    """Measure accuracies on RewardBench's section of each training set's category.

    Returns:
        By key of `_SECTIONS`, then backbone, set and method.
    """
    assert job.rewardbench is not None
    found: dict[str, dict[str, _Transfers]] = {how: {backbone: {} for backbone in job.backbones} for how in _SECTIONS}
    for backbone, name in product(job.backbones, _transfer_sets(job)):
        folders = {str(m): [r.folder(job) for r in seed_runs(job, backbone, (name,), method=m)] for m in METHODS}
        out = job.root / "evaluations" / backbone / f"{name}-rewardbench"
        every = [folder for some in folders.values() for folder in some]
        for how, section in _section_accuracies(job.rewardbench, numbers.category_of(name), every, out).items():
            found[how][backbone][name] = {m: statistics.fmean(map(section.__getitem__, f)) for m, f in folders.items()}
    return found


_Transfers = dict[str, dict[str, float]]
"""Accuracies by training set and method."""

_SECTIONS: Mapping[str, str] = {"external": "external", "external_weighted": "external, weighted as RewardBench does"}
"""Ways to average a section, with their labels: over its pairs, as the paper's digits imply, or over its subsets."""


def _section_accuracies(
    rewardbench: str, section: str, runs: Sequence[Path], out: Path
) -> Mapping[str, Mapping[Path, float]]:
    """Return each run's accuracy (0 to 1) on one section of RewardBench, by key of `_SECTIONS`.

    Raises:
        DataError: the file has no pairs of the section, or a run could not score any pair of one of its subsets.
    """
    suite = "rewardbench" if rewardbench == "hub" else f"rewardbench@{rewardbench}"
    config = EvaluateConfig(models=[str(run) for run in runs], suites=[suite], out=str(out), token_log_ratios=0)
    models = evaluate(config).suites[suite]["models"]
    try:
        return {
            how: {run: models[str(run)][scores][section]["value"] for run in runs}
            for how, scores in zip(_SECTIONS, ("pooled", "sections"), strict=True)
        }
    except KeyError as error:
        raise DataError(
            f"{rewardbench} contains no pair of RewardBench's section {section}, or a run could not score any pair of "
            f"one of its subsets. {out} says what each run scored."
        ) from error
