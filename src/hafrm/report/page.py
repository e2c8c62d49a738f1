"""Write the page of an evaluation's folder: tables, plots, and an inspector of pairs, in one self-contained file.

The data are JSON that browsers don't execute, so markup in responses is shown as text, and the file can be mailed.

A pair's record in the inspector is an object with named fields:

    {"id", "data": index of the data set, "lengths": [chosen, rejected] in characters,
     "rewards": for each model [chosen, rejected] or null,
     "prompt", "chosen", "rejected": [[role, text], ...], absent if the texts are unavailable,
     "tokens": for each model [chosen, rejected] or null, absent if no model has log-ratios of its tokens}

A side's tokens are `{"turns": [[[length, log-ratio or null], ...], ...], "template": log-ratio}` or null: for each
message the lengths of its pieces of text, in UTF-16 units as in browsers, so that texts are not stored twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hafrm import atomic
from hafrm.evaluation.scoring import PairScore
from hafrm.evaluation.tokens import TOKENS_FILE, read_tokens
from hafrm.pairs import Message, PreferencePair
from hafrm.report.diagnostics import forest_plots, plot_groups
from hafrm.report.html import asset, render
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.tables import accuracy_table, comparison_rows, suite_tables
from hafrm.report.wording import count, short_names

PAGE_FILE = "index.html"

_HTML_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})

_PairKey = tuple[str, str]
"""Data set and id, since two sets may contain the same pair."""
_Tokens = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""Lines of `tokens.jsonl`, by model, data set and id."""


def write_page(
    folder: Path,
    *,
    title: str,
    texts: Mapping[str, PreferencePair] | None = None,
    intro: str = "",
    max_pairs: int = 500,
) -> Path:
    """Write the page of an evaluation.

    Args:
        folder: The folder to which `hafrm evaluate` wrote `results.json`, `scores.jsonl` and maybe `tokens.jsonl`.
        title: The page's title, as plain text.
        texts: The evaluated pairs by id, for the inspector; without them it only shows rewards and lengths.
        intro: A paragraph below the title, as plain text.
        max_pairs: Maximum number of pairs in the inspector, worst mistakes first. Tables and plots use all scores.

    Returns:
        The page's path: `index.html` in the folder.

    Raises:
        DataError: the folder does not have a complete evaluation.
        ValueError: `max_pairs` is negative.
    """
    if max_pairs < 0:
        raise ValueError(f"max_pairs must not be negative, got {max_pairs}")
    folder = Path(folder)
    evaluation = read_evaluation(folder)
    path = folder / PAGE_FILE
    context = {
        "title": title,
        "intro": intro,
        **_tables(evaluation),
        **_pairs(evaluation, texts or {}, max_pairs, read_tokens(folder / TOKENS_FILE)),
    }
    atomic.write_text(path, render("page.html.j2", style=asset("page.css"), script=asset("page.js"), **context))
    return path


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "models": short_names(evaluation.models),
        "data": short_names(evaluation.data),
        "suites": suite_tables(evaluation),
        "table": accuracy_table(evaluation),
        "forests": forest_plots(evaluation),
        "comparisons": comparison_rows(evaluation.results.comparisons),
        "comparison_count": len(evaluation.results.comparisons),
        "groups": plot_groups(evaluation),
    }


def _pairs(
    evaluation: Evaluation,
    texts: Mapping[str, PreferencePair],
    max_pairs: int,
    tokens: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    inspector = inspector_data(evaluation, texts, max_pairs, tokens)
    held, total = len(inspector["pairs"]), len({(score.data, score.id) for score in evaluation.scores})
    return {
        "inspector": inspector,
        "inspector_json": embedded_json(inspector),
        "pairs_held": count(held, "pair"),
        "pairs_in_all": f"{total:,}" if total > held else "",
    }


def inspector_data(
    evaluation: Evaluation,
    texts: Mapping[str, PreferencePair],
    max_pairs: int,
    token_lines: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the inspector's data.

    Args:
        evaluation: The evaluation.
        texts: The pairs by id.
        max_pairs: Maximum number of pairs. They are taken from the worst mistakes of every model and data set, in
            turns.
        token_lines: The lines of `tokens.jsonl`.

    Returns:
        `{"models": [name, ...], "data": [name, ...], "scales": [number or null, ...], "pairs": [record, ...]}`, for
        JSON. A model's scale is the size of log-ratio that few of its tokens exceed; null if it has none.
    """
    by_pair: dict[_PairKey, dict[str, PairScore]] = defaultdict(dict)
    for score in evaluation.scores:
        by_pair[score.data, score.id][score.model] = score
    tokens = {(line["model"], line["data"], line["id"]): line for line in token_lines}
    return {
        "scales": [_scale(model, token_lines) for model in evaluation.models],
        "models": list(short_names(evaluation.models).values()),
        "data": list(short_names(evaluation.data).values()),
        "pairs": [
            _record(evaluation, by_pair[key], texts.get(key[1]), tokens)
            for key in _worst_first(evaluation.scores, max_pairs)
        ],
    }


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
            record["tokens"] = [_tokens_of(line, pair) for line in lines]
    return record


def _tokens_of(line: Mapping[str, Any] | None, pair: PreferencePair) -> list[dict[str, Any] | None] | None:
    return [_side(line["chosen"], pair.chosen), _side(line["rejected"], pair.rejected)] if line else None


def _side(side: Mapping[str, Any] | None, response: Sequence[Message]) -> dict[str, Any] | None:
    """Return a response's pieces as lengths; None if they do not match the text."""
    if side is None:
        return None
    if ["".join(text for text, _ in pieces) for pieces in side["turns"]] != [message.text for message in response]:
        return None
    turns = [[[_units(text), _short(value)] for text, value in pieces] for pieces in side["turns"]]
    return {"turns": turns, "template": _short(side["template"])}


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


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _rewards(score: PairScore | None) -> list[float] | None:
    if score is None or score.reward_chosen is None or score.reward_rejected is None:
        return None
    return [float(f"{reward:.6g}") for reward in (score.reward_chosen, score.reward_rejected)]


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.text] for message in messages]
