"""Questions and answers: the interface between tournaments and judges of any kind.

Independent of prompts, endpoints and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

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
    """Why an answer has no ranks; results count answers by these keys."""

    explanation: str
    """The reason in words, for users."""

    def __new__(cls, value: str, explanation: str = "") -> Unscored:
        """Create a member from its key and its explanation."""
        member = str.__new__(cls, value)
        member._value_, member.explanation = value, explanation
        return member

    EMPTY_REPLY = "empty_reply", "the judge's reply was empty"
    CUT_OFF = "cut_off", "the endpoint cut the reply at its limit of tokens: raise --judge.max_reply_tokens"
    TOO_LONG = "too_long", "the reply is over 500,000 characters long"
    ONLY_THINKING = "only_thinking", "the reply is reasoning without a verdict after it: raise --judge.max_reply_tokens"
    REFUSAL = "refusal", "the judge declined to compare"
    FILTERED = "filtered", "the endpoint's content filter ended the reply"
    NO_CHOICE = "no_choice", "the reply states neither Output (a) nor Output (b) as its choice"
    AMBIGUOUS = "ambiguous", "the reply names both outputs and states no clear choice, or gives rankings that differ"
    NOT_JSON = "not_json", "the reply has no ranking in JSON"
    NOT_A_RANKING = "not_a_ranking", "the reply's JSON does not give each model a whole number as its rank"
    WRONG_MODELS = "wrong_models", "the ranking does not contain exactly the models asked about"
    NOT_A_PERMUTATION = "not_a_permutation", "the ranks are not 1 to n, each once"
    OVERLONG = "overlong", "the texts exceed the model's limit of tokens"
    REFUSED_BY_TEMPLATE = "refused_by_template", "the model's chat template refuses the conversation"
    TIMEOUT = "timeout", "no reply within judge.timeout"
    CONNECTION = "connection", "no connection, or it closed before the reply was complete"
    RATE_LIMITED = "rate_limited", "the endpoint's rate limit (HTTP 429)"
    SERVER_ERROR = "server_error", "the endpoint failed (HTTP 5xx)"
    BAD_REQUEST = "bad_request", "the endpoint refused the request (HTTP 4xx): too long, or filtered"
    BAD_RESPONSE = "bad_response", "the endpoint's response was not a chat completion"
    STOPPED = "stopped", "not asked"


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
"""Reasons that do not depend on the reply; a later run asks these questions again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A judge's ranks of a question's responses, or the reason why there are none."""

    ranks: tuple[int, ...] | None = None
    """In the question's order; 1 is the best, equal ranks are a tie."""
    unscored: Unscored | None = None
    reply: str | None = None
    """A reply that could not be parsed, shortened."""
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

    @property
    def account(self) -> dict[str, Any]:
        """Requests, tokens and money spent; empty for judges that cost nothing."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question, in order."""
        ...

    def close(self) -> None:
        """Free the judge's resources."""


class FreeJudge:
    """Base of judges that run in this process: they never stop and cost nothing."""

    stopped: str | None = None

    @property
    def account(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Do nothing."""


def ranks_of(rewards: Sequence[float]) -> tuple[int, ...]:
    """Convert rewards to ranks, the highest being 1; equal rewards share the better rank."""
    return tuple(1 + sum(other > reward for other in rewards) for reward in rewards)
