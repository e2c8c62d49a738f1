"""Raw scores of pairs: the product of an evaluation, a JSON line a pair. Every number is computed from them later."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hafrm import atomic
from hafrm.data import OnBadRow
from hafrm.errors import BadRowError, BadRowReason, DataError, RefusedError
from hafrm.models.scorers import Scorer
from hafrm.pairs import Conversation, Message, PreferencePair

__all__ = [
    "CHUNK",
    "OVERLONG",
    "RESULTS_FILE",
    "SCORES_FILE",
    "PairScore",
    "read_scores",
    "score_conversations",
    "score_line",
    "score_pairs",
    "write_scores",
]

SCORES_FILE = "scores.jsonl"
RESULTS_FILE = "results.json"

OVERLONG = "overlong"
"""Why a conversation over the model's limit has no reward."""

CHUNK = 512
"""Pairs scored at a time. A scorer orders them by length, so a reward's last bits depend on what is in its chunk."""


@dataclass(frozen=True)
class PairScore:
    """What one model gave for one pair."""

    model: str
    data: str
    id: str
    """Where the pair came from: `source:row`."""
    group: str
    """The pair's prompt group."""
    reward_chosen: float | None
    """The reward of the better response; None where it could not be scored."""
    reward_rejected: float | None
    length_chosen: int
    """Characters of the better response."""
    length_rejected: int
    unscored: str = ""
    """Why a response has no reward: "overlong", or "refused_by_template"."""

    @property
    def margin(self) -> float | None:
        """Reward of the better response less that of the worse one; None where one has no reward."""
        if self.reward_chosen is None or self.reward_rejected is None:
            return None
        return self.reward_chosen - self.reward_rejected


def score_conversations(
    scorer: Scorer, conversations: Sequence[Conversation], rows: Sequence[tuple[str, int]], *, on_bad_row: OnBadRow
) -> list[float | str]:
    """Each conversation's reward, or the reason why it has none.

    Args:
        scorer: What gives the rewards.
        conversations: The conversations.
        rows: Where each came from: its source and its row there.
        on_bad_row: What to do with conversations that the scorer's chat template refuses.

    Raises:
        BadRowError: the template refuses a conversation, and bad rows are not to be skipped.
    """
    try:
        return [OVERLONG if reward is None else reward for reward in scorer.score(conversations)]
    except RefusedError as error:
        refused = error.reasons
        if on_bad_row == "error":
            source, row = rows[min(refused)]
            raise BadRowError.refused(refused[min(refused)], source=source, row=row) from error
    kept = [place for place in range(len(conversations)) if place not in refused]
    rewards = scorer.score([conversations[place] for place in kept])
    found = {place: OVERLONG if reward is None else reward for place, reward in zip(kept, rewards, strict=True)}
    return [found.get(place, BadRowReason.REFUSED_BY_TEMPLATE.value) for place in range(len(conversations))]


def score_pairs(
    scorer: Scorer,
    pairs: Sequence[PreferencePair],
    *,
    model: str,
    data: str,
    on_bad_row: OnBadRow = "error",
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[PairScore]:
    """Score both responses of every pair.

    Args:
        scorer: What gives the rewards.
        pairs: The pairs.
        model: The model's name in the results.
        data: The data set's name in the results.
        on_bad_row: What to do with pairs that the scorer's chat template refuses.
        progress: Called with the number of pairs done.

    Yields:
        One score a pair, in order.

    Raises:
        BadRowError: the template refuses a pair, and bad rows are not to be skipped.
    """
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        conversations = [conversation for pair in chunk for conversation in pair.conversations]
        rows = [(pair.source, pair.row) for pair in chunk for _ in range(2)]
        outcomes = score_conversations(scorer, conversations, rows, on_bad_row=on_bad_row)
        for pair, chosen, rejected in zip(chunk, outcomes[::2], outcomes[1::2], strict=True):
            yield PairScore(
                model=model,
                data=data,
                id=pair.id,
                group=pair.group,
                reward_chosen=None if isinstance(chosen, str) else chosen,
                reward_rejected=None if isinstance(rejected, str) else rejected,
                length_chosen=_length(pair.chosen),
                length_rejected=_length(pair.rejected),
                unscored=next((outcome for outcome in (chosen, rejected) if isinstance(outcome, str)), ""),
            )
        progress(start + len(chunk))


def _length(response: Sequence[Message]) -> int:
    return sum(len(message.content) for message in response)


def score_line(score: PairScore) -> bytes:
    """A score as one line of JSON: what `read_scores` reads."""
    return atomic.json_line(asdict(score))


def write_scores(scores: Iterable[PairScore], path: Path) -> None:
    """Write scores as JSON lines, whole or not at all."""
    with atomic.new_file(path) as file:
        for score in scores:
            file.write(score_line(score))


def read_scores(path: Path) -> list[PairScore]:
    """Read a `scores.jsonl`.

    Raises:
        DataError: a line is not a score.
    """
    scores = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):  # splitlines would also split at U+2028
        if not line:
            continue
        try:
            row = json.loads(line)
            scores.append(PairScore(**{field.name: row[field.name] for field in fields(PairScore)}))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}, is no score of a pair ({error}). Evaluate again.") from error
    return scores
