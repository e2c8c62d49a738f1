"""Forms of preference data: which columns of other programs' files and published sets mean what.

A form converts a row with its own columns to rows of the contract (see `hafrm.contract`): one for a pair, several for a
ranking. Columns that it does not use are passed on. `FORMS` lists the forms in the order in which they are tried on a
source; the first match is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from hafrm.data.reports import Drop, Outcome
from hafrm.errors import BadRowReason
from hafrm.rows import Cell, Row, is_list, transcript_turns, typed, unique_keys

Fields = Mapping[str, Any]

_PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class Form:
    """One way to write preferences into rows."""

    name: str
    """Name in the output."""
    columns: tuple[str, ...]
    """Columns that its rows have; a form without any, such as the user's own mapping, passes no columns on."""
    to_rows: Callable[[Row], Outcome | Iterable[Outcome]]
    """Converts a row to columns of the contract: to one outcome, or to several."""
    fits: Callable[[Fields], bool] = lambda row: True
    """Whether a row that has the columns is in this form."""
    optional: tuple[str, ...] = ()
    """Further columns that it uses."""
    single: bool = False
    """Whether a row is one response with its label: `to_rows` gives prompt, response and score, and rows that share a
    prompt make a ranking.
    """

    def recognises(self, row: Fields) -> bool:
        """Return whether a row is in this form."""
        return not self.missing(row) and self.fits(row)

    def missing(self, row: Fields) -> list[str]:
        """Return the form's columns that a row lacks."""
        return [name for name in self.columns if row.get(name) is None]

    def rows(self, row: Row) -> Iterator[Outcome]:
        """Yield the rows of the contract that a row represents, with its other columns, or a `Drop` for each tie."""
        found = self.to_rows(row)
        used = {*self.columns, *self.optional} - {"prompt", "response", *_PAIR}
        rest = {name: value for name, value in row.fields.items() if self.columns and name not in used}
        for outcome in [found] if isinstance(found, Mapping | Drop) else found:
            yield outcome if isinstance(outcome, Drop) else {**rest, **outcome}


def ranking(responses: Sequence[Any], scores: Sequence[float]) -> Iterator[Outcome]:
    """Yield all pairs of a ranking, the higher score as chosen, and a `Drop` for each tie.

    Args:
        responses: Responses, as strings or messages, [N].
        scores: The score of each, [N]: higher is better.
    """
    if len(responses) < 2:
        yield Drop("one_response")
    for one, other in combinations(range(len(responses)), 2):
        if scores[one] == scores[other]:
            yield Drop("tie")
            continue
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        pair = {"chosen": responses[better], "rejected": responses[worse]}
        yield {**pair, "score_chosen": scores[better], "score_rejected": scores[worse]}


def _by_rank(responses: Sequence[Any], ranks: Sequence[float]) -> Iterator[Outcome]:
    """Yield the pairs of a ranking whose best rank is the lowest; ranks are not scores, so they give no margins."""
    for outcome in ranking(responses, [-rank for rank in ranks]):
        yield outcome if isinstance(outcome, Drop) else {name: outcome[name] for name in _PAIR}


def _numbers(row: Row, name: str, count: int) -> list[float]:
    """Return a list of as many numbers as there are responses."""
    values = row.sequence(name)
    if len(values) != count:
        problem = f"has {len(values)} entries, but there are {count} responses"
        raise row.error(BadRowReason.WRONG_TYPE, name, problem, "Give one number for each response.")
    named = {f"{name}[{place}]": value for place, value in enumerate(values)}
    reader = replace(row, value=named)
    return [reader.required_number(each) for each in named]


def _scored_responses(row: Row) -> Iterator[Outcome]:
    responses = row.sequence("responses")
    return ranking(responses, _numbers(row, "scores", len(responses)))


def _ranked_responses(row: Row) -> Iterator[Outcome]:
    responses = row.sequence("responses")
    return _by_rank(responses, _numbers(row, "ranks", len(responses)))


def _nectar(row: Row) -> Iterator[Outcome]:
    each = _objects(row, "answers")
    return _by_rank([one.string("answer") for one in each], [one.required_number("rank") for one in each])


def _ultrafeedback(row: Row) -> Iterator[Outcome]:
    """Convert the original UltraFeedback: completions by their `fine-grained_score`, else by `overall_score`."""
    completions = _objects(row, "completions")
    score = "fine-grained_score" if all(each.has("fine-grained_score") for each in completions) else "overall_score"
    responses, prompt = [each.string("response") for each in completions], row.string("instruction")
    for outcome in ranking(responses, [each.required_number(score) for each in completions]):
        yield outcome if isinstance(outcome, Drop) else {**outcome, "prompt": prompt}


def _objects(row: Row, name: str) -> list[Row]:
    """Return the objects in a list as rows."""
    values = enumerate(row.sequence(name))
    return [replace(row, value=value, prefix=f"{name}[{place}].") for place, value in values]


def _turns(row: Row, name: str) -> list[dict[str, Any]]:
    """Return a column's messages; a string is one user turn."""
    return [turn.as_dict() for turn in row.messages(name, "user")]


def _alpaca_prompt(row: Row) -> Fields:
    """Convert the prompt of LLaMA-Factory's alpaca format: history, then instruction and input in one turn."""
    turns = []
    for place, turn in enumerate(row.sequence("history") if row.has("history") else ()):
        texts = turn if isinstance(turn, Sequence) and len(turn) == 2 else [turn]
        if not all(isinstance(text, str) for text in texts) or len(texts) != 2:
            problem, remedy = "is not a question with its answer", 'Write the history as [["question", "answer"]].'
            raise row.error(BadRowReason.WRONG_TYPE, f"history[{place}]", problem, remedy)
        turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    parts = [row.string("instruction"), row.string_or_none("input") or ""]
    return {"prompt": [*turns, {"role": "user", "content": "\n".join(part for part in parts if part)}]}


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def _sharegpt(row: Row) -> Fields:
    columns = {name: _sharegpt_turns(row, name) for name in _PAIR}
    return columns | ({"prompt": _sharegpt_turns(row, "conversations")} if row.has("conversations") else {})


def _sharegpt_turns(row: Row, name: str) -> list[Any]:
    """Return a column of turns with `from` and `value` as chat messages, other turns unchanged; a response that is a
    string is one turn.
    """
    value = row.turns(name)
    if isinstance(value, str) and name in _PAIR:
        return [{"role": "assistant", "content": value}]
    turns = [value] if isinstance(value, Mapping) else row.sequence(name)
    return [_sharegpt_turn(row, f"{name}[{place}]", turn) for place, turn in enumerate(turns)]


def _sharegpt_turn(row: Row, where: str, turn: Any) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn  # `Row.messages` checks it
    given, text = turn["from"], turn.get("value")
    if given not in _SHAREGPT_ROLES:
        remedy = f"Use one of {', '.join(_SHAREGPT_ROLES)}."
        raise row.error(BadRowReason.WRONG_TYPE, f"{where}.from", f"is {str(given)[:40]!r}", remedy)
    message: dict[str, Any] = {"role": _SHAREGPT_ROLES[given], "content": text}
    if given == "function_call":
        try:
            calls = json.loads(text, object_pairs_hook=unique_keys) if isinstance(text, str) else text
            calls = calls if isinstance(calls, list) else [calls]
            message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in calls]
        except (ValueError, TypeError) as error:
            remedy = 'Give the call as JSON: {"name": ..., "arguments": ...}.'
            raise row.error(BadRowReason.WRONG_TYPE, f"{where}.value", "is not a call", remedy) from error
        message["content"] = ""
    return message


def chatbot_arena(row: Row) -> Outcome:
    """Convert Chatbot Arena: two conversations with the same questions; ties of all kinds are dropped.

    The prompt is the common beginning, that is the first question: later turns belong to the responses because they
    follow different answers.
    """
    winner = row.string("winner")
    if winner in ("tie", "tie (bothbad)", "both_bad"):
        return Drop("tie")
    if winner not in ("model_a", "model_b"):
        raise row.error(BadRowReason.WRONG_TYPE, "winner", f"is {winner!r}", "Expected model_a, model_b or a tie.")
    conversations = [_turns(row, f"conversation_{side}") for side in ("a", "b")]
    better, worse = conversations if winner == "model_a" else reversed(conversations)
    return {"chosen": better, "rejected": worse}


def _arena_battles(row: Row) -> Outcome:
    """Convert LMSYS's battles, whose texts are JSON lists of turns; a prompt of another kind is one turn."""
    wins = [row.one_of(name, (0, 1)) for name in ("winner_model_a", "winner_model_b")]
    if wins[0] == wins[1]:
        return Drop("tie")
    questions = _json_texts(row, "prompt")
    several = questions is not None
    questions = [row.string("prompt")] if questions is None else questions
    sides = [_battle_answers(row, name, len(questions), several=several) for name in ("response_a", "response_b")]
    better, worse = (
        [
            {"role": role, "content": text}
            for question, answer in zip(questions, side, strict=True)
            for role, text in (("user", question), ("assistant", answer))
        ]
        for side in (sides if wins[0] else reversed(sides))
    )
    return {"prompt": None, "chosen": better, "rejected": worse}


def _battle_answers(row: Row, name: str, turns: int, *, several: bool) -> list[str]:
    """Return a side's answers, one for each turn of the prompt."""
    texts = _json_texts(row, name) if several else None
    texts = [row.string(name)] if texts is None else texts
    if len(texts) != turns:
        problem = f"has {len(texts)} turns, but the prompt has {turns}"
        raise row.error(BadRowReason.WRONG_TYPE, name, problem, "Give one answer for each turn of the prompt.")
    return texts


def _json_texts(row: Row, name: str) -> list[str] | None:
    """Return a column's JSON list of texts, None if it is another text; raise BadRowError for a null in the list."""
    value = row.string(name)
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not found or not all(isinstance(each, str | None) for each in found):
        return None
    reader = replace(row, value={f"{name}[{place}]": each for place, each in enumerate(found)})
    return [reader.string(place) for place in reader.fields]


def answers(row: Row, better: str, worse: str) -> dict[str, Any]:
    """Return two columns of strings as `chosen` and `rejected`."""
    return {"chosen": row.string(better), "rejected": row.string(worse)}


def alpaca_farm(row: Row) -> Outcome:
    """Convert AlpacaFarm's preferences: `preference` is 1 or 2; 0 and 1.5 mean a tie in this family of files."""
    preference = row.number_or_none("preference")
    if preference in (0.0, 1.5):
        return Drop("tie")
    if preference not in (1.0, 2.0):
        raise row.error(BadRowReason.WRONG_TYPE, "preference", f"is {preference}", "Expected 1 or 2.")
    better, worse = ("output_1", "output_2") if preference == 1.0 else ("output_2", "output_1")
    prompt = [row.string("instruction"), row.string_or_none("input") or ""]
    return {"prompt": "\n\n".join(part for part in prompt if part.strip()), **answers(row, better, worse)}


def _stanford_shp(row: Row) -> Fields:
    """Convert SHP: `labels` is 1 if the first reply is preferred."""
    better, worse = ("A", "B") if row.one_of("labels", (0, 1)) else ("B", "A")
    columns = {"prompt": row.string("history"), **answers(row, f"human_ref_{better}", f"human_ref_{worse}")}
    scores = {"score_chosen": f"score_{better}", "score_rejected": f"score_{worse}"}
    return columns | {name: row.fields[given] for name, given in scores.items() if row.has(given)}


def _preferred_by_strength(prompt: str, first: str, second: str, strength: str) -> Callable[[Row], Outcome]:
    """Convert two responses and a number, which is negative if the first is better and 0 for a tie."""

    def to_row(row: Row) -> Outcome:
        preference = row.required_number(strength)
        if not preference:
            return Drop("tie")
        better, worse = (first, second) if preference < 0 else (second, first)
        scores = {"score_chosen": abs(preference), "score_rejected": 0.0}
        return {"prompt": _turns(row, prompt), **answers(row, better, worse), **scores}

    return to_row


def _pku(row: Row) -> Fields:
    better = row.one_of("better_response_id", (0, 1))
    names = ("response_0", "response_1")
    return answers(row, names[better], names[1 - better])


def _label(row: Row, name: str) -> dict[str, Any]:
    """Return a label, true or false, as the score of a response."""
    return {"score": float(row.one_of(name, (0, 1)))}


def _labelled_conversation(turns_name: str, label: str) -> Callable[[Row], Outcome]:
    """Convert whole conversations with a label, LLaMA-Factory's sharegpt format for KTO; the last turn responds."""

    def to_row(row: Row) -> Outcome:
        *prompt, response = _sharegpt_turns(row, turns_name) or [None]
        return {"prompt": prompt, "response": [response], **_label(row, label)}

    return to_row


def _scored(name: str) -> Callable[[Row], Outcome]:
    return lambda row: {"score": row.required_number(name)}


def _turns_of(value: Any) -> Any:
    """Return the messages in a cell of a CSV file; any other value unchanged."""
    return value.turns if isinstance(value, Cell) else value


def _no_prompt(row: Fields) -> bool:
    return row.get("prompt") is None


def _begins_with_prompt(row: Fields) -> bool:
    """Return whether `chosen` starts with the prompt, as messages or as a transcript."""
    value = _turns_of(row["chosen"])
    if isinstance(value, str):
        return bool(transcript_turns(value))
    first = value[0] if isinstance(value, Sequence) and value else None
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def _has_sharegpt_turns(row: Fields) -> bool:
    value = _turns_of(row["chosen"])
    first = value[0] if isinstance(value, Sequence) and value else value
    return isinstance(first, Mapping) and "from" in first


def _is_list(name: str) -> Callable[[Fields], bool]:
    return lambda row: is_list(typed(row[name]))


def _fields(row: Row) -> Fields:
    return row.fields


EXPLICIT = Form("TRL pairs with a prompt", ("prompt", *_PAIR), _fields)
"""The form of rows that follow the contract, and of rows without any column."""

_SCORES = ("score", "rating", "helpfulness")
_STRENGTH_2 = ("prompt", "response_1", "response_2", "preference_strength")
_STRENGTH_3 = ("context", "response1", "response2", "overall_preference")

NECTAR = Form("Nectar", ("prompt", "answers"), _nectar, _is_list("answers"))
HELPSTEER2 = Form("HelpSteer2 preferences", _STRENGTH_2, _preferred_by_strength(*_STRENGTH_2))
HELPSTEER3 = Form("HelpSteer3 preferences", _STRENGTH_3, _preferred_by_strength(*_STRENGTH_3))

FORMS = (
    Form("LLaMA-Factory sharegpt", _PAIR, _sharegpt, _has_sharegpt_turns, ("conversations",)),
    Form("LLaMA-Factory sharegpt", ("conversations", *_PAIR), _sharegpt),
    Form(
        "OpenRLHF context_messages",
        ("context_messages", *_PAIR),
        lambda row: {"prompt": _turns(row, "context_messages")},
        _no_prompt,
    ),
    Form(
        "LLaMA-Factory alpaca",
        ("instruction", *_PAIR),
        _alpaca_prompt,
        lambda row: _no_prompt(row) and not _begins_with_prompt(row),
        ("input", "history"),
    ),
    Form("UltraFeedback binarized", ("prompt", *_PAIR, "score_chosen", "score_rejected"), _fields),
    EXPLICIT,
    Form(
        "hh-rlhf transcripts",
        _PAIR,
        _fields,
        lambda row: isinstance(_turns_of(row["chosen"]), str) and _begins_with_prompt(row),
    ),
    Form("TRL pairs that begin with the prompt", _PAIR, _fields, _begins_with_prompt),
    Form("UltraFeedback", ("instruction", "completions"), _ultrafeedback, _is_list("completions")),
    NECTAR,
    Form(
        "responses with scores",
        ("prompt", "responses", "scores"),
        _scored_responses,
        _is_list("responses"),
        ("ranks",),
    ),
    Form("responses with ranks", ("prompt", "responses", "ranks"), _ranked_responses, _is_list("responses")),
    Form(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _stanford_shp,
        optional=("score_A", "score_B"),
    ),
    Form("Chatbot Arena", ("conversation_a", "conversation_b", "winner"), chatbot_arena),
    Form(
        "Chatbot Arena battles",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        _arena_battles,
        optional=("winner_tie",),
    ),
    HELPSTEER2,
    HELPSTEER3,
    Form("PKU-SafeRLHF", ("prompt", "response_0", "response_1", "better_response_id"), _pku),
    Form(
        "AlpacaFarm preferences",
        ("instruction", "output_1", "output_2", "preference"),
        alpaca_farm,
        optional=("input",),
    ),
    Form(
        "TRL KTO labels",
        ("prompt", "completion", "label"),
        lambda row: {"response": row.fields["completion"], **_label(row, "label")},
        single=True,
    ),
    Form(
        "LLaMA-Factory KTO labels",
        ("instruction", "output", "kto_tag"),
        lambda row: {**_alpaca_prompt(row), "response": row.string("output"), **_label(row, "kto_tag")},
        optional=("input", "history"),
        single=True,
    ),
    *(
        Form("LLaMA-Factory KTO labels", (turns, label), _labelled_conversation(turns, label), single=True)
        for turns in ("conversations", "messages")
        for label in ("kto_tag", "label")
    ),
    *(Form("scored responses", ("prompt", "response", score), _scored(score), single=True) for score in _SCORES),
)
"""The known forms."""


def nearest(row: Fields) -> Form:
    """Return the form of which a row has the largest share of columns."""
    return max((EXPLICIT, *FORMS), key=lambda form: 1 - len(form.missing(row)) / len(form.columns))
