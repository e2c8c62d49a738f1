"""Rewards for a file of rows: `{"prompt", "response"}` rows get `reward`, pairs `reward_chosen` and `reward_rejected`.

Every row comes out again, in order, with all its fields but those that an earlier scoring left. A row without a reward
says why in `unscored`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from hafrm import atomic
from hafrm.data import RawRow, ReadOptions, read_rows
from hafrm.errors import BadRowError
from hafrm.evaluation.scoring import score_conversations
from hafrm.models.loading import ScorerChoice
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.pairs import Conversation, parse_conversation, parse_pair

__all__ = ["ScoreConfig", "ScoreCounts", "score_rows"]

_CHUNK = 1024  # rows in memory at a time
_RESULTS = ("reward", "reward_chosen", "reward_rejected", "unscored")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScorerChoice):
    """Give every row of a file its reward."""

    model: str
    """A run, a stock reward model, a causal model with its reference, or the address of a reward server."""

    data: str
    """The file of rows: JSON lines (also .gz), JSON or Parquet; each row a prompt with a response, or a pair."""

    out: str | None = None
    """Where the JSON lines go; by default standard output."""

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)


@dataclass
class ScoreCounts:
    """How many rows got a reward, and why the others did not."""

    scored: int = 0
    unscored: Counter[str] = field(default_factory=Counter)


def score_rows(config: ScoreConfig) -> ScoreCounts:
    """Score a file's rows and write them out with their rewards.

    Raises:
        BadRowError: a row breaks the data contract, and bad rows are not to be skipped.
        UnreadableError: the file can't be read.
    """
    scorer = config.load(config.model, config.score)
    counts = ScoreCounts()
    rows = read_rows(Path(config.data))
    with _output(config.out) as file:
        while chunk := list(islice(rows, _CHUNK)):
            for line in _scored_rows(scorer, chunk, config, counts):
                file.write(atomic.json_line(line))
    return counts


@contextmanager
def _output(out: str | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with atomic.new_file(Path(out)) as file:
            yield file


def _scored_rows(
    scorer: Scorer, rows: Sequence[RawRow], config: ScoreConfig, counts: ScoreCounts
) -> Iterator[dict[str, Any]]:
    parsed = [_parse(row, config) for row in rows]
    places = [(config.data, row.number) for row, (found, _) in zip(rows, parsed, strict=True) for _ in found]
    conversations = [conversation for found, _ in parsed for conversation in found]
    outcomes = iter(score_conversations(scorer, conversations, places, on_bad_row=config.data_options.on_bad_row))
    for row, (found, problem) in zip(rows, parsed, strict=True):
        values = list(islice(outcomes, len(found)))
        problem = problem or next((value for value in values if isinstance(value, str)), None)
        if problem is None:
            counts.scored += 1
        else:
            counts.unscored[problem] += 1
        yield _line(row, [None if isinstance(value, str) else value for value in values], problem)


def _parse(row: RawRow, config: ScoreConfig) -> tuple[tuple[Conversation, ...], str | None]:
    """The row's conversations, or none and the reason why."""
    try:
        if row.error is not None:
            raise row.error
        if not _is_pair(row):
            return (parse_conversation(row.value, source=config.data, number=row.number),), None
        return parse_pair(row.value, source=config.data, number=row.number).conversations, None
    except BadRowError as error:
        if config.data_options.on_bad_row == "error":
            raise
        return (), error.reason.value


def _is_pair(row: RawRow) -> bool:
    """Whether a row counts as a pair; one that is no object does not, as nobody can tell what it was to be."""
    return isinstance(row.value, Mapping) and "response" not in row.value


def _line(row: RawRow, rewards: Sequence[float | None], problem: str | None) -> dict[str, Any]:
    fields = row.value if isinstance(row.value, Mapping) else {"row": row.number}
    line = {name: value for name, value in fields.items() if name not in _RESULTS}
    names = ("reward_chosen", "reward_rejected") if _is_pair(row) else ("reward",)
    line |= dict(zip(names, rewards or [None] * len(names), strict=True))
    return line if problem is None else line | {"unscored": problem}
