"""Tables 4 and 11: how often does a method choose the judge's best, or one of its best two?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _printed_gains(job: Job, backbone: str, k: K) -> Callable[[Rival, str], float | None]:
    """Return HAF's printed lead in recall over a rival: on a set (Table 11), on average or over Chat (Table 4)."""
    name_in_paper = job.scale.backbone(backbone).paper_name or ""
    rows = {row.method: row for row in numbers.TABLE_4 if (row.backbone, row.k) == (name_in_paper, k)}
    columns = {AVERAGE: ("all_sets", numbers.SETS), _CHAT: ("chat", numbers.CATEGORIES[_CHAT])}

    def gain(over: Rival, name: str) -> float | None:
        if (name_in_paper, "haf") not in numbers.TABLE_11:
            return None
        if name in columns:
            column, sets = columns[name]
            lead: float = getattr(rows["haf"], column) - getattr(rows[over], column)
            return round(lead, 2) / 100 if set(sets) <= set(job.sets) else None
        ours, theirs = numbers.TABLE_11[name_in_paper, "haf"][name], numbers.TABLE_11[name_in_paper, over][name]
        return round(ours.top_1 - theirs.top_1 if k == 1 else ours.top_2 - theirs.top_2, 2) / 100

    return gain


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
    rows: list[tuple[Cell, ...]] = []
    for k in _KS:
        cells = []
        for backbone, _, sets in columns:
            grid = found[backbone][k]
            cells.append(_marked({who: average_of([grid[name][who] for name in sets]) for who in grid[sets[0]]}))
        rows += _recall_rows(f"Top-{k}", cells)
    return Table("Ours", ("recall, %", *(f"{backbone}, {name}" for backbone, name, _ in columns)), tuple(rows))


def _by_set(job: Job, found: Mapping[str, _ByK]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for backbone, by_k in found.items():
        rows += _recall_rows(backbone, [_marked(by_k[k][name]) for name in job.sets for k in _KS])
    return Table("Ours", ("recall, %", *(f"{name}, top-{k}" for name in job.sets for k in _KS)), tuple(rows))


def _recall_relations(job: Job, backbone: str, k: K, grid: Grid) -> list[Relation]:
    """Compare HAF with each rival on each set, on average, and on average over the sets of Chat."""
    place, gain = f", top-{k}", _printed_gains(job, backbone, k)
    found = relations(backbone, grid, place=place, average="All", gain=gain)
    chat = [f"{name}{place}" for name in _chat_sets(job)]
    for over in RIVALS if chat else ():
        each = [one for one in found if one.over == over and one.tested_on in chat]
        found.append(average_relation(each, tested_on=f"{_CHAT}{place}", paper=gain(over, _CHAT)))
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
