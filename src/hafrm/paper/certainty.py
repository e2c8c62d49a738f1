"""How certain reward models are, and how certain they should be: calibration on a study's test pairs.

A margin m of a Bradley-Terry model says that the chosen response is better with probability sigmoid(m). So the model is
sigmoid(|m|) certain of its choice, on average as often as it is right if it is calibrated.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hafrm.evaluation.scoring import PairScore
from hafrm.paper.measures import Scores, scored_by_all
from hafrm.stats import (
    Floats,
    accuracy,
    brier_score,
    expected_calibration_error,
    paired_bootstrap,
    stated_probability,
)

_RIVAL = "baseline"

_Seeds = Mapping[int, Sequence[PairScore]]


def certainties(scores: Scores) -> dict[str, dict[str, Any]]:
    """Measure the calibration of each row of each column.

    Returns:
        {COLUMN: {ROW: {"right", "stated", "ece", "brier", "brier_by_seed", "over"}}}. `right` and `stated` are the
        accuracy and the mean certainty of the choices. All are means over seeds, of the pairs with a score. `over` is
        the Brier score minus the baseline's, on the pairs and seeds of both: {"difference", "ci95"}, or None.
    """
    return {
        column: {
            row: _certainty(seeds) | {"over": _compared(seeds, rows[_RIVAL]) if row != _RIVAL else None}
            for row, seeds in rows.items()
        }
        for column, rows in scores.items()
        if _RIVAL in rows
    }


def _certainty(seeds: _Seeds) -> dict[str, Any]:
    margins = [np.array(list(_margins(scores).values())) for scores in seeds.values()]
    stated = [stated_probability(each) for each in margins]
    briers = [brier_score(each) for each in stated]
    return {
        "right": statistics.fmean(accuracy(each).value for each in margins),
        "stated": statistics.fmean(float(np.maximum(each, 1 - each).mean()) for each in stated),
        "ece": statistics.fmean(map(expected_calibration_error, stated)),
        "brier": statistics.fmean(briers),
        "brier_by_seed": briers,
    }


def _compared(ours: _Seeds, theirs: _Seeds) -> dict[str, Any] | None:
    """Compare the Brier scores of two rows, with an interval over prompts of the seeds' mean."""
    sides = [{seed: side[seed] for seed in ours if seed in theirs} for side in (ours, theirs)]
    pairs = sorted(scored_by_all(sides))
    if not pairs:
        return None
    groups = {score.id: score.group for scores in sides[0].values() for score in scores}
    a, b = (_squares(map(_margins, side.values()), pairs) for side in sides)
    test = paired_bootstrap(a, b, [groups[pair] for pair in pairs])
    return {"difference": test.difference, "ci95": test.interval}


def _margins(scores: Sequence[PairScore]) -> dict[str, float]:
    return {score.id: score.margin for score in scores if score.margin is not None}


def _squares(seeds: Iterable[Mapping[str, float]], pairs: Sequence[str]) -> Floats:
    """Return the squared error of each pair's stated probability, averaged over seeds."""
    stated = [stated_probability([margins[pair] for pair in pairs]) for margins in seeds]
    squares: Floats = np.mean([(1 - each) ** 2 for each in stated], axis=0)
    return squares
