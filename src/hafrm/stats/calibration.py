"""Calibration of a model's confidence, and fits that improve it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from hafrm.stats.accuracies import hits
from hafrm.stats.checks import Floats, array, bin_index, probabilities


def stated_probability(margins: ArrayLike) -> Floats:
    """Return the probability of the chosen response in a Bradley-Terry model: sigmoid(margin), [N].

    Raises:
        ValueError: there are no margins, or one is NaN.
    """
    return np.asarray(special.expit(array(margins=margins)))


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs with similar confidence: one point of a reliability diagram."""

    low: float
    high: float
    """Confidence is in [low, high); in the last bin in [low, high]."""
    n: int
    """Number of pairs, at least 1."""
    confidence: float
    """Mean confidence of the pairs."""
    accuracy: float
    """Accuracy of the pairs."""


def calibration_bins(probabilities_of_chosen: ArrayLike, *, bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Compare confidence and accuracy.

    A pair's label is always "chosen wins", so P(chosen wins) itself can't be calibrated: there is only one class.
    Instead, a model predicts a winner with confidence max(p, 1 - p), and is right if p > .5 (half right at .5).

    Args:
        probabilities_of_chosen: P(chosen wins) of each pair, [N].
        bins: Number of bins of equal width from .5 to 1; empty ones are left out.

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
    """Compute the mean gap between confidence and accuracy over bins, weighted by pairs; see `calibration_bins`.

    Raises:
        ValueError: as in `calibration_bins`.
    """
    found = calibration_bins(probabilities_of_chosen, bins=bins)
    return sum(each.n * abs(each.accuracy - each.confidence) for each in found) / sum(each.n for each in found)


def brier_score(probabilities_of_chosen: ArrayLike) -> float:
    """Compute the mean of (1 - P(chosen wins))^2.

    Raises:
        ValueError: there are no probabilities, or one is not between 0 and 1.
    """
    p = probabilities(probabilities_of_chosen=probabilities_of_chosen)
    return float(np.square(1 - p).mean())


def fit_temperature(margins: ArrayLike) -> float:
    """Fit the temperature T > 0 that maximises the likelihood sigmoid(margin / T) of "chosen wins".

    Returns:
        T, or its limit if there is no best one: inf if the mean margin is not positive (no confidence is best), 0 if no
        margin is negative (more confidence is always better).

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
        """Return the derivative of the log-likelihood in 1 / T, which decreases in 1 / T."""
        return float((scaled * special.expit(-sharpness * scaled)).sum())

    high = 1.0
    while slope(high) > 0:
        high *= 2
    return float(np.abs(margins).mean() / optimize.brentq(slope, 0, high))


def fit_combination(margins: ArrayLike) -> float | None:
    """Fit the weight w >= 0 for which first margin + w * second margin best predicts that chosen wins.

    This is a logistic regression through the origin on both margins, with non-negative coefficients; w is their ratio.
    A standard normal prior on the coefficients, with margins scaled to unit root mean square, keeps w finite if the
    pairs are separable; it has about as much weight as one pair.

    Args:
        margins: Two margins per pair, [N, 2].

    Returns:
        w, or None if the first margin gets no weight, so that no finite w is best.

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
