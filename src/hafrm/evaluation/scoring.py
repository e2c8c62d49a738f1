"""Score pairs. Raw scores are written as one JSON line per pair; all statistics are computed from them later."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hafrm.data import OnBadRow
from hafrm.errors import BadRowError, ModelError, RefusedError
from hafrm.models.scorers import Scorer, rewards_or_reasons
from hafrm.pairs import Conversation, Message, PreferencePair
from hafrm.store import LineFile, parsed_lines

SCORES_FILE = "scores.jsonl"
RESULTS_FILE = "results.json"

CHUNK = 512
"""Pairs scored at a time. A scorer orders them by length, so the last bits of a reward depend on its chunk."""


class RawScore(Protocol):
    """One line of a file of scores: a dataclass of plain values."""

    @property
    def id(self) -> str:
        """Id of the scored row: `source:row`."""
        ...

    @property
    def unscored(self) -> str:
        """Why a response has no reward; empty if all have one."""
        ...


class Scorable(Protocol):
    """A row whose responses are scored together."""

    @property
    def id(self) -> str:
        """Id of the row: `source:row`."""
        ...

    @property
    def group(self) -> str:
        """The row's prompt group."""
        ...

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """One conversation per response."""
        ...

    @property
    def source(self) -> str:
        """File or data set of the row."""
        ...

    @property
    def row(self) -> int:
        """The row's number in its source."""
        ...


Kind = TypeVar("Kind", bound=RawScore)
Row = TypeVar("Row", bound=Scorable)


@dataclass(frozen=True)
class PairScore:
    """One model's scores of one pair."""

    model: str
    data: str
    id: str
    """Id of the pair: `source:row`."""
    group: str
    """The pair's prompt group."""
    reward_chosen: float | None
    """Reward of the better response; None if it could not be scored."""
    reward_rejected: float | None
    length_chosen: int
    """Characters of the better response."""
    length_rejected: int
    unscored: str = ""
    """Why a response has no reward: "overlong", or "refused_by_template"."""

    @property
    def margin(self) -> float | None:
        """Reward of the better response minus that of the worse; None if a reward is missing."""
        if self.reward_chosen is None or self.reward_rejected is None:
            return None
        return self.reward_chosen - self.reward_rejected


def score_conversations(
    scorer: Scorer, conversations: Sequence[Conversation], rows: Sequence[tuple[str, int]], *, on_bad_row: OnBadRow
) -> list[float | str]:
    """Return each conversation's reward, or the reason why it has none.

    Args:
        rows: Source and row number of each conversation.
        on_bad_row: What to do with conversations that the scorer's chat template, or its server, refuses.

    Raises:
        BadRowError: a conversation is refused, and bad rows are not skipped.
        ModelError: a reward is not finite.
    """
    try:
        outcomes = rewards_or_reasons(scorer, conversations, skip=on_bad_row == "skip")
    except RefusedError as error:
        first = min(error.reasons)
        source, row = rows[first]
        raise BadRowError.refused(error.reasons[first], source=source, row=row, remedy=error.remedy) from error
    for (source, row), outcome in zip(rows, outcomes, strict=True):
        if not isinstance(outcome, str) and not math.isfinite(outcome):
            raise ModelError(f"{source}, row {row}: the reward is {outcome}. The weights are damaged or too large.")
    return outcomes


def split_outcomes(outcomes: Iterable[float | str]) -> tuple[list[float | None], str]:
    """Return the rewards of a row's responses, None where there is none, and the first reason for it, or ""."""
    found = list(outcomes)
    rewards = [None if isinstance(outcome, str) else outcome for outcome in found]
    return rewards, next((outcome for outcome in found if isinstance(outcome, str)), "")


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
        model: The model's name in the results.
        data: The data set's name in the results.
        on_bad_row: What to do with pairs that the scorer's chat template refuses.
        progress: Called with the number of finished pairs.

    Yields:
        One score per pair, in order.

    Raises:
        BadRowError: the template refuses a pair, and bad rows are not skipped.
    """
    for pair, (chosen, rejected), unscored in scored_chunks(scorer, pairs, on_bad_row=on_bad_row, progress=progress):
        yield PairScore(
            model=model,
            data=data,
            id=pair.id,
            group=pair.group,
            reward_chosen=chosen,
            reward_rejected=rejected,
            length_chosen=response_length(pair.chosen),
            length_rejected=response_length(pair.rejected),
            unscored=unscored,
        )


def scored_chunks(
    scorer: Scorer, rows: Sequence[Row], *, on_bad_row: OnBadRow, progress: Callable[[int], None]
) -> Iterator[tuple[Row, list[float | None], str]]:
    """Score rows with any number of responses, one chunk of rows per call; see `score_pairs`.

    Yields:
        Each row with one reward per response, None where there is none, and the first reason for it, or "".
    """
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        found = [row.conversations for row in chunk]
        places = [(row.source, row.row) for row, each in zip(chunk, found, strict=True) for _ in each]
        conversations = [conversation for each in found for conversation in each]
        outcomes = iter(score_conversations(scorer, conversations, places, on_bad_row=on_bad_row))
        for row, each in zip(chunk, found, strict=True):
            yield row, *split_outcomes(islice(outcomes, len(each)))
        progress(start + len(chunk))


def response_length(response: Sequence[Message]) -> int:
    """Count the characters of a response."""
    return sum(len(message.text) for message in response)


def write_scores(scores: Iterable[RawScore], path: Path) -> None:
    """Write scores as JSON lines, atomically."""
    LineFile(path).replace(asdict(score) for score in scores)  # type: ignore[call-overload]


def write_or_remove(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as JSON lines, atomically, or delete an earlier file if there are none."""
    if rows:
        LineFile(path).replace(rows)
    else:
        path.unlink(missing_ok=True)


def read_scores(path: Path) -> list[PairScore]:
    """Read a `scores.jsonl`.

    Raises:
        DataError: a line is not a score.
    """
    return read_raw_scores(path, PairScore)


def read_raw_scores(path: Path, kind: type[Kind]) -> list[Kind]:
    """Read a file of scores of one kind.

    Raises:
        DataError: a line is not a score.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return list(parsed_lines(path, lambda row: kind(**{name: row[name] for name in names}), remedy="Evaluate again."))
