"""Tables 4 and 11: how often does a method choose the judge's best, or one of its best two?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hafrm.paper import numbers
from hafrm.paper.measures import AVERAGE, RIVALS, Grid, Row, as_json, average_of, average_relation, relations
from hafrm.paper.scales import Job
from hafrm.paper.selections import choose, draws_of, left_out_of, recalls
from hafrm.paper.tables import METHOD_NAMES, build_findings, cell_text
from hafrm.report.findings import Cell, Findings, Relation, Rival, Table, ranked
from hafrm.report.wording import percent
from hafrm.sampling.analysis import LONGEST, RANDOM

K = Literal[1, 2]

_KS: tuple[K, ...] = (1, 2)
_CHAT = "Chat"
_ORDER = ("baseline", "dpo", "haf")
"""Methods in Table 4's order."""


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


def find(job: Job, name: str) -> Findings:
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
    found = relations(backbone, grid, place=place, average="All", printed=printed)
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
