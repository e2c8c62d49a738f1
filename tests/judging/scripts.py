"""Scripted judges for tests: responses are numbers, the higher the better."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hafrm.judging.judges import Answer, FreeJudge, Question, ranks_of
from hafrm.pairs import Message, Prompt

PROMPT = Prompt.of("Which number is larger?")


class ScriptedJudge(FreeJudge):
    """A judge that answers with a function and records its questions."""

    def __init__(
        self, answer: Callable[[Question], Answer], *, most_responses: int = 8, order_matters: bool = True
    ) -> None:
        self.answer, self.most_responses, self.order_matters = answer, most_responses, order_matters
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question, in order."""
        self.asked += questions
        return [self.answer(question) for question in questions]


def numbers(values: Sequence[float]) -> list[tuple[Message, ...]]:
    return [(Message("assistant", str(value)),) for value in values]


def by_number(question: Question) -> Answer:
    return Answer(ranks=ranks_of([float(response[0].content) for response in question.responses]))


def honest() -> ScriptedJudge:
    return ScriptedJudge(by_number)
