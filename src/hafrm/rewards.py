"""Rewards by name: of a model, or the true rewards of a simulated set such as `world/NAME`; whole or by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from hafrm.data.simulated import SimulatedReward, is_simulated
from hafrm.errors import ModelError
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import POLICY_HEAD, DenseScorer, HybridScorer, Scorer
from hafrm.models.tokens import TokenRewards
from hafrm.pairs import Conversation

T = TypeVar("T")

DIVISION, ERROR = "token_rewards", "reward_error"
"""Names of the details of rewards in output."""


def load_reward(name: str, choice: ScorerChoice, options: ScoreOptions) -> Scorer:
    """Load a scorer: a simulated set's true reward, or anything that `load_scorer` accepts.

    Raises:
        UnknownDataError: there is no such simulated set.
        ModelError: no scorer can be loaded from there.
    """
    return SimulatedReward(name) if is_simulated(name) else choice.load(name, options)


def reward_identity(name: str, choice: ScorerChoice, options: ScoreOptions) -> dict[str, Any]:
    """Return what rewards depend on, keyed by what messages call it; see `model_identity`.

    Raises:
        UnknownDataError: there is no such simulated set.
        ModelError: the model does not exist, or the server does not answer.
    """
    if is_simulated(name):
        return {"the world's set": SimulatedReward(name).name, "hafrm": version("hafrm")}
    return model_identity(name, choice, options)


class DetailedScorer(Generic[T]):
    """Scorer that also keeps a detail of each reward: how it is divided among tokens, or its standard error."""

    def __init__(self, name: str, compute: Callable[[Sequence[Conversation]], list[tuple[float, T] | None]]) -> None:
        self.name = name
        """What the detail is called in output."""
        self.compute = compute
        self.details: dict[Conversation, T] = {}
        """The details of the last call of `score`."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return rewards in the order of the conversations; see `Scorer.score`."""
        found = self.compute(conversations)
        self.details = {talk: each[1] for talk, each in zip(conversations, found, strict=True) if each is not None}
        return [None if each is None else each[0] for each in found]


def with_division(scorer: Scorer, name: str) -> DetailedScorer[TokenRewards]:
    """Return the scorer with the division of each reward among tokens.

    Raises:
        ModelError: its rewards can't be divided; the message calls it `name`.
    """
    if not isinstance(scorer, DenseScorer):
        raise ModelError(f"{name} gives whole rewards only. Rewards of tokens need {POLICY_HEAD}.")
    divide = scorer.token_rewards
    divide([])

    def compute(conversations: Sequence[Conversation]) -> list[tuple[float, TokenRewards] | None]:
        return [None if each is None else (each.reward, each) for each in divide(conversations)]

    return DetailedScorer(DIVISION, compute)


def with_errors(scorer: Scorer) -> Scorer:
    """Return the scorer, with the standard error of each reward if it has them."""
    if isinstance(scorer, HybridScorer) and scorer.has_errors:
        return DetailedScorer(ERROR, scorer.score_with_errors)
    return scorer
