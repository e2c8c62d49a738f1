"""Figure 4 (and 8 and 9, set by set): which method's choice among several responses is the best?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hafrm.paper.measures import AVERAGE, relations
from hafrm.paper.scales import Job
from hafrm.paper.selections import Chosen, Region, agreements, choose, draws_of, left_out_of, regions, win_rates
from hafrm.paper.tables import METHOD_NAMES, build_findings, method_rows, with_average
from hafrm.report.figures import overlap_circles
from hafrm.report.findings import Cell, Findings, Table
from hafrm.report.wording import percent


def find(job: Job, figure: str) -> Findings:
    """Measure win rates, and draw circles for each backbone: of the mean over sets in Figure 4, else of each set."""
    shown = [AVERAGE] if figure == "figure4" and len(job.sets) > 1 else job.sets
    chosen = choose(job)
    wins = {backbone: {name: win_rates(each) for name, each in by_set.items()} for backbone, by_set in chosen.items()}
    overlaps = {backbone: {name: regions(each) for name, each in by_set.items()} for backbone, by_set in chosen.items()}
    figures = {}
    for backbone, by_set in overlaps.items():
        for name in shown:
            label = f"How often each method's choice is the best of the three, {backbone}, {name}"
            found = _mean(by_set) if name == AVERAGE else by_set[name]
            figures[f"{figure}-{backbone}-{name}"] = overlap_circles(label, METHOD_NAMES, found)
    best = {
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
    }
    win_rows = [row for backbone, grid in wins.items() for row in method_rows(backbone, with_average(grid))]
    columns = ("% of prompts", *job.sets, AVERAGE)
    return build_findings(
        job,
        figure,
        results={"seeds": list(job.seeds), "best": best},
        tables=(
            Table("How often each one's choice is the best", columns, win_rows),
            Table("How often two choose the same", columns, _agreement_rows(chosen)),
        ),
        figures=figures,
        relations=[each for backbone, grid in wins.items() for each in relations(backbone, grid)],
        draws={backbone: draws_of(job, backbone) for backbone in job.backbones},
        left_out=left_out_of(chosen),
    )


def _mean(by_set: Mapping[str, Mapping[Region, float]]) -> dict[Region, float]:
    """Average the regions over sets, unweighted."""
    every = dict.fromkeys(region for found in by_set.values() for region in found)
    return {region: float(np.mean([found.get(region, 0.0) for found in by_set.values()])) for region in every}


def _agreement_rows(chosen: Chosen) -> list[tuple[Cell, ...]]:
    rows = []
    for backbone, by_set in chosen.items():
        found = [agreements(each) for each in by_set.values()]
        for a, b in found[0]:
            shares = [each[a, b] for each in found]
            cells = [percent(share) for share in (*shares, float(np.mean(shares)))]
            rows.append((f"{METHOD_NAMES[a]} and {METHOD_NAMES[b]} ({backbone})", *cells))
    return rows
