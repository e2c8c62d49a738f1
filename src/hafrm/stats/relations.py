"""Relations between two variables: correlations and linear fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from hafrm.stats.checks import Floats, arrays
from hafrm.stats.significance import Interval, group_draws, group_index


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient and the two-sided p-value of zero correlation."""

    value: float
    p_value: float


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Compute Pearson's correlation of x and y, [N] each.

    Raises:
        ValueError: there are fewer than three values, the lengths differ, one is not finite, or all x or y are equal.
    """
    return Correlation(*map(float, scipy_stats.pearsonr(*_variables(x, y))))


def pearson_interval(
    x: ArrayLike, y: ArrayLike, groups: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Compute a percentile bootstrap interval of Pearson's correlation, resampling whole groups.

    Draws in which x or y is constant have no correlation and are left out.

    Args:
        x: First variable, [N].
        y: Second variable, [N].
        groups: Group of each point, [N], of any sortable type.
        level: Confidence level.
        resamples: Number of resamples, each of as many groups as there are, with replacement.
        seed: Seed of the draws.

    Raises:
        ValueError: as in `pearson`; or the lengths differ, there is only one group, or level or resamples is out of
            range.
    """
    first, second = _variables(x, y)
    index, size = group_index(first, groups)
    if size < 2 or not 0 < level < 1 or resamples < 1:
        raise ValueError("an interval needs at least two groups and one resample, and a level between 0 and 1")
    a, b = ((values - values.mean()) / values.std() for values in (first, second))
    powers = (np.ones_like(a), a, b, a * a, b * b, a * b)
    sums = np.stack([np.bincount(index, weights=values) for values in powers], axis=1)  # [G, 6]
    found: list[Floats] = []
    for drawn in group_draws(size, resamples, seed):
        count, sx, sy, sxx, syy, sxy = sums[drawn].sum(axis=1).T
        spread = (count * sxx - sx**2) * (count * syy - sy**2)
        some = spread > 1e-12 * count**4
        found.append((count * sxy - sx * sy)[some] / np.sqrt(spread[some]))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Interval(max(float(low), -1.0), min(float(high), 1.0))


def spearman(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Compute Spearman's rank correlation of x and y, [N] each.

    Raises:
        ValueError: as in `pearson`.
    """
    return Correlation(*map(float, scipy_stats.spearmanr(*_variables(x, y))))


@dataclass(frozen=True)
class LinearFit:
    """The least-squares line y = intercept + slope * x."""

    slope: float
    intercept: float
    r_squared: float
    """Share of y's variance explained by the line."""
    p_value: float
    """Two-sided p-value of slope 0."""


def linear_fit(x: ArrayLike, y: ArrayLike) -> LinearFit:
    """Fit a line to points, [N] each.

    Raises:
        ValueError: as in `pearson`.
    """
    fit = scipy_stats.linregress(*_variables(x, y))
    return LinearFit(float(fit.slope), float(fit.intercept), float(fit.rvalue**2), float(fit.pvalue))


def _variables(x: ArrayLike, y: ArrayLike) -> tuple[Floats, ...]:
    variables = arrays(x=x, y=y)
    for name, values in zip("xy", variables, strict=True):
        if len(values) < 3 or not np.isfinite(values).all():
            raise ValueError(f"{name} must be three or more finite values")
        if (values == values[0]).all():
            raise ValueError(f"all values of {name} are {values[0]}, so it has no correlation or fit")
    return variables
