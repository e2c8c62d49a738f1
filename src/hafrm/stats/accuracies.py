"""Accuracy of margins, overall and in bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hafrm.stats.checks import Floats, array, arrays, bin_index


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs whose chosen response scores higher."""

    n: int
    """Number of pairs."""
    value: float
    """Wins plus half the ties, divided by n."""
    ties: int
    """Number of pairs with equal scores."""


def hits(margins: ArrayLike) -> Floats:
    """Return each pair's contribution to the accuracy, [N]: 1 for a margin above 0, 0.5 at 0, 0 below.

    Raises:
        ValueError: there are no margins, or one is NaN.
    """
    return (np.sign(array(margins=margins)) + 1) / 2


def accuracy(margins: ArrayLike) -> Accuracy:
    """Compute the accuracy of margins, [N]; ties count one half.

    Raises:
        ValueError: there are no margins, or one is NaN.
    """
    each = hits(margins)
    return Accuracy(n=len(each), value=float(each.mean()), ties=int((each == 0.5).sum()))


@dataclass(frozen=True)
class AccuracyBin:
    """Accuracy of the pairs with a value in [low, high); the last bin is [low, high]."""

    low: float
    high: float
    accuracy: Accuracy | None
    """None if the bin is empty."""


def accuracy_by_bin(
    margins: ArrayLike, by: ArrayLike, *, edges: Sequence[float] | None = None, quantiles: int | None = None
) -> tuple[AccuracyBin, ...]:
    """Compute accuracy by bins of another value of the pairs, such as their difference in length.

    Args:
        margins: Margins, [N].
        by: The value to bin by, [N].
        edges: Increasing edges of the bins; may start at -inf and end at inf.
        quantiles: Number of bins of about equal size, instead of edges; there are fewer if many values are equal.

    Raises:
        ValueError: not exactly one of edges and quantiles is given, the edges don't increase, a value is outside them,
            or the arrays are empty, of different lengths or contain NaN.
    """
    margins, by = arrays(margins=margins, by=by)
    if edges is not None and quantiles is None:
        limits = _checked_edges(by, edges)
    elif quantiles is not None and edges is None:
        limits = _quantile_edges(by, quantiles)
    else:
        raise ValueError("give either edges or quantiles")
    index = bin_index(by, limits)
    return tuple(
        AccuracyBin(float(limits[i]), float(limits[i + 1]), accuracy(margins[index == i]) if i in index else None)
        for i in range(len(limits) - 1)
    )


def _quantile_edges(values: Floats, bins: int) -> Floats:
    if bins < 1:
        raise ValueError(f"quantiles must be positive, got {bins}")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)  # one bin if all values are equal


def _checked_edges(values: Floats, edges: Sequence[float]) -> Floats:
    limits = np.asarray(edges, dtype=np.float64)
    if limits.ndim != 1 or len(limits) < 2 or not (np.diff(limits) > 0).all():
        raise ValueError(f"edges must be two or more increasing numbers, got {edges}")
    if values.min() < limits[0] or values.max() > limits[-1]:
        raise ValueError(f"values range from {values.min()} to {values.max()}, outside the edges {edges}")
    return limits
