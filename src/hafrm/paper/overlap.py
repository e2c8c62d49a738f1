"""Exclude test pairs whose prompts a run was trained on: data sets from the same source share prompts.

Each set's own splits are disjoint, but a model tested on another set, or trained on a mixture, may have seen a test
prompt elsewhere. Such pairs are excluded. Overlap is checked against whole sets, so that runs on parts of them are
tested on the same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.evaluation.scoring import PairScore
from hafrm.paper.drawing import pairs_of
from hafrm.paper.scales import Scale


def unseen(scale: Scale, trained_on: Sequence[str], scores: Sequence[PairScore]) -> list[PairScore]:
    """Return the scores of pairs whose prompt is in no training or validation pair of the run's sets.

    Args:
        scale: Locations of the sets.
        trained_on: Paper names of the run's sets.
        scores: A run's scores on test pairs.
    """
    seen: frozenset[str] = frozenset().union(
        *(
            (pair.group for pair in pairs_of(getattr(scale.sets[name], split), split))
            for name in trained_on
            for split in _SEEN_IN_TRAINING
        )
    )
    return [score for score in scores if score.group not in seen]


_SEEN_IN_TRAINING = ("train", "validation")
