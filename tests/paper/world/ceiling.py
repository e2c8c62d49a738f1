"""The accuracy that the oracle, and therefore any model, can reach on noisy labels."""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.pairs import PreferencePair
from hafrm.paper.world import PROFILES, oracle_reward

Rewards = Sequence[tuple[float, float]]
"""The oracle's rewards of each pair's chosen and rejected response."""


def oracle_rewards(pairs: Sequence[PreferencePair], name: str) -> Rewards:
    """Score pairs by the oracle of set `name`."""
    conversations = [pair.conversations for pair in pairs]
    return [(oracle_reward(chosen, name), oracle_reward(rejected, name)) for chosen, rejected in conversations]


def oracle_accuracy(rewards: Rewards, name: str) -> tuple[float, float]:
    """The oracle's accuracy on the labels of set `name`, ties counting one half, and its expected accuracy.

    The latter is the Bayes ceiling: the mean of max(p, 1 - p) over the pairs' Bradley-Terry probabilities p.
    """
    annotator = PROFILES[name].annotator
    hits = sum(0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in rewards)
    ceiling = sum(annotator.preference(abs(chosen - rejected)) for chosen, rejected in rewards)
    return hits / len(rewards), ceiling / len(rewards)
