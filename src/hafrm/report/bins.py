"""The bins that the page plots: those of `hafrm.stats`, each with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hafrm import stats
from hafrm.stats import Floats

__all__ = ["PlottedBin", "confidence_bins", "equal_count_bins", "wilson_interval"]

_Z95 = 1.959964  # the normal quantile of 97.5%


@dataclass(frozen=True)
class PlottedBin:
    """The pairs whose value lies in [low, high), in the last bin in [low, high]."""

    low: float
    high: float
    n: int
    accuracy: float
    confidence: float | None = None
    """Mean stated confidence, where the bins are of confidence."""

    @property
    def ci95(self) -> tuple[float, float]:
        """The interval of the accuracy, as if the bin's pairs were independent."""
        return wilson_interval(self.accuracy, self.n)


def confidence_bins(margins: Floats) -> list[PlottedBin]:
    """Accuracy by the confidence that a Bradley-Terry model states, sigma(|margin|), in ten bins of equal width.

    Args:
        margins: [N], N > 0.
    """
    bins = stats.calibration_bins(stats.stated_probability(margins))
    return [PlottedBin(each.low, each.high, each.n, each.accuracy, each.confidence) for each in bins]


def equal_count_bins(margins: Floats, by: Floats, count: int) -> list[PlottedBin]:
    """Accuracy in at most `count` bins of `by` that hold about equally many pairs.

    Args:
        margins: [N], N > 0.
        by: What to slice by, [N].
        count: How many bins at most.
    """
    bins = stats.accuracy_by_bin(margins, by, quantiles=count)
    return [PlottedBin(b.low, b.high, b.accuracy.n, b.accuracy.value) for b in bins if b.accuracy]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `n` independent pairs (Wilson, 1927); it stays within [0, 1].

    The share may count ties as halves, which the interval functions of SciPy, made for whole counts, refuse.
    """
    spread = _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
