"""Questions and answers: the interface between tournaments and judges of any kind.

Independent of prompts, endpoints and models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hafrm.pairs import Message, Prompt

Response = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with two or more responses, in the order in which the judge sees them."""

    prompt: Prompt
    responses: tuple[Response, ...]

    def __post_init__(self) -> None:
        if len(self.responses) < 2:
            raise ValueError(f"a question needs two or more responses, got {len(self.responses)}")


class Unscored(StrEnum):
    """Why an answer has no ranks: the key under which it is counted."""

    EMPTY_REPLY = "empty_reply"
    CUT_OFF = "cut_off"
    """The endpoint ended the reply at its limit of tokens, before the verdict or in the words around it."""
    TOO_LONG = "too_long"
    """The reply is longer than any verdict; it was not read."""
    ONLY_THINKING = "only_thinking"
    """Reasoning without an end, or with nothing after it."""
    REFUSAL = "refusal"
    """The judge declined to compare."""
    FILTERED = "filtered"
    """The endpoint's content filter ended the reply."""
    NO_CHOICE = "no_choice"
    """The reply to a pair states no choice."""
    AMBIGUOUS = "ambiguous"
    """The reply names both outputs without a clear statement, or gives rankings that differ."""
    NOT_JSON = "not_json"
    NOT_A_RANKING = "not_a_ranking"
    """JSON, but without {"model", "rank"} for each model."""
    WRONG_MODELS = "wrong_models"
    """Not exactly the requested models."""
    NOT_A_PERMUTATION = "not_a_permutation"
    OVERLONG = "overlong"
    REFUSED_BY_TEMPLATE = "refused_by_template"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """No connection, or one that ended in the middle of the reply."""
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    BAD_REQUEST = "bad_request"
    """The endpoint refused the request itself: too long, or its content filter."""
    BAD_RESPONSE = "bad_response"
    """The endpoint's response is not a chat completion."""
    STOPPED = "stopped"
    """Not asked: the run's budget is spent, or the endpoint keeps failing."""


FAILURES = frozenset(
    {
        Unscored.TIMEOUT,
        Unscored.CONNECTION,
        Unscored.RATE_LIMITED,
        Unscored.SERVER_ERROR,
        Unscored.BAD_REQUEST,
        Unscored.BAD_RESPONSE,
        Unscored.STOPPED,
    }
)
"""Failures to get an answer; a later run asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A judge's ranks of a question's responses, or the reason why there are none."""

    ranks: tuple[int, ...] | None = None
    """In the question's order; 1 is the best, equal ranks are a tie."""
    unscored: Unscored | None = None
    reply: str | None = None
    """A shortened reply that could not be read."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        if (self.ranks is None) == (self.unscored is None):
            raise ValueError("an answer has either ranks or a reason why there are none")


class Judge(Protocol):
    """Ranks responses."""

    most_responses: int
    """Maximum number of responses per question."""

    order_matters: bool
    """Whether the answer can depend on the order in which responses are shown."""

    @property
    def stopped(self) -> str | None:
        """Why the judge has stopped answering; None if it has not."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question, in order."""
        ...


def ranks_of(rewards: Sequence[float]) -> tuple[int, ...]:
    """Convert rewards to ranks, the highest being 1; equal rewards share the better rank."""
    return tuple(1 + sum(other > reward for other in rewards) for reward in rewards)


class ScriptedJudge:
    """A judge for tests that answers with a function and records its questions."""

    stopped = None

    def __init__(
        self, answer: Callable[[Question], Answer], *, most_responses: int = 8, order_matters: bool = True
    ) -> None:
        self.answer, self.most_responses, self.order_matters = answer, most_responses, order_matters
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question, in order."""
        self.asked += questions
        return [self.answer(question) for question in questions]
