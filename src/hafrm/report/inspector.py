"""Collect what the page's inspector of pairs embeds: rewards and lengths of every pair, and texts as far as they fit.

A pair's record is an object with named fields:

    {"id", "data": index of the data set, "lengths": [chosen, rejected] in characters,
     "rewards": for each model [chosen, rejected] or null,
     "prompt", "chosen", "rejected": [[role, text], ...], absent if the texts are unavailable,
     "tokens": for each model [chosen, rejected] or null, absent if no model has log-ratios of its tokens}

A side's tokens are `{"turns": [[[length, log-ratio or null, reward so far or null], ...], ...], "template": log-ratio,
"reward": the reward head's or null}` or null: for each message the lengths of its pieces of text, in UTF-16 units as in
browsers, so that texts are not stored twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
from markupsafe import Markup

from hafrm import atomic
from hafrm.evaluation.scoring import PairScore
from hafrm.pairs import Message, PreferencePair
from hafrm.report.loading import Evaluation
from hafrm.report.wording import count, short_names

MOST_PAIRS = 100_000
"""Pairs that a page lists: about 15 MB of numbers."""
MOST_TEXT = 16_000_000
"""Characters of texts that a page embeds."""

_HTML_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})

_PairKey = tuple[str, str]
"""Data set and id, since two sets may contain the same pair."""
_Tokens = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""Lines of `tokens.jsonl`, by model, data set and id."""


def inspector_data(
    evaluation: Evaluation,
    texts: Mapping[str, PreferencePair],
    token_lines: Sequence[Mapping[str, Any]] = (),
    *,
    max_pairs: int = MOST_PAIRS,
    max_text: int = MOST_TEXT,
) -> dict[str, Any]:
    """Return the inspector's data.

    Args:
        max_pairs: Maximum number of pairs. They are taken from the worst mistakes of every model and data set, in
            turns.
        max_text: Maximum number of characters of their texts together; a pair that does not fit has none.

    Returns:
        `{"models": [name, ...], "data": [name, ...], "scales": [number or null, ...], "pairs": [record, ...]}`, for
        JSON. A model's scale is the size of log-ratio that few of its tokens exceed; null if it has none.
    """
    by_pair: dict[_PairKey, dict[str, PairScore]] = defaultdict(dict)
    for score in evaluation.scores:
        by_pair[score.data, score.id][score.model] = score
    tokens = {(line["model"], line["data"], line["id"]): line for line in token_lines}
    listed = _worst_first(evaluation.scores, max_pairs)
    fitting = _fitting(listed, texts, max_text)
    return {
        "scales": [_scale(model, token_lines) for model in evaluation.models],
        "models": list(short_names(evaluation.models).values()),
        "data": list(short_names(evaluation.data).values()),
        "pairs": [
            _record(evaluation, by_pair[key], texts[key[1]] if key in fitting else None, tokens) for key in listed
        ],
    }


def held_words(evaluation: Evaluation, inspector: Mapping[str, Any], *, max_text: int = MOST_TEXT) -> str:
    """Describe which pairs the inspector lists, and how many of them with their texts."""
    pairs = {(score.data, score.id) for score in evaluation.scores}
    scored = {(score.data, score.id) for score in evaluation.scores if score.margin is not None}
    listed, total = len(inspector["pairs"]), len(pairs)
    with_texts = sum("prompt" in record for record in inspector["pairs"])
    words = f"All {count(total, 'pair')}." if listed == total else f"{count(listed, 'pair')} of {total:,}"
    if listed < len(scored):
        words += ": the worst mistakes of every model on every data set."
    elif listed < total:
        words += ": the others have no reward."
    if 0 < with_texts < listed:
        words += f" Texts of {with_texts:,}, worst mistakes first: a page has room for {max_text:,} characters."
    return words


def embedded_json(value: Any) -> Markup:
    """Encode a value as JSON for a script element: pure ASCII, without the characters that are special in HTML."""
    return Markup(atomic.json_text(value, separators=(",", ":")).translate(_HTML_ESCAPES))


def _worst_first(scores: Sequence[PairScore], limit: int) -> list[_PairKey]:
    """Return the worst pair of each model on each data set, then the second worst of each, and so on."""
    cells: dict[tuple[str, str], list[tuple[float, _PairKey]]] = defaultdict(list)
    for score in scores:
        if score.margin is not None:
            cells[score.model, score.data].append((score.margin, (score.data, score.id)))
    ranks = zip_longest(*(sorted(cell) for cell in cells.values()))
    return list(islice(dict.fromkeys(item[1] for rank in ranks for item in rank if item is not None), limit))


def _fitting(keys: Sequence[_PairKey], texts: Mapping[str, PreferencePair], room: int) -> set[_PairKey]:
    """Return the pairs whose texts fit into so many characters, the first ones first."""
    fitting = set()
    for key in keys:
        pair = texts.get(key[1])
        size = 0 if pair is None else sum(len(m.text) for m in (*pair.prompt.turns, *pair.chosen, *pair.rejected))
        if pair is not None and size <= room:
            room -= size
            fitting.add(key)
    return fitting


def _record(
    evaluation: Evaluation, scores: Mapping[str, PairScore], pair: PreferencePair | None, tokens: _Tokens
) -> dict[str, Any]:
    first = next(iter(scores.values()))
    record: dict[str, Any] = {
        "id": first.id,
        "data": evaluation.data.index(first.data),
        "lengths": [first.length_chosen, first.length_rejected],
        "rewards": [_rewards(scores.get(model)) for model in evaluation.models],
    }
    if pair is not None:
        given = [[name, atomic.json_text(value, ensure_ascii=False)] for name, value in pair.prompt.columns.items()]
        record["prompt"] = given + _turns(pair.prompt.turns)
        record |= {name: _turns(getattr(pair, name)) for name in ("chosen", "rejected")}
        lines = [tokens.get((model, first.data, first.id)) for model in evaluation.models]
        if any(lines):
            record["tokens"] = [
                [_side(line["chosen"], pair.chosen), _side(line["rejected"], pair.rejected)] if line else None
                for line in lines
            ]
    return record


def _side(side: Mapping[str, Any] | None, response: Sequence[Message]) -> dict[str, Any] | None:
    """Return a response's pieces as lengths; None if they do not match the text."""
    if side is None:
        return None
    if ["".join(text for text, _ in pieces) for pieces in side["turns"]] != [message.text for message in response]:
        return None
    rewards = chain.from_iterable(side.get("rewards", ()))
    turns = [
        [[_units(text), _short(value), _short(next(rewards, None), 5)] for text, value in pieces]
        for pieces in side["turns"]
    ]
    return {"turns": turns, "template": _short(side["template"]), "reward": _short(side.get("reward"), 5)}


def _units(text: str) -> int:
    """Return the text's length as JavaScript counts it."""
    return len(text) + sum(character > "\uffff" for character in text)


def _scale(model: str, lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the 95th percentile of the sizes of a model's log-ratios."""
    sizes = [abs(value) for line in lines if line["model"] == model for value in _values(line)]
    return _short(float(np.quantile(sizes, 0.95))) if sizes else None


def _values(line: Mapping[str, Any]) -> Iterator[float]:
    for side in (line["chosen"], line["rejected"]):
        for pieces in side["turns"] if side else ():
            yield from (value for _, value in pieces if value is not None)


def _short(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _rewards(score: PairScore | None) -> list[float] | None:
    if score is None or score.reward_chosen is None or score.reward_rejected is None:
        return None
    return [float(f"{reward:.6g}") for reward in (score.reward_chosen, score.reward_rejected)]


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.text] for message in messages]
