"""Tables 4 and 11: is a reward model's choice among the judge's best one or two responses?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from hafrm.paper import numbers
from hafrm.paper.measures import RIVALS, Measured, average_of, average_relation, relation
from hafrm.paper.plans import Job
from hafrm.paper.selections import draws_of, plan, recalls, select
from hafrm.paper.table2 import METHOD_NAMES, measured_cell, scale_notes, seeds_words
from hafrm.report.findings import Cell, Findings, Relation, Rival, Table, ranked
from hafrm.report.wording import percent
from hafrm.sampling.analysis import LONGEST, RANDOM
from hafrm.training.config import Method

__all__ = ["find", "find_by_set", "intro", "plan"]

K = Literal[1, 2]

_KS: tuple[K, ...] = (1, 2)
_METHODS: tuple[Method, ...] = ("baseline", "dpo", "haf")
"""Methods in Table 4's order."""

ByK = dict[K, dict[str, dict[str, Measured]]]
"""Recalls by k, then by set, then by method or reference."""


def find(job: Job) -> Findings:
    """Build Table 4: averages over all sets and over those of the category Chat, ours above the paper's."""
    found = {backbone: _recalls(job, backbone) for backbone in job.backbones}
    columns = [(backbone, name, sets) for backbone in job.backbones for name, sets in _averages(job).items()]
    rows: list[tuple[Cell, ...]] = []
    for k in _KS:
        cells = []
        for backbone, _, sets in columns:
            by_set = found[backbone][k]
            averages = {who: average_of([by_set[name][who] for name in sets]) for who in (RANDOM, LONGEST, *_METHODS)}
            cells.append(_marked(averages))
        rows += _rows(f"Top-{k}", cells)
    header = ("recall, %", *(f"{backbone}, {name}" for backbone, name, _ in columns))
    return Findings(
        title="Table 4: recall of a judge's best responses",
        intro=intro(job),
        results=_results(job, found),
        tables=(Table("Ours", header, tuple(rows)), _papers_averages()),
        relations=tuple(each for backbone in job.backbones for each in _relations(job, backbone, found[backbone])),
        notes=(*numbers.NOTES["table4"], *notes(job), *scale_notes(job)),
    )


def find_by_set(job: Job) -> Findings:
    """Build Table 11: recalls for each set, ours above the paper's."""
    found = {backbone: _recalls(job, backbone) for backbone in job.backbones}
    rows: list[tuple[Cell, ...]] = []
    for backbone in job.backbones:
        cells = [_marked(found[backbone][k][name]) for name in job.sets for k in _KS]
        rows += _rows(backbone, cells)
    header = ("recall, %", *(f"{name}, top-{k}" for name in job.sets for k in _KS))
    return Findings(
        title="Table 11: recall of a judge's best responses, set by set",
        intro=intro(job),
        results=_results(job, found),
        tables=(Table("Ours", header, tuple(rows)), _papers_sets()),
        relations=tuple(each for backbone in job.backbones for each in _relations(job, backbone, found[backbone])),
        notes=(*notes(job), *scale_notes(job)),
    )


def intro(job: Job) -> str:
    """Describe what was run."""
    draws = ", ".join(f"{draws_of(job, backbone)} by {backbone}" for backbone in job.backbones)
    judge = "the world's oracle" if job.scale.name == "world" else job.judge
    return (
        f"The untrained backbones answer each set's test prompts ({draws}), that set's models choose, and {judge} "
        f"judges. Scale {job.scale.name}, {seeds_words(job.seeds)}; in brackets 95% intervals, resampling prompts."
    )


def notes(job: Job) -> tuple[str, ...]:
    """Explain how prompts and responses are counted."""
    return (
        "Equal responses count once, and prompts with no more distinct responses than places are left out; so a random "
        "choice is right a little more often than k / N. Where the judge gives equal rewards, places go by lot.",
    )


def _recalls(job: Job, backbone: str) -> ByK:
    chosen = {name: select(job, backbone, name) for name in job.sets}
    return {k: {name: recalls(each, k, f"{name} by {backbone}") for name, each in chosen.items()} for k in _KS}


def _averages(job: Job) -> dict[str, tuple[str, ...]]:
    """Return the columns of Table 4 with the sets that each averages."""
    chat = tuple(name for name in job.sets if numbers.category_of(name) == "Chat")
    return {"All": job.sets} | ({"Chat": chat} if chat else {})


def _marked(row: Mapping[str, Measured]) -> list[Cell]:
    """Return one column: random, longest, and the methods with the best in bold and the second underlined."""
    worded = [measured_cell(row[method]) for method in _METHODS]
    methods = ranked([row[method].accuracy for method in _METHODS], worded)
    return [percent(row[RANDOM].accuracy), percent(row[LONGEST].accuracy), *methods]


def _rows(what: str, columns: list[list[Cell]]) -> list[tuple[Cell, ...]]:
    names = ("Random", "The longest", *(METHOD_NAMES[method] for method in _METHODS))
    return [(f"{what} {name}", *cells) for name, cells in zip(names, zip(*columns, strict=True), strict=True)]


def _relations(job: Job, backbone: str, found: ByK) -> list[Relation]:
    """Compare HAF's recall with the other methods', with paired intervals and the paper's differences in Table 11."""
    printed = job.scale.backbone(backbone).paper_name
    every = []
    for k in _KS:
        for over in RIVALS:
            each = [
                relation(
                    {method: row[method] for method in _METHODS},
                    over,
                    backbone=backbone,
                    trained_on=name,
                    tested_on=f"{name}, top-{k}",
                    paper=_gain(printed, over, name, k),
                )
                for name, row in found[k].items()
            ]
            every += [*each, average_relation(each, tested_on=f"All, top-{k}")]
    return every


def _gain(backbone: str | None, over: Rival, name: str, k: K) -> float | None:
    """Return HAF's printed recall minus another method's, as a share; None for backbones not in Table 11."""
    if backbone is None or (backbone, "haf") not in numbers.TABLE_11:
        return None
    ours, theirs = numbers.TABLE_11[backbone, "haf"][name], numbers.TABLE_11[backbone, over][name]
    return round(ours.top_1 - theirs.top_1 if k == 1 else ours.top_2 - theirs.top_2, 2) / 100


def _results(job: Job, found: Mapping[str, ByK]) -> dict[str, Any]:
    return {
        "scale": job.scale.name,
        "seeds": list(job.seeds),
        "recall": {
            backbone: {
                f"top_{k}": {name: {who: cell.as_dict() for who, cell in row.items()} for name, row in by_k[k].items()}
                for k in _KS
            }
            for backbone, by_k in found.items()
        },
    }


def _papers_averages() -> Table:
    columns = [(backbone, column) for backbone in ("Phi-2", "Mistral") for column in ("all_sets", "chat")]
    names = {"random": "Random", **{str(method): name for method, name in METHOD_NAMES.items()}}
    by_row: dict[str, dict[str, numbers.SummaryRecall]] = {}
    for cell in numbers.TABLE_4:
        by_row.setdefault(f"Top-{cell.k} {names[cell.method]}", {})[cell.backbone] = cell
    rows = tuple(
        (row, *(f"{getattr(cells[backbone], column):.2f}" for backbone, column in columns))
        for row, cells in by_row.items()
    )
    return Table("The paper's", ("recall, %", "Phi-2, All", "Phi-2, Chat", "Mistral, All", "Mistral, Chat"), rows)


def _papers_sets() -> Table:
    rows = tuple(
        (
            f"{backbone} {METHOD_NAMES[method]}",
            *(f"{getattr(row[name], f'top_{k}'):.2f}" for name in numbers.RECALL_SETS for k in _KS),
        )
        for (backbone, method), row in numbers.TABLE_11.items()
    )
    header = ("recall, %", *(f"{name}, top-{k}" for name in numbers.RECALL_SETS for k in _KS))
    return Table("The paper's", header, rows)
