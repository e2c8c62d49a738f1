"""From a judge's reply to ranks: strict, and nothing is executed.

A reply to a pair is `Output (a)` or `Output (b)`, whatever the case, with white space around and within it and a full
stop behind it tolerated. A ranking is JSON, bare or in one fenced block: a list of {"model", "rank"} that names every
model asked about once and gives it ranks that are a permutation of 1 to n. Anything else is unscored, with its reason.
"""

from __future__ import annotations

import json
import re
from typing import Any

from hafrm.judging.judges import Answer, Unscored
from hafrm.judging.prompts import model_names

__all__ = ["parse_reply"]

_CHOICE = re.compile(r"\s*output\s*\(\s*(?P<choice>[ab])\s*\)\s*\.?\s*", re.IGNORECASE)
_FENCED = re.compile(r"\s*```[ \t]*(?:json|python)?[ \t]*\n(?P<inside>[^`]*)```\s*")


def parse_reply(reply: str, responses: int, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> Answer:
    """What a reply says about so many responses.

    Args:
        reply: The judge's whole reply.
        responses: How many it was asked about: two are a pair, more a ranking.
        prompt_tokens: What asking took, for the answer.
        completion_tokens: What replying took, for the answer.
    """
    if not reply.strip():
        found: tuple[int, ...] | Unscored = Unscored.EMPTY_REPLY
    else:
        found = _pair(reply) if responses == 2 else _ranking(reply, responses)
    return Answer(
        ranks=None if isinstance(found, Unscored) else found,
        unscored=found if isinstance(found, Unscored) else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def _pair(reply: str) -> tuple[int, ...] | Unscored:
    match = _CHOICE.fullmatch(reply)
    if match is None:
        return Unscored.NO_CHOICE
    return (1, 2) if match["choice"].lower() == "a" else (2, 1)


def _ranking(reply: str, responses: int) -> tuple[int, ...] | Unscored:
    fenced = _FENCED.fullmatch(reply)
    try:
        rows = json.loads(fenced["inside"] if fenced else reply, object_pairs_hook=_Fields)
    except (ValueError, RecursionError):
        return Unscored.NOT_JSON
    if not isinstance(rows, list) or not all(_is_entry(row) for row in rows):
        return Unscored.NOT_A_RANKING
    ranks = {row["model"]: row["rank"] for row in rows}
    names = model_names(responses)
    if len(rows) != responses or set(ranks) != set(names):
        return Unscored.WRONG_MODELS
    if sorted(ranks.values()) != list(range(1, responses + 1)):
        return Unscored.NOT_A_PERMUTATION
    return tuple(ranks[name] for name in names)


class _Fields(dict[str, Any]):
    """A JSON object that knows whether a name came twice: `{"rank": 1, "rank": 2}` says nothing."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = len(self) < len(pairs)


def _is_entry(row: object) -> bool:
    return (
        isinstance(row, _Fields)
        and not row.repeated
        and set(row) == {"model", "rank"}
        and isinstance(row["model"], str)
        and type(row["rank"]) is int  # True is no rank
    )
