"""Rewards by name: of a model, or the true rewards of a simulated set such as `world/NAME`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from hafrm.data.simulated import SimulatedReward, is_simulated
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import Scorer


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
