"""`verdicts.jsonl`: a line per judged row, written as it comes, so that a stopped run can be resumed.

`judge.json` next to it records what the verdicts depend on, which later runs must match once there is an answer. When a
run is resumed, lines whose question failed are removed, and their questions are asked again. Rows are identified by
their texts, so their file may have moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hafrm.errors import DataError
from hafrm.judging.judges import FAILURES, Unscored
from hafrm.judging.rows import Item
from hafrm.judging.tournament import Outcome
from hafrm.store import LineFile, RunFolder

VERDICTS_FILE = "verdicts.jsonl"
HEADER_FILE = "judge.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's verdict on one row, and its cost."""

    id: str
    """The row as `source:row`."""
    group: str
    models: list[str]
    labelled: bool
    """Whether the first response is known to be the better one."""
    lengths: list[int]
    """Characters of each response."""
    ranks: list[int | None] | None
    """1 is the best, equal ranks are a tie; None for responses below the best two of eight, or for all of them."""
    flipped: bool | None
    """Whether the two orders of a pair disagree; None if there was one order, or no verdict."""
    unscored: str | None
    reply: str | None
    """A shortened reply that could not be read; None if there is none."""
    requests: int
    """Questions put to the judge, or answered from the cache of replies."""
    responses_shown: int
    """Responses in these questions: the unit of Table 8."""
    prompt_tokens: int
    completion_tokens: int
    key: str
    """The row's name computed from its texts, which identifies it on resume."""

    @property
    def failed(self) -> bool:
        """Return whether the judge could not be asked, as opposed to an answer that can't be used."""
        return self.unscored is not None and self.unscored in FAILURES


def verdict_of(item: Item, outcome: Outcome, order: Iterable[int]) -> Verdict:
    """Make the verdict on an item whose responses were judged in another order.

    Args:
        item: The judged item.
        outcome: The result of its plan.
        order: Indices in the item of the responses of the outcome.
    """
    ranking = outcome.ranking
    placed = dict(zip(order, ranking.ranks, strict=True)) if ranking.ranks is not None else {}
    return Verdict(
        id=item.id,
        group=item.group,
        models=list(item.models),
        labelled=item.labelled,
        lengths=[sum(len(message.text) for message in response) for response in item.responses],
        ranks=[placed[place] for place in range(len(item.responses))] if placed else None,
        flipped=ranking.flipped,
        unscored=ranking.unscored.value if ranking.unscored else None,
        reply=ranking.reply,
        requests=outcome.requests,
        responses_shown=outcome.shown,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        key=item.key,
    )


def resume_verdicts(folder: Path, depends_on: Mapping[str, Any], items: Iterable[Item]) -> list[Verdict]:
    """Return the verdicts of an earlier run that can be kept, and remove all others from the file.

    Raises:
        ConfigError: the folder has verdicts of another judge, other rows or other options.
        DataError: its files are damaged.
    """
    file, run = LineFile(folder / VERDICTS_FILE), RunFolder(folder, HEADER_FILE, "verdicts")
    verdicts = [] if file.empty else file.read(_verdict)
    if all(verdict.ranks is None for verdict in verdicts):  # without a verdict nothing is lost
        run.write_header(depends_on)
        file.replace([])
        return []
    run.require_same(depends_on)
    answered = [verdict for verdict in verdicts if not verdict.failed]
    ids = {item.key: item.id for item in items}
    keys = {verdict.key for verdict in answered}
    if not keys <= ids.keys() or len(keys) < len(answered):
        raise DataError(f"{file.path} has lines that are not of these rows, or are repeated. Choose another --out.")
    kept = [replace(verdict, id=ids[verdict.key]) for verdict in answered]  # their file may have moved
    if kept != verdicts:
        file.replace([asdict(verdict) for verdict in kept])
    return kept


def _verdict(row: Mapping[str, Any]) -> Verdict:
    verdict = Verdict(**row)
    if verdict.unscored is not None:
        Unscored(verdict.unscored)
    return verdict
