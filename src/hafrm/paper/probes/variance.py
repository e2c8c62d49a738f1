"""Whether the spread of perplexities foretells where DPO beats the baseline (the paper's Table 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hafrm.errors import DataError
from hafrm.paper.probes.perplexity import PerplexityVariance
from hafrm.stats import Correlation, pearson

__all__ = ["VarianceCorrelation", "variance_correlation"]

_SMALL = 10


@dataclass(frozen=True, kw_only=True)
class VarianceCorrelation:
    """Table 7: Pearson's correlation over data sets of variances with accuracy(DPO) - accuracy(baseline)."""

    data: list[str]
    accuracy_differences: list[float]
    """Accuracy of DPO less that of the baseline on each data set, as shares."""
    pp_win: Correlation
    pp_lose: Correlation
    pp_difference: Correlation
    """With the variance of pp_win - pp_lose. The paper's column is called "pp_win - pp_lose" and nothing more."""
    variances: list[dict[str, Any]]

    @property
    def warning(self) -> str:
        """What to be wary of; empty where the data sets are many."""
        n = len(self.data)
        if n >= _SMALL:
            return ""
        return (
            f"n = {n} data sets: a correlation of so few points has a wide interval, its p-value supposes normal "
            "variables, and three columns are three tests."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"n": len(self.data), "warning": self.warning}


def variance_correlation(
    variances: Mapping[str, PerplexityVariance], accuracies: Mapping[str, tuple[float, float]]
) -> VarianceCorrelation:
    """Correlate variances of perplexity with what DPO gains over the baseline.

    Args:
        variances: The perplexities of each data set under one backbone.
        accuracies: For the same data sets the accuracies of DPO and of the baseline, as shares.

    Raises:
        DataError: the data sets are not the same, fewer than three, or nothing varies over them.
    """
    if set(variances) != set(accuracies):
        odd = sorted(set(variances) ^ set(accuracies))
        raise DataError(f"perplexities and accuracies are of different data sets: {', '.join(odd)} in one alone.")
    names = list(variances)
    gains = [accuracies[name][0] - accuracies[name][1] for name in names]
    cells = [variances[name] for name in names]
    try:
        win, lose, difference = (
            pearson([getattr(cell, field) for cell in cells], gains)
            for field in ("var_win", "var_lose", "var_difference")
        )
    except ValueError as error:
        raise DataError(f"Variances and accuracies of {len(names)} data sets can't be correlated: {error}.") from error
    return VarianceCorrelation(
        data=names,
        accuracy_differences=gains,
        pp_win=win,
        pp_lose=lose,
        pp_difference=difference,
        variances=[cell.as_dict() for cell in cells],
    )
