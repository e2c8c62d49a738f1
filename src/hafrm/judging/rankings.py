"""Parse a reply's ranks of several models: JSON objects that name a model and its rank.

They may be in a list or on separate lines, in a fenced block or in running text, quoted as in Python, and have more
fields. A mapping from names to ranks is read too. Each model must be ranked once, with ranks that are a permutation of
1 to n; several such rankings in a reply must agree. Nothing is executed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from hafrm.judging.judges import Unscored
from hafrm.judging.prompts import model_names

_OBJECT = re.compile(r"\{[^{}]*\}")
_AROUND = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*\w*[ \t]*$|[\[\]\s,.]", re.MULTILINE)


def read_ranking(reply: str, responses: int) -> tuple[int, ...] | Unscored:
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


def is_bare_ranking(reply: str) -> bool:
    """Return whether a reply consists only of objects in lists or fences."""
    return not _AROUND.sub("", _OBJECT.sub("", reply))


class _Fields(dict[str, Any]):
    """A JSON object that records whether a name came twice, since `{"rank": 1, "rank": 2}` is ambiguous."""

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
