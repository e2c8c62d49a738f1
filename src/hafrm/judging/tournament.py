"""Plans of questions to a judge, and ranks from its answers; independent of the kind of judge.

A plan is a generator: it yields the next questions, is sent their answers, and returns the ranks. `play` advances many
plans together, so that a judge gets as many questions at once as possible. If an answer has no ranks, the whole plan is
unscored for the same reason. Ties within a plan are broken in favour of the earlier response.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from hafrm.judging.judges import Answer, Judge, Question, Response, Unscored
from hafrm.pairs import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The result of a plan."""

    ranks: tuple[int | None, ...] | None = None
    """1 is the best; None for responses that were not ranked. None if there is no result."""
    flipped: bool | None = None
    """Whether the two orders of a comparison disagree; None if only one was asked, or there is no verdict."""
    unscored: Unscored | None = None
    reply: str | None = None
    """The reply that could not be parsed, shortened."""


Plan = Generator[list[Question], list[Answer], Ranking]


class _NoRanksError(Exception):
    def __init__(self, reason: Unscored, reply: str | None) -> None:
        self.reason, self.reply = reason, reply


@dataclass(kw_only=True)
class Outcome:
    """The result of a plan, and its cost."""

    ranking: Ranking = field(default_factory=Ranking)
    requests: int = 0
    shown: int = 0
    """Number of responses shown to the judge over all requests: Table 8's unit of cost."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def count(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Count questions and the cost of their answers. Questions that were not asked cost nothing."""
        for question, answer in zip(questions, answers, strict=True):
            if answer.unscored is not Unscored.STOPPED:
                self.requests += 1
                self.shown += len(question.responses)
                self.prompt_tokens += answer.prompt_tokens
                self.completion_tokens += answer.completion_tokens


def play(judge: Judge, plans: Sequence[Plan]) -> list[Outcome]:
    """Carry out plans, round by round, and return each result, in order."""
    outcomes = [Outcome() for _ in plans]
    waiting: dict[int, list[Question]] = {}

    def advance(place: int, answers: list[Answer] | None) -> None:
        try:
            waiting[place] = plans[place].send(answers)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as stop:
            waiting.pop(place, None)
            outcomes[place].ranking = stop.value
        except _NoRanksError as error:
            waiting.pop(place, None)
            outcomes[place].ranking = Ranking(unscored=error.reason, reply=error.reply)

    for place in range(len(plans)):
        advance(place, None)
    while waiting:
        answers = iter(judge.ask([question for questions in waiting.values() for question in questions]))
        for place, questions in list(waiting.items()):
            given = list(islice(answers, len(questions)))
            outcomes[place].count(questions, given)
            advance(place, given)
    return outcomes


def compare(prompt: Prompt, responses: Sequence[Response], *, both_orders: bool = True) -> Plan:
    """Compare two responses: a verdict if both orders agree, otherwise a tie. Equal responses tie without a question.

    The paper asks once, in a random order (Appendix F); asking twice also shows how often the order decides.
    For judges that ignore the order, once is enough.
    """
    first, second = responses
    if first == second:
        return Ranking(ranks=(1, 1))  # equal responses need no question
    questions = [Question(prompt, (first, second))]
    if both_orders:
        questions.append(Question(prompt, (second, first)))
    answers = yield questions
    ranks = [_ranks(answer) for answer in answers]
    if not both_orders:
        return Ranking(ranks=ranks[0])
    forward, backward = ranks[0], ranks[1][::-1]
    agree = forward == backward
    return Ranking(ranks=forward if agree else (1, 1), flipped=not agree)


def rank_at_once(prompt: Prompt, responses: Sequence[Response]) -> Plan:
    """Rank all responses with one question (Table 10 for four)."""
    (answer,) = yield [Question(prompt, tuple(responses))]
    return Ranking(ranks=_ranks(answer))


def top_two_of_eight(prompt: Prompt, responses: Sequence[Response]) -> Plan:
    """Find the best two of eight by three rankings of four: two groups, then a final of their best two (Figure 10).

    Returns:
        Ranks 1 and 2 (both 1 if the final ties them), None for the other six.
    """
    groups = [list(range(4)), list(range(4, 8))]
    answers = yield [Question(prompt, tuple(responses[i] for i in group)) for group in groups]
    finalists = [i for group, answer in zip(groups, answers, strict=True) for i in best_first(group, answer)[:2]]
    (answer,) = yield [Question(prompt, tuple(responses[i] for i in finalists))]
    ranks = _ranks(answer)
    best = best_first(finalists, answer)[:2]
    of = dict(zip(finalists, ranks, strict=True))
    tied = of[best[0]] == of[best[1]]
    placed = {best[0]: 1, best[1]: 1 if tied else 2}
    return Ranking(ranks=tuple(placed.get(i) for i in range(8)))


def best_first(places: Sequence[int], answer: Answer) -> list[int]:
    """Return the indices in a question, best first; equal ranks keep the given order."""
    ranks = _ranks(answer)
    order = sorted(range(len(places)), key=lambda i: ranks[i])
    return [places[i] for i in order]


def _ranks(answer: Answer) -> tuple[int, ...]:
    if answer.ranks is None:
        assert answer.unscored is not None
        raise _NoRanksError(answer.unscored, answer.reply)
    return answer.ranks
