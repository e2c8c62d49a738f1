"""The bins of the page's plots: those of `hafrm.stats`, each with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hafrm import stats
from hafrm.stats import Floats

_Z95 = 1.959964  # the 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class PlottedBin:
    """The pairs whose value is in [low, high), or in [low, high] for the last bin."""

    low: float
    high: float
    n: int
    accuracy: float
    confidence: float | None = None
    """Mean stated confidence, if the bins are of confidence."""

    @property
    def ci95(self) -> tuple[float, float]:
        """Return the interval of the accuracy, treating the bin's pairs as independent."""
        return wilson_interval(self.accuracy, self.n)


def confidence_bins(margins: Floats) -> list[PlottedBin]:
    """Bin accuracy by the confidence of a Bradley-Terry model, sigma(|margin|), in ten bins of equal width.

    Args:
        margins: [N], N > 0.
    """
    bins = stats.calibration_bins(stats.stated_probability(margins))
    return [PlottedBin(each.low, each.high, each.n, each.accuracy, each.confidence) for each in bins]


def equal_count_bins(margins: Floats, by: Floats, count: int) -> list[PlottedBin]:
    """Bin accuracy by `by`, in at most `count` bins of about equally many pairs.

    Args:
        margins: [N], N > 0.
        by: Values that define the bins, [N].
        count: Maximum number of bins.
    """
    bins = stats.accuracy_by_bin(margins, by, quantiles=count)
    return [PlottedBin(b.low, b.high, b.accuracy.n, b.accuracy.value) for b in bins if b.accuracy]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share of `n` independent pairs (Wilson, 1927); it stays within [0, 1].

    The share may count ties as halves, which SciPy's interval functions refuse, since they are made for whole counts.
    """
    spread = _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
