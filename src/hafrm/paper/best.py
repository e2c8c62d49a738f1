"""Whose choice of several responses is the best (Figures 4, 8 and 9), or among the judge's best (Tables 4 and 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hafrm.paper import numbers
from hafrm.paper.measures import AVERAGE, RIVALS, Grid, Row, as_json, average_of, average_relation, relations
from hafrm.paper.scales import Job
from hafrm.paper.selections import (
    Region,
    agreements,
    choose,
    draws_of,
    left_out_of,
    recalls,
    regions,
    win_rates,
)
from hafrm.paper.tables import METHOD_NAMES, build_findings, cell_text, method_rows, with_average
from hafrm.report.figures import overlap_circles
from hafrm.report.findings import Cell, Findings, Relation, Rival, Table, ranked
from hafrm.report.wording import percent
from hafrm.sampling.analysis import LONGEST, RANDOM

K = Literal[1, 2]

_KS: tuple[K, ...] = (1, 2)
_CHAT = "Chat"
_ORDER = ("baseline", "dpo", "haf")
"""Methods in Table 4's order."""


@dataclass(frozen=True)
class _Best:
    """Whose choices among one backbone's responses to a set's prompts are the best."""

    wins: Row
    regions: Mapping[Region, float]
    agreements: Mapping[tuple[str, str], float]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "win_rates": {
                method: {"value": cell.accuracy, "ci95": cell.ci95, "by_seed": list(cell.accuracies)}
                for method, cell in self.wins.items()
            },
            "regions": [{"methods": sorted(whose), "share": share} for whose, share in self.regions.items()],
            "agreement": [{"a": a, "b": b, "share": share} for (a, b), share in self.agreements.items()],
        }


def find_best(job: Job, figure: str) -> Findings:
    """Measure win rates, and draw circles for each backbone: of the mean over sets in Figure 4, else of each set."""
    chosen = choose(job)
    found = {
        backbone: {name: _Best(win_rates(each), regions(each), agreements(each)) for name, each in by_set.items()}
        for backbone, by_set in chosen.items()
    }
    wins = {backbone: {name: each.wins for name, each in by_set.items()} for backbone, by_set in found.items()}
    figures = {}
    for backbone, by_set in found.items():
        circles = {name: each.regions for name, each in by_set.items()}
        if figure == "figure4" and len(job.sets) > 1:
            circles = {AVERAGE: _mean(circles)}
        for name, shares in circles.items():
            label = f"How often each method's choice is the best of the three, {backbone}, {name}"
            figures[f"{figure}-{backbone}-{name}"] = overlap_circles(label, METHOD_NAMES, shares)
    best = {backbone: {name: each.as_dict() for name, each in by_set.items()} for backbone, by_set in found.items()}
    columns = ("% of prompts", *job.sets, AVERAGE)
    win_rows = [row for backbone, grid in wins.items() for row in method_rows(backbone, with_average(grid))]
    alike_rows = [row for backbone, by_set in found.items() for row in _agreement_rows(backbone, by_set)]
    return build_findings(
        job,
        figure,
        results={"seeds": list(job.seeds), "best": best},
        tables=(
            Table("How often each one's choice is the best", columns, win_rows),
            Table("How often two choose the same", columns, alike_rows),
        ),
        figures=figures,
        relations=relations(wins),
        draws={backbone: draws_of(job, backbone) for backbone in job.backbones},
        left_out=left_out_of(chosen),
    )


def _mean(by_set: Mapping[str, Mapping[Region, float]]) -> dict[Region, float]:
    """Average the regions over sets, unweighted."""
    every = dict.fromkeys(region for found in by_set.values() for region in found)
    return {region: float(np.mean([found.get(region, 0.0) for found in by_set.values()])) for region in every}


def _agreement_rows(backbone: str, by_set: Mapping[str, _Best]) -> list[tuple[str, ...]]:
    columns = [each.agreements for each in by_set.values()]
    columns.append({pair: float(np.mean([shares[pair] for shares in columns])) for pair in columns[0]})
    return [
        (f"{METHOD_NAMES[a]} and {METHOD_NAMES[b]} ({backbone})", *(percent(shares[a, b]) for shares in columns))
        for a, b in columns[0]
    ]


def _printed_leads(job: Job, backbone: str, k: K) -> dict[tuple[Rival, str], float]:
    """Return HAF's printed leads in recall over rivals: on each set (Table 11), on average and over Chat (Table 4)."""
    name_in_paper = job.scale.backbone(backbone).paper_name or ""
    summary = {row.method: row for row in numbers.TABLE_4 if (row.backbone, row.k) == (name_in_paper, k)}
    found: dict[tuple[Rival, str], float] = {}
    for over in RIVALS if (name_in_paper, "haf") in numbers.TABLE_11 else ():
        ours, theirs = (numbers.TABLE_11[name_in_paper, method] for method in ("haf", over))
        found |= {(over, name): getattr(ours[name], f"top_{k}") - getattr(theirs[name], f"top_{k}") for name in ours}
        for name, column, sets in ((AVERAGE, "all_sets", numbers.SETS), (_CHAT, "chat", numbers.CATEGORIES[_CHAT])):
            if set(sets) <= set(job.sets):
                found[over, name] = getattr(summary["haf"], column) - getattr(summary[over], column)
    return {place: round(lead, 2) / 100 for place, lead in found.items()}


_ByK = Mapping[K, Grid]
"""Recalls by k, then by set, then by method or reference."""


def find_recall(job: Job, name: str) -> Findings:
    """Build Table 4, averages over all sets and over those of the category Chat, or Table 11, each set."""
    chosen = choose(job)
    found: dict[str, _ByK] = {
        backbone: {k: {each: recalls(of, k, f"{each} by {backbone}") for each, of in by_set.items()} for k in _KS}
        for backbone, by_set in chosen.items()
    }
    tables = (_averages(job, found), _papers_averages()) if name == "table4" else (_by_set(job, found), _papers_sets())
    recall = {backbone: {f"top_{k}": as_json(by_k[k]) for k in _KS} for backbone, by_k in found.items()}
    return build_findings(
        job,
        name,
        results={"seeds": list(job.seeds), "recall": recall},
        tables=tables,
        relations=[
            each
            for backbone, by_k in found.items()
            for k in _KS
            for each in _recall_relations(job, backbone, k, by_k[k])
        ],
        draws={backbone: draws_of(job, backbone) for backbone in job.backbones},
        left_out=left_out_of(chosen),
    )


def _averages(job: Job, found: Mapping[str, _ByK]) -> Table:
    chat = _chat_sets(job)
    averages = {"All": job.sets} | ({_CHAT: chat} if chat else {})
    columns = [(backbone, name, sets) for backbone in job.backbones for name, sets in averages.items()]
    rows = []
    for k in _KS:
        cells = []
        for backbone, _, sets in columns:
            grid = found[backbone][k]
            cells.append(_marked({who: average_of([grid[name][who] for name in sets]) for who in grid[sets[0]]}))
        rows += _recall_rows(f"Top-{k}", cells)
    return Table("Ours", ("recall, %", *(f"{backbone}, {name}" for backbone, name, _ in columns)), rows)


def _by_set(job: Job, found: Mapping[str, _ByK]) -> Table:
    rows = []
    for backbone, by_k in found.items():
        rows += _recall_rows(backbone, [_marked(by_k[k][name]) for name in job.sets for k in _KS])
    return Table("Ours", ("recall, %", *(f"{name}, top-{k}" for name in job.sets for k in _KS)), rows)


def _recall_relations(job: Job, backbone: str, k: K, grid: Grid) -> list[Relation]:
    """Compare HAF with each rival on each set, on average, and on average over the sets of Chat."""
    place, printed = f", top-{k}", _printed_leads(job, backbone, k)
    found = relations({backbone: grid}, place=place, average="All", printed={backbone: printed})
    chat = [f"{name}{place}" for name in _chat_sets(job)]
    for over in RIVALS if chat else ():
        each = [one for one in found if one.over == over and one.tested_on in chat]
        found.append(average_relation(each, tested_on=f"{_CHAT}{place}", paper=printed.get((over, _CHAT))))
    return found


def _chat_sets(job: Job) -> tuple[str, ...]:
    return tuple(name for name in job.sets if numbers.category_of(name) == _CHAT)


def _marked(row: Row) -> list[Cell]:
    """Return one column: random, longest, and the methods with the best in bold and the second underlined."""
    methods = ranked([row[method].accuracy for method in _ORDER], [cell_text(row[method]) for method in _ORDER])
    return [percent(row[RANDOM].accuracy), percent(row[LONGEST].accuracy), *methods]


def _recall_rows(what: str, columns: list[list[Cell]]) -> list[tuple[Cell, ...]]:
    names = ("Random", "The longest", *(METHOD_NAMES[method] for method in _ORDER))
    return [(f"{what} {name}", *cells) for name, cells in zip(names, zip(*columns, strict=True), strict=True)]


def _papers_averages() -> Table:
    columns = [(backbone, column) for backbone in ("Phi-2", "Mistral") for column in ("all_sets", "chat")]
    names = {"random": "Random", **METHOD_NAMES}
    by_row: dict[str, dict[str, numbers.SummaryRecall]] = {}
    for cell in numbers.TABLE_4:
        by_row.setdefault(f"Top-{cell.k} {names[cell.method]}", {})[cell.backbone] = cell
    rows = tuple(
        (row, *(f"{getattr(cells[backbone], column):.2f}" for backbone, column in columns))
        for row, cells in by_row.items()
    )
    return Table("The paper's", ("recall, %", "Phi-2, All", "Phi-2, Chat", "Mistral, All", "Mistral, Chat"), rows)


def _papers_sets() -> Table:
    cells = [(name, k) for name in numbers.RECALL_SETS for k in _KS]
    rows = tuple(
        (f"{backbone} {METHOD_NAMES[method]}", *(f"{getattr(row[name], f'top_{k}'):.2f}" for name, k in cells))
        for (backbone, method), row in numbers.TABLE_11.items()
    )
    return Table("The paper's", ("recall, %", *(f"{name}, top-{k}" for name, k in cells)), rows)
