"""Score the items of a suite, each of which becomes one JSON line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hafrm.data import OnBadRow
from hafrm.evaluation.scoring import response_length, scored_chunks
from hafrm.evaluation.suites.items import Item, ListScore
from hafrm.models.scorers import Scorer

SUITES_FILE = "suites.jsonl"


def score_items(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    model: str,
    data: str,
    on_bad_row: OnBadRow = "error",
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[ListScore]:
    """Score all responses of every item; see `score_pairs`."""
    for item, outcomes in scored_chunks(scorer, items, on_bad_row=on_bad_row, progress=progress):
        yield ListScore(
            model=model,
            data=data,
            id=item.id,
            key=item.key,
            subset=item.subset,
            group=item.group,
            correct=item.correct,
            rewards=[None if isinstance(outcome, str) else outcome for outcome in outcomes],
            lengths=[response_length(response) for response in item.responses],
            unscored=next((outcome for outcome in outcomes if isinstance(outcome, str)), ""),
        )
