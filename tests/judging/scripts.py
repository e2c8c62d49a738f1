"""Scripted judges for tests: responses are numbers, the higher the better."""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.judging.judges import Answer, Question, ScriptedJudge, ranks_of
from hafrm.pairs import Message, Prompt

PROMPT = Prompt.of("Which number is larger?")


def numbers(values: Sequence[float]) -> list[tuple[Message, ...]]:
    return [(Message("assistant", str(value)),) for value in values]


def by_number(question: Question) -> Answer:
    return Answer(ranks=ranks_of([float(response[0].content) for response in question.responses]))


def honest() -> ScriptedJudge:
    return ScriptedJudge(by_number)
