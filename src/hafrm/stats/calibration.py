"""How far a model's confidence can be trusted, and fits that improve it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from hafrm.stats.accuracies import hits
from hafrm.stats.checks import Floats, array, bin_index, probabilities

__all__ = [
    "CalibrationBin",
    "brier_score",
    "calibration_bins",
    "expected_calibration_error",
    "fit_combination",
    "fit_temperature",
    "stated_probability",
]


def stated_probability(margins: ArrayLike) -> Floats:
    """The probability that a Bradley-Terry model states for the better response: sigmoid(margin), [N].

    Raises:
        ValueError: there are no margins, or one is NaN.
    """
    return np.asarray(special.expit(array(margins=margins)))


@dataclass(frozen=True)
class CalibrationBin:
    """The pairs that a model is about equally sure of: one point of a reliability diagram."""

    low: float
    high: float
    """Confidence is in [low, high), in the last bin in [low, high]."""
    n: int
    """Pairs; bins without any are left out."""
    confidence: float
    """Mean confidence of the pairs."""
    accuracy: float
    """Their accuracy."""


def calibration_bins(probabilities_of_chosen: ArrayLike, *, bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Confidence against accuracy.

    A pair's label is always "chosen wins", so calibration of P(chosen wins) itself would see one class only. What a
    model says of a pair is a winner, with confidence max(p, 1 - p), and it is right if p > .5 (half right at .5).
    Bins are of equal width from .5 to 1.

    Args:
        probabilities_of_chosen: P(chosen wins) of each pair, [N].
        bins: How many bins.

    Raises:
        ValueError: there are no probabilities, one is not between 0 and 1, or bins is not positive.
    """
    p = probabilities(probabilities_of_chosen=probabilities_of_chosen)
    if bins < 1:
        raise ValueError(f"bins must be positive, got {bins}")
    confidence, right = np.maximum(p, 1 - p), hits(p - 0.5)
    limits = np.linspace(0.5, 1, bins + 1)
    index = bin_index(confidence, limits)
    return tuple(
        CalibrationBin(
            low=float(limits[i]),
            high=float(limits[i + 1]),
            n=int((index == i).sum()),
            confidence=float(confidence[index == i].mean()),
            accuracy=float(right[index == i].mean()),
        )
        for i in np.unique(index)
    )


def expected_calibration_error(probabilities_of_chosen: ArrayLike, *, bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the pairs' bins; see `calibration_bins`.

    Raises:
        ValueError: as in `calibration_bins`.
    """
    found = calibration_bins(probabilities_of_chosen, bins=bins)
    return sum(each.n * abs(each.accuracy - each.confidence) for each in found) / sum(each.n for each in found)


def brier_score(probabilities_of_chosen: ArrayLike) -> float:
    """Mean of (1 - P(chosen wins))^2.

    Raises:
        ValueError: there are no probabilities, or one is not between 0 and 1.
    """
    p = probabilities(probabilities_of_chosen=probabilities_of_chosen)
    return float(np.square(1 - p).mean())


def fit_temperature(margins: ArrayLike) -> float:
    """The temperature T > 0 that makes sigmoid(margin / T) most likely, the label being always "chosen wins".

    Returns:
        T; or the limit that the likelihood rises towards: inf if the mean margin is not positive (no confidence is
        better than any), else 0 if no margin is negative (more confidence is always better).

    Raises:
        ValueError: there are no margins, or one is not finite.
    """
    margins = array(margins=margins)
    if not np.isfinite(margins).all():
        raise ValueError("margins must be finite")
    if margins.mean() <= 0:
        return float("inf")
    if margins.min() >= 0:
        return 0.0
    scaled = margins / np.abs(margins).mean()

    def slope(sharpness: float) -> float:
        """The derivative of the log-likelihood in 1 / T, which falls as 1 / T grows."""
        return float((scaled * special.expit(-sharpness * scaled)).sum())

    high = 1.0
    while slope(high) > 0:
        high *= 2
    return float(np.abs(margins).mean() / optimize.brentq(slope, 0, high))


def fit_combination(margins: ArrayLike) -> float | None:
    """The weight w >= 0 with which (first margin + w * second margin) best predicts that chosen wins.

    Fitted by logistic regression through the origin on both margins, with coefficients of at least 0; w is their
    ratio. A standard normal prior on the coefficients of the margins in units of their root mean square keeps w finite
    where the pairs can be told apart without error; it weighs as much as about one pair.

    Args:
        margins: Two margins a pair, [N, 2].

    Returns:
        w, or None if the first margin earns no weight, so that no finite w is best.

    Raises:
        ValueError: the shape is not [N, 2] with N > 0, or a margin is not finite.
    """
    margins = np.asarray(margins, dtype=np.float64)
    if margins.ndim != 2 or margins.shape[1] != 2 or not len(margins) or not np.isfinite(margins).all():
        raise ValueError(f"margins must be finite numbers of shape [N, 2], got shape {list(margins.shape)}")
    units = np.sqrt(np.square(margins).mean(axis=0))
    scaled = margins / np.where(units > 0, units, 1)

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        logits = scaled @ coefficients
        value = -special.log_expit(logits).sum() + np.square(coefficients).sum() / 2
        return value, coefficients - special.expit(-logits) @ scaled

    first, second = optimize.minimize(loss, np.ones(2), jac=True, bounds=[(0, None)] * 2).x
    if first <= 0 or units[0] == 0:
        return None
    return float(second / first * units[0] / units[1]) if units[1] > 0 else 0.0
