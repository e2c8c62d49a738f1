"""Rewards by name: of a model, or the true rewards of a simulated set such as `world/NAME`; whole or by token."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from hafrm.data.simulated import SimulatedReward, is_simulated
from hafrm.errors import ModelError
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import POLICY_HEAD, DenseScorer, HybridScorer, Scorer
from hafrm.models.tokens import TokenRewards
from hafrm.pairs import Conversation


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


class DividedScorer:
    """Scorer that also keeps how each reward is divided; ModelError names it if its rewards can't be divided."""

    def __init__(self, scorer: Scorer, name: str) -> None:
        if not isinstance(scorer, DenseScorer):
            raise ModelError(f"{name} gives whole rewards only. Rewards of tokens need {POLICY_HEAD}.")
        scorer.token_rewards([])
        self.scorer = scorer
        self.divided: dict[Conversation, TokenRewards] = {}
        """The divided rewards of the last call of `score`."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return rewards in the order of the conversations; see `Scorer.score`."""
        found = self.scorer.token_rewards(conversations)
        self.divided = {talk: each for talk, each in zip(conversations, found, strict=True) if each is not None}
        return [None if each is None else each.reward for each in found]


class ErrorScorer:
    """Scorer that also keeps the standard error of each reward; its model has several reward heads."""

    def __init__(self, scorer: HybridScorer) -> None:
        self.scorer = scorer
        self.errors: dict[Conversation, float] = {}
        """The standard errors of the last call of `score`."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return rewards in the order of the conversations; see `Scorer.score`."""
        found = self.scorer.score_with_errors(conversations)
        self.errors = {talk: each[1] for talk, each in zip(conversations, found, strict=True) if each is not None}
        return [None if each is None else each[0] for each in found]


def with_errors(scorer: Scorer) -> Scorer:
    """Return the scorer, as an `ErrorScorer` if its rewards have standard errors."""
    return ErrorScorer(scorer) if isinstance(scorer, HybridScorer) and scorer.has_errors else scorer
