"""Does the variance of perplexities predict where DPO beats the baseline (the paper's Table 7)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hafrm.errors import DataError
from hafrm.paper.probes.perplexity import PerplexityVariance
from hafrm.stats import Correlation, pearson

_SMALL = 10


@dataclass(frozen=True, kw_only=True)
class VarianceCorrelation:
    """Table 7: Pearson correlations over data sets of perplexity variances with accuracy(DPO) - accuracy(baseline)."""

    data: list[str]
    accuracy_differences: list[float]
    """accuracy(DPO) - accuracy(baseline) on each data set, as shares."""
    pp_win: Correlation
    pp_lose: Correlation
    pp_difference: Correlation
    """Correlation with the variance of pp_win - pp_lose, our reading of the paper's undefined "pp_win - pp_lose"."""
    variances: list[dict[str, Any]]

    @property
    def warning(self) -> str:
        """Caveats to show with the correlations; empty if there are enough data sets."""
        n = len(self.data)
        if n >= _SMALL:
            return ""
        return (
            f"n = {n} data sets: a correlation of so few points has a wide interval, its p-value supposes normal "
            "variables, and three columns are three tests."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self) | {"n": len(self.data), "warning": self.warning}


def variance_correlation(
    variances: Mapping[str, PerplexityVariance], accuracies: Mapping[str, tuple[float, float]]
) -> VarianceCorrelation:
    """Correlate perplexity variances with DPO's gain over the baseline.

    Args:
        variances: Perplexities of each data set under one backbone.
        accuracies: Accuracies of DPO and of the baseline on the same data sets, as shares.

    Raises:
        DataError: the data sets differ, are fewer than three, or have no variation.
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
