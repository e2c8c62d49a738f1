"""Forms of preference data: which columns of other programs' files and published sets mean what.

A form turns a row in its own columns into rows of the contract (see `hafrm.rows`): one for a pair, several for a
ranking. It passes on the columns that it does not use. `FORMS` lists the forms in the order in which a source is
compared with them; the first that fits is the source's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hafrm.data.collecting import Drop, Outcome, ToRows
from hafrm.errors import BadRowReason
from hafrm.rows import Cell, RowReader, transcript_turns, typed

Row = Mapping[str, Any]

_PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class Form:
    """One way to write preferences into rows."""

    name: str
    """What the output calls it."""
    columns: tuple[str, ...]
    """Columns that its rows have."""
    to_rows: ToRows
    """Turns a row into rows of the contract, or drops it."""
    fits: Callable[[Row], bool] = lambda row: True
    """Whether a row that has the columns is in this form."""
    single: bool = False
    """Whether a row is one response with its label: `to_rows` yields prompt, response and score, and rows that share a
    prompt make a ranking.
    """

    def recognises(self, row: Row) -> bool:
        """Return whether a row is in this form."""
        return not self.missing(row) and self.fits(row)

    def missing(self, row: Row) -> list[str]:
        """Return the form's columns that a row lacks."""
        return [name for name in self.columns if row.get(name) is None]


def _as_it_is(row: RowReader) -> Iterator[Outcome]:
    yield row.row


def _with(row: RowReader, used: Iterable[str], **columns: Any) -> Row:
    """Return the row's other columns with these ones."""
    used = set(used)
    return {name: value for name, value in row.row.items() if name not in used} | columns


def ranking(rest: Row, responses: Sequence[Any], scores: Sequence[float]) -> Iterator[Outcome]:
    """Yield all pairs of a ranking, the higher score as chosen, and a `Drop` for each tie.

    Args:
        rest: Columns of all the pairs, the prompt among them.
        responses: Responses, as strings or messages, [N].
        scores: A score for each, [N]: higher is better.
    """
    if len(responses) < 2:
        yield Drop("one_response")
    for one, other in combinations(range(len(responses)), 2):
        if scores[one] == scores[other]:
            yield Drop("tie")
            continue
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        yield {
            **rest,
            "chosen": responses[better],
            "rejected": responses[worse],
            "score_chosen": scores[better],
            "score_rejected": scores[worse],
        }


def _numbers(row: RowReader, name: str, count: int) -> list[float]:
    """Return a list of as many numbers as there are responses."""
    values = row.sequence(name)
    if len(values) != count:
        problem = f"has {len(values)} entries, but there are {count} responses"
        raise row.error(BadRowReason.WRONG_TYPE, name, problem, "Give one number for each response.")
    named = {f"{name}[{place}]": value for place, value in enumerate(values)}
    reader = RowReader(named, source=row.source, number=row.number)
    return [reader.required_number(each) for each in named]


def _scored_responses(row: RowReader) -> Iterator[Outcome]:
    responses = row.sequence("responses")
    scores = _numbers(row, "scores", len(responses))
    yield from ranking(_with(row, ("responses", "scores", "ranks")), responses, scores)


def _ranked_responses(row: RowReader) -> Iterator[Outcome]:
    responses = row.sequence("responses")
    ranks = _numbers(row, "ranks", len(responses))
    yield from _by_rank(_with(row, ("responses", "ranks")), responses, ranks)


def _by_rank(rest: Row, responses: Sequence[Any], ranks: Sequence[float]) -> Iterator[Outcome]:
    """Yield the pairs of a ranking whose best rank is the lowest; ranks are no scores, so they give no margins."""
    for outcome in ranking(rest, responses, [-rank for rank in ranks]):
        if isinstance(outcome, Drop):
            yield outcome
        else:
            yield {name: value for name, value in outcome.items() if name not in ("score_chosen", "score_rejected")}


def _nectar(row: RowReader) -> Iterator[Outcome]:
    answers = _objects(row, "answers")
    responses = [reader.string("answer") for reader in answers]
    yield from _by_rank(_with(row, ("answers",)), responses, [reader.required_number("rank") for reader in answers])


def _ultrafeedback(row: RowReader) -> Iterator[Outcome]:
    """Map the original UltraFeedback: completions by their `fine-grained_score`, else by `overall_score`."""
    completions = _objects(row, "completions")
    score = "fine-grained_score" if all(each.has("fine-grained_score") for each in completions) else "overall_score"
    responses = [reader.string("response") for reader in completions]
    rest = _with(row, ("completions", "instruction"), prompt=row.string("instruction"))
    yield from ranking(rest, responses, [reader.required_number(score) for reader in completions])


def _objects(row: RowReader, name: str) -> list[RowReader]:
    """Return a reader for each object in a list."""
    return [
        RowReader(each, source=row.source, number=row.number, prefix=f"{name}[{place}].")
        for place, each in enumerate(row.sequence(name))
    ]


def _context_messages(row: RowReader) -> Iterator[Outcome]:
    yield _with(row, ("context_messages",), prompt=_turns(row, "context_messages"))


def _turns(row: RowReader, name: str, role: str = "user") -> list[dict[str, Any]]:
    """Return a column's messages; a string is one turn of `role`."""
    return [turn.as_dict() for turn in row.messages(name, role)]


def alpaca_prompt(row: RowReader) -> list[dict[str, Any]]:
    """Return the prompt of LLaMA-Factory's alpaca format: history, then instruction and input in one turn."""
    turns = []
    for place, turn in enumerate(row.sequence("history") if row.has("history") else ()):
        texts = turn if isinstance(turn, Sequence) and len(turn) == 2 else [turn]
        if not all(isinstance(text, str) for text in texts) or len(texts) != 2:
            problem, remedy = "is not a question with its answer", 'Write the history as [["question", "answer"]].'
            raise row.error(BadRowReason.WRONG_TYPE, f"history[{place}]", problem, remedy)
        turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    parts = [row.string("instruction"), row.string_or_none("input") or ""]
    return [*turns, {"role": "user", "content": "\n".join(part for part in parts if part)}]


_ALPACA = ("instruction", "input", "history")


def _alpaca(row: RowReader) -> Iterator[Outcome]:
    yield _with(row, _ALPACA, prompt=alpaca_prompt(row))


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


def _sharegpt(row: RowReader) -> Iterator[Outcome]:
    columns = {name: sharegpt_turns(row, name) for name in ("chosen", "rejected")}
    if row.has("conversations"):
        columns["prompt"] = sharegpt_turns(row, "conversations")
    yield _with(row, ("conversations",), **columns)


def sharegpt_turns(row: RowReader, name: str) -> list[Any]:
    """Return a column of turns with `from` and `value` as chat messages, other turns as they are; a response that is a
    string is one turn.
    """
    value = _turns_of(row.row.get(name))
    if isinstance(value, str) and name in _PAIR:
        return [{"role": "assistant", "content": value}]
    turns = [value] if isinstance(value, Mapping) else row.sequence(name)
    return [_sharegpt_turn(row, f"{name}[{place}]", turn) for place, turn in enumerate(turns)]


def _sharegpt_turn(row: RowReader, where: str, turn: Any) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn  # `hafrm.rows` reads messages and says what is wrong with anything else
    given, text = turn["from"], turn.get("value")
    if given not in _SHAREGPT_ROLES:
        remedy = f"Use one of {', '.join(_SHAREGPT_ROLES)}."
        raise row.error(BadRowReason.WRONG_TYPE, f"{where}.from", f"is {str(given)[:40]!r}", remedy)
    message: dict[str, Any] = {"role": _SHAREGPT_ROLES[given], "content": text}
    if given == "function_call":
        try:
            calls = json.loads(text) if isinstance(text, str) else text
            calls = calls if isinstance(calls, list) else [calls]
            message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in calls]
        except (ValueError, TypeError) as error:
            remedy = 'Give the call as JSON: {"name": ..., "arguments": ...}.'
            raise row.error(BadRowReason.WRONG_TYPE, f"{where}.value", "is not a call", remedy) from error
        message["content"] = ""
    return message


def hh_transcripts(row: RowReader) -> Row:
    """Map Anthropic hh-rlhf: two transcripts with a common beginning."""
    return answers(row, "chosen", "rejected")


def chatbot_arena(row: RowReader) -> Row | Drop:
    """Map Chatbot Arena: two conversations with the same questions; ties of all kinds are dropped.

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


def _arena(row: RowReader) -> Iterator[Outcome]:
    outcome = chatbot_arena(row)
    used = ("conversation_a", "conversation_b", "winner")
    yield outcome if isinstance(outcome, Drop) else _with(row, used, **outcome)


def _arena_battles(row: RowReader) -> Iterator[Outcome]:
    """Map LMSYS's battles of one question each, whose texts are JSON lists of turns."""
    names = ("winner_model_a", "winner_model_b")
    wins = [row.one_of(name, (0, 1)) for name in names]
    if wins[0] == wins[1]:
        yield Drop("tie")
        return
    questions, *sides = ([*map(str, _json_list(row, name))] for name in ("prompt", "response_a", "response_b"))
    better, worse = (
        [
            {"role": role, "content": text}
            for question, answer in zip(questions, side, strict=False)
            for role, text in (("user", question), ("assistant", answer))
        ]
        for side in (sides if wins[0] else reversed(sides))
    )
    yield _with(row, (*names, "winner_tie", "prompt", "response_a", "response_b"), chosen=better, rejected=worse)


def _json_list(row: RowReader, name: str) -> list[Any]:
    value = row.string(name)
    try:
        found = json.loads(value)
    except ValueError:
        found = value
    return found if isinstance(found, list) else [value]


def answers(row: RowReader, better: str, worse: str) -> dict[str, Any]:
    """Return two columns of strings as `chosen` and `rejected`."""
    return {"chosen": row.string(better), "rejected": row.string(worse)}


def alpaca_farm(row: RowReader) -> Row | Drop:
    """Map AlpacaFarm's preferences: `preference` is 1 or 2; 0 and 1.5 mean a tie in this family of files."""
    preference = row.number_or_none("preference")
    if preference in (0.0, 1.5):
        return Drop("tie")
    if preference not in (1.0, 2.0):
        raise row.error(BadRowReason.WRONG_TYPE, "preference", f"is {preference}", "Expected 1 or 2.")
    better, worse = ("output_1", "output_2") if preference == 1.0 else ("output_2", "output_1")
    prompt = [row.string("instruction"), row.string_or_none("input") or ""]
    return {"prompt": "\n\n".join(part for part in prompt if part.strip()), **answers(row, better, worse)}


def _alpaca_farm(row: RowReader) -> Iterator[Outcome]:
    outcome = alpaca_farm(row)
    used = ("instruction", "input", "output_1", "output_2", "preference")
    yield outcome if isinstance(outcome, Drop) else _with(row, used, **outcome)


def _stanford_shp(row: RowReader) -> Iterator[Outcome]:
    """Map SHP: `labels` is 1 if the first reply is preferred."""
    better, worse = ("A", "B") if row.one_of("labels", (0, 1)) else ("B", "A")
    columns = {"prompt": row.string("history"), **answers(row, f"human_ref_{better}", f"human_ref_{worse}")}
    scores = {f"score_{side}": name for side, name in ((better, "score_chosen"), (worse, "score_rejected"))}
    columns |= {name: row.row[given] for given, name in scores.items() if row.has(given)}
    yield _with(row, ("history", "human_ref_A", "human_ref_B", "labels", *scores), **columns)


def _preferred_by_strength(prompt: str, first: str, second: str, strength: str) -> ToRows:
    """Map two responses and a number: negative if the first is better, 0 for a tie, larger if the better one is much
    better.
    """

    def to_rows(row: RowReader) -> Iterator[Outcome]:
        preference = row.required_number(strength)
        if not preference:
            yield Drop("tie")
            return
        better, worse = (first, second) if preference < 0 else (second, first)
        columns = answers(row, better, worse) | {"score_chosen": abs(preference), "score_rejected": 0.0}
        yield _with(row, (prompt, first, second, strength), prompt=_turns(row, prompt), **columns)

    return to_rows


def _pku(row: RowReader) -> Iterator[Outcome]:
    better = row.one_of("better_response_id", (0, 1))
    names = ("response_0", "response_1")
    yield _with(row, (*names, "better_response_id"), **answers(row, names[better], names[1 - better]))


def _labelled_completion(row: RowReader) -> Iterator[Outcome]:
    """Map TRL's rows for KTO: a completion and whether it is good."""
    score = float(row.one_of("label", (0, 1)))
    yield _with(row, ("completion", "label"), response=row.row["completion"], score=score)


def _labelled_alpaca(row: RowReader) -> Iterator[Outcome]:
    """Map LLaMA-Factory's alpaca format for KTO."""
    columns = {"prompt": alpaca_prompt(row), "response": row.string("output")}
    yield _with(row, (*_ALPACA, "output", "kto_tag"), **columns, score=float(row.one_of("kto_tag", (0, 1))))


def _labelled_conversation(turns_name: str, label: str) -> ToRows:
    """Map whole conversations with a label, LLaMA-Factory's sharegpt format for KTO: the last turn is the response."""

    def to_rows(row: RowReader) -> Iterator[Outcome]:
        *prompt, response = sharegpt_turns(row, turns_name) or [None]
        columns = {"prompt": prompt, "response": [response], "score": float(row.one_of(label, (0, 1)))}
        yield _with(row, (turns_name, label), **columns)

    return to_rows


def _scored_response(score: str) -> ToRows:
    """Map a response with a score."""

    def to_rows(row: RowReader) -> Iterator[Outcome]:
        yield _with(row, (score,), score=row.required_number(score))

    return to_rows


def _turns_of(value: Any) -> Any:
    """Return the messages in a cell of a CSV file; any other value as it is."""
    return value.turns if isinstance(value, Cell) else value


def _no_prompt(row: Row) -> bool:
    return row.get("prompt") is None


def _begins_with_prompt(row: Row) -> bool:
    """Return whether `chosen` starts with the prompt, as messages or as a transcript."""
    value = _turns_of(row["chosen"])
    if isinstance(value, str):
        return bool(transcript_turns(value))
    first = value[0] if isinstance(value, Sequence) and value else None
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def _has_sharegpt_turns(row: Row) -> bool:
    value = _turns_of(row["chosen"])
    first = value[0] if isinstance(value, Sequence) and value else value
    return isinstance(first, Mapping) and "from" in first


def _is_list(name: str) -> Callable[[Row], bool]:
    return lambda row: isinstance(value := typed(row[name]), Sequence) and not isinstance(value, str | bytes)


def _are_strings(row: Row) -> bool:
    return isinstance(_turns_of(row["chosen"]), str)


EXPLICIT = Form("TRL pairs with a prompt", ("prompt", *_PAIR), _as_it_is)
"""The form of rows that follow the contract, and of rows without any column."""

_SCORES = ("score", "rating", "helpfulness")

FORMS = (
    Form("LLaMA-Factory sharegpt", _PAIR, _sharegpt, _has_sharegpt_turns),
    Form("LLaMA-Factory sharegpt", ("conversations", *_PAIR), _sharegpt),
    Form("OpenRLHF context_messages", ("context_messages", *_PAIR), _context_messages, _no_prompt),
    Form(
        "LLaMA-Factory alpaca",
        ("instruction", *_PAIR),
        _alpaca,
        lambda row: _no_prompt(row) and not _begins_with_prompt(row),
    ),
    Form("UltraFeedback binarized", ("prompt", *_PAIR, "score_chosen", "score_rejected"), _as_it_is),
    EXPLICIT,
    Form("hh-rlhf transcripts", _PAIR, _as_it_is, lambda row: _are_strings(row) and _begins_with_prompt(row)),
    Form("TRL pairs that begin with the prompt", _PAIR, _as_it_is, _begins_with_prompt),
    Form("UltraFeedback", ("instruction", "completions"), _ultrafeedback, _is_list("completions")),
    Form("Nectar", ("prompt", "answers"), _nectar, _is_list("answers")),
    Form("responses with scores", ("prompt", "responses", "scores"), _scored_responses, _is_list("responses")),
    Form("responses with ranks", ("prompt", "responses", "ranks"), _ranked_responses, _is_list("responses")),
    Form("SHP", ("history", "human_ref_A", "human_ref_B", "labels"), _stanford_shp),
    Form("Chatbot Arena", ("conversation_a", "conversation_b", "winner"), _arena),
    Form(
        "Chatbot Arena battles",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        _arena_battles,
    ),
    Form(
        "HelpSteer2 preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        _preferred_by_strength("prompt", "response_1", "response_2", "preference_strength"),
    ),
    Form(
        "HelpSteer3 preferences",
        ("context", "response1", "response2", "overall_preference"),
        _preferred_by_strength("context", "response1", "response2", "overall_preference"),
    ),
    Form("PKU-SafeRLHF", ("prompt", "response_0", "response_1", "better_response_id"), _pku),
    Form("AlpacaFarm preferences", ("instruction", "output_1", "output_2", "preference"), _alpaca_farm),
    Form("TRL KTO labels", ("prompt", "completion", "label"), _labelled_completion, single=True),
    Form("LLaMA-Factory KTO labels", ("instruction", "output", "kto_tag"), _labelled_alpaca, single=True),
    *(
        Form("LLaMA-Factory KTO labels", (turns, label), _labelled_conversation(turns, label), single=True)
        for turns in ("conversations", "messages")
        for label in ("kto_tag", "label")
    ),
    *(
        Form("scored responses", ("prompt", "response", score), _scored_response(score), single=True)
        for score in _SCORES
    ),
)
"""The known forms."""


def nearest(row: Row) -> Form:
    """Return the form of which a row has the largest share of columns."""
    return max((EXPLICIT, *FORMS), key=lambda form: 1 - len(form.missing(row)) / len(form.columns))
