"""How well the oracle, and so any model, can do on noisy labels."""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.pairs import PreferencePair
from hafrm.paper.world import PROFILES, oracle_reward


def oracle_accuracy(pairs: Sequence[PreferencePair], name: str) -> tuple[float, float]:
    """The oracle's accuracy on the labels of set `name`, ties counting one half, and its expected accuracy.

    The latter is the Bayes ceiling: the mean of max(p, 1 - p) over the pairs' Bradley-Terry probabilities p.
    """
    annotator = PROFILES[name].annotator
    hits, ceiling = 0.0, 0.0
    for pair in pairs:
        chosen, rejected = (oracle_reward(conversation, name) for conversation in pair.conversations)
        hits += 0.5 if chosen == rejected else float(chosen > rejected)
        ceiling += annotator.preference(abs(chosen - rejected))
    return hits / len(pairs), ceiling / len(pairs)
