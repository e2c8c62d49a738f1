"""Parsing of a judge's reply into ranks: its thinking is removed, and only explicit statements are read.

A truncated reply only counts if it consists of the verdict alone, because the missing text could contradict it. Choices
between two responses are parsed by `choices`. A ranking consists of JSON objects with a model and its rank, in a list
or on separate lines, in a fenced block or in running text, with quotes as in JSON or Python, and possibly with further
fields; or of a mapping from names to ranks. Each model must have one rank, and the ranks must be 1 to n; several
rankings in a reply must agree. Nothing is executed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from hafrm.errors import printable
from hafrm.judging.choices import bare_choice, read_choice
from hafrm.judging.judges import Answer, Unscored
from hafrm.judging.prompts import model_names

_THINKING = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)"
_MARK = re.compile(
    rf"(?P<opens><{_THINKING}>|\[{_THINKING}\]|\u25c1{_THINKING}\u25b7|<\|begin_of_{_THINKING}\|>|<\|channel\|>analysis)"
    rf"|</{_THINKING}>|\[/{_THINKING}\]|\u25c1/{_THINKING}\u25b7|<\|end_of_{_THINKING}\|>|<\|channel\|>final",
    re.IGNORECASE,
)
"""Opening and closing marks of thinking in various model families."""
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")

_CUT = ("length", "max_tokens")
_FILTERED = "content_filter"
_LONGEST = 500_000
"""Longest reply that is parsed, in characters; parsing it takes about a second."""
_SHOWN = 300
"""Maximum characters of a reply that are shown."""
_OBJECT = re.compile(r"\{[^{}]*\}")
_AROUND = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*\w*[ \t]*$|[\[\]\s,.]", re.MULTILINE)


def parse_reply(
    reply: str,
    responses: int,
    *,
    thought: bool = False,
    finish_reason: str | None = None,
) -> Answer:
    """Parse a reply about the given number of responses.

    Args:
        responses: The number of responses in the question: two are a pair, more a ranking.
        thought: Whether the endpoint separated the judge's reasoning from its reply.
        finish_reason: Why the endpoint ended the reply, if it says so.
    """
    cut = (finish_reason or "").lower() in _CUT
    found = Unscored.TOO_LONG if len(reply) > _LONGEST else _read(reply, responses, thought=thought, cut=cut)
    if isinstance(found, Unscored):
        return Answer(unscored=Unscored.FILTERED if finish_reason == _FILTERED else found, reply=shown(reply))
    return Answer(ranks=found)


def shown(reply: str) -> str:
    """Return a printable form of a reply: its beginning and end, with control characters escaped."""
    half = _SHOWN // 2
    short = reply if len(reply) <= _SHOWN else f"{reply[:half]} [...] {reply[-half:]}"
    return printable(short, _SHOWN + len(" [...] "))


def _read(reply: str, responses: int, *, thought: bool, cut: bool) -> tuple[int, ...] | Unscored:
    answer = _without_thinking(reply)
    if answer is None or not answer.strip():
        if cut:
            return Unscored.CUT_OFF
        return Unscored.ONLY_THINKING if thought or reply.strip() else Unscored.EMPTY_REPLY
    bare = bare_choice(answer) is not None if responses == 2 else not _AROUND.sub("", _OBJECT.sub("", answer))
    if cut and not bare:
        return Unscored.CUT_OFF
    if responses > 2:
        ranks = _read_ranking(answer, responses)
        return Unscored.CUT_OFF if cut and isinstance(ranks, Unscored) else ranks
    choice = read_choice(answer)
    if isinstance(choice, Unscored):
        return choice
    return (1, 2) if choice == "a" else (2, 1)


def _without_thinking(reply: str) -> str | None:
    """Remove the thinking from a reply, whose opening mark may be missing; None if it is not closed."""
    parts: list[str] = []
    inside, start = False, 0
    for mark in _MARK.finditer(reply):
        if mark["opens"] is None:
            parts = parts if inside else []
            inside, start = False, mark.end()
        elif not inside:
            parts.append(reply[start : mark.start()])
            inside = True
    return None if inside else _SPECIAL.sub("", "".join([*parts, reply[start:]]))


def _read_ranking(reply: str, responses: int) -> tuple[int, ...] | Unscored:
    """Return the rank of each model, in the order of their names, or why there is none."""
    objects = [_object(match[0]) for match in _OBJECT.finditer(reply)]
    names = model_names(responses)
    entries: list[tuple[str, Any]] = []
    for found in objects:
        entries += _entries(found, names)
    if not entries:
        return Unscored.NOT_A_RANKING if any(objects) or _is_json(reply) else Unscored.NOT_JSON
    if any(_rank(rank) is None for _, rank in entries):
        return Unscored.NOT_A_RANKING
    rankings = [_ranks(entries[start : start + responses], names) for start in range(0, len(entries), responses)]
    wrong = [ranks for ranks in rankings if isinstance(ranks, Unscored)]
    if wrong:
        return wrong[0]
    return rankings[0] if len(set(rankings)) == 1 else Unscored.AMBIGUOUS


class _Fields(dict[str, Any]):
    """A JSON object that records whether a name is repeated: `{"rank": 1, "rank": 2}` is ambiguous."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__((name.strip().lower(), value) for name, value in pairs)
        self.repeated = len(self) < len(pairs)


def _object(text: str) -> _Fields | None:
    """Parse a flat object in JSON or Python syntax; None if it is neither, or names a field twice."""
    straight = unicodedata.normalize("NFKC", text).translate({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"})
    loose = re.sub(r",\s*(?=\})", "", straight)
    for form in (text, loose, loose.replace("'", '"')):
        try:
            found = json.loads(form, object_pairs_hook=_Fields)
        except (ValueError, RecursionError):
            continue
        return None if found.repeated else found
    return None


def _entries(found: _Fields | None, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the models and ranks of an object: one of `model` and `rank`, or all of a mapping."""
    if found is None:
        return []
    if {"model", "rank"} <= found.keys():
        return [(_name(found["model"]), found["rank"])]
    mapping = {_name(name): rank for name, rank in found.items()}
    return list(mapping.items()) if mapping.keys() == set(names) else []


def _name(value: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(value).strip().lower())


def _rank(value: Any) -> int | None:
    """Convert a rank to a number; "1" is a rank, True and 1.0 are not."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,3}\s*", value):
        return int(value)
    return value if type(value) is int else None


def _ranks(entries: Sequence[tuple[str, Any]], names: Sequence[str]) -> tuple[int, ...] | Unscored:
    ranks = {name: _rank(rank) or 0 for name, rank in entries}
    if len(entries) != len(names) or set(ranks) != set(names):
        return Unscored.WRONG_MODELS
    if sorted(ranks.values()) != list(range(1, len(names) + 1)):
        return Unscored.NOT_A_PERMUTATION
    return tuple(ranks[name] for name in names)


def _is_json(reply: str) -> bool:
    try:
        json.loads(reply)
    except (ValueError, RecursionError):
        return False
    return True
