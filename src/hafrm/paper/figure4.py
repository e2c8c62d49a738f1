"""Figure 4 (and Figures 8 and 9, set by set): which method selects the best of several responses?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hafrm.paper.measures import AVERAGE, RIVALS, Measured, Relation, average_of, average_relation, relation
from hafrm.paper.plans import Job
from hafrm.paper.selections import Region, Selections, agreements, plan, regions, select, win_rates
from hafrm.paper.table2 import METHOD_NAMES, measured_cell, scale_notes
from hafrm.paper.table4 import intro, notes
from hafrm.report.figures import overlap_circles
from hafrm.report.findings import Cell, Findings, Table, ranked
from hafrm.report.wording import percent
from hafrm.training.config import Method

__all__ = ["find", "plan"]

_NAMES = {str(method): name for method, name in METHOD_NAMES.items()}

BySet = Mapping[str, Selections]


def find(job: Job) -> Findings:
    """Draw circles for each backbone, averaged over sets and for each set."""
    chosen = {backbone: {name: select(job, backbone, name) for name in job.sets} for backbone in job.backbones}
    wins = {backbone: {name: win_rates(each) for name, each in by_set.items()} for backbone, by_set in chosen.items()}
    overlaps = {backbone: {name: regions(each) for name, each in by_set.items()} for backbone, by_set in chosen.items()}
    figures = {}
    for backbone, by_set in overlaps.items():
        shown = {AVERAGE: _mean(by_set), **by_set} if len(by_set) > 1 else dict(by_set)
        for name, found in shown.items():
            label = f"How often each method's choice is the best of the three, {backbone}, {name}"
            figures[f"figure4-{backbone}-{name}"] = overlap_circles(label, _NAMES, _plain(found))
    return Findings(
        title="Figure 4: whose selection is the best?",
        intro=intro(job),
        results=_results(job, chosen, wins, overlaps),
        tables=(_win_table(job, wins), _agreement_table(job, chosen)),
        figures=figures,
        relations=tuple(each for backbone in job.backbones for each in _relations(backbone, wins[backbone])),
        notes=(
            "A circle is the share of prompts for which that method's choice is the best of the three choices, so "
            "circles overlap where methods choose the same response; equally good ones share a prompt. The paper "
            "prints no numbers in this figure.",
            *notes(job),
            *scale_notes(job),
        ),
    )


def _mean(by_set: Mapping[str, Mapping[Region, float]]) -> dict[Region, float]:
    """Average the regions over sets, unweighted."""
    every = {region for found in by_set.values() for region in found}
    return {region: float(np.mean([found.get(region, 0.0) for found in by_set.values()])) for region in every}


def _plain(found: Mapping[Region, float]) -> dict[frozenset[str], float]:
    return {frozenset(map(str, whose)): share for whose, share in found.items()}


def _win_table(job: Job, wins: Mapping[str, Mapping[str, Mapping[Method, Measured]]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for backbone, by_set in wins.items():
        averages = {method: average_of([row[method] for row in by_set.values()]) for method in METHOD_NAMES}
        columns = [
            ranked([row[m].accuracy for m in METHOD_NAMES], [measured_cell(row[m]) for m in METHOD_NAMES])
            for row in (*by_set.values(), averages)
        ]
        rows += [
            (f"{name} ({backbone})", *cells)
            for name, cells in zip(METHOD_NAMES.values(), zip(*columns, strict=True), strict=True)
        ]
    return Table("How often each one's choice is the best", ("% of prompts", *job.sets, AVERAGE), tuple(rows))


def _agreement_table(job: Job, chosen: Mapping[str, BySet]) -> Table:
    rows = []
    for backbone, by_set in chosen.items():
        found = [agreements(each) for each in by_set.values()]
        for a, b in found[0]:
            shares = [each[a, b] for each in found]
            cells = [percent(share) for share in (*shares, float(np.mean(shares)))]
            rows.append((f"{METHOD_NAMES[a]} and {METHOD_NAMES[b]} ({backbone})", *cells))
    return Table("How often two choose the same", ("% of prompts", *job.sets, AVERAGE), tuple(rows))


def _relations(backbone: str, wins: Mapping[str, Mapping[Method, Measured]]) -> list[Relation]:
    found: list[Relation] = []
    for over in RIVALS:
        each = [relation(row, over, backbone=backbone, trained_on=name, tested_on=name) for name, row in wins.items()]
        found += [*each, average_relation(each)]
    return found


def _results(
    job: Job,
    chosen: Mapping[str, BySet],
    wins: Mapping[str, Mapping[str, Mapping[Method, Measured]]],
    overlaps: Mapping[str, Mapping[str, Mapping[Region, float]]],
) -> dict[str, Any]:
    return {
        "scale": job.scale.name,
        "seeds": list(job.seeds),
        "best": {
            backbone: {
                name: {
                    "win_rates": {
                        method: {"value": cell.accuracy, "ci95": cell.ci95, "by_seed": list(cell.accuracies)}
                        for method, cell in row.items()
                    },
                    "regions": [
                        {"methods": sorted(whose), "share": share} for whose, share in overlaps[backbone][name].items()
                    ],
                    "agreement": [
                        {"a": a, "b": b, "share": share} for (a, b), share in agreements(chosen[backbone][name]).items()
                    ],
                }
                for name, row in by_set.items()
            }
            for backbone, by_set in wins.items()
        },
    }
