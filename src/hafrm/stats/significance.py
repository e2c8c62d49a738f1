"""Intervals of means, tests between models on the same pairs, and correction for multiple tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from hafrm.stats.checks import Floats, arrays, probabilities

FEWEST_GROUPS = 6
"""Minimum number of groups for an interval. Five groups all differ in the same direction by chance in 1 of 16 cases
(two-sided sign test), so nothing is significant, but resampling would still give an interval, often a narrow one.
"""

_DRAWS_AT_ONCE = 2**20
"""Number of drawn groups in memory while resampling: 8 MiB of indices."""


def few_groups(groups: ArrayLike) -> bool:
    """Return whether there are fewer than `FEWEST_GROUPS` distinct groups in `groups`, [N]."""
    return len(np.unique(np.asarray(groups))) < FEWEST_GROUPS


class Interval(NamedTuple):
    """A confidence interval; in JSON [low, high]."""

    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike, groups: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Compute a percentile bootstrap interval of the mean, resampling whole groups.

    Args:
        values: The values, [N]; for an accuracy `hits(margins)`.
        groups: Group of each value, [N], of any sortable type; for pairs the name of their prompt.
        level: Confidence level.
        resamples: Number of resamples, each of as many groups as there are, with replacement.
        seed: Seed of the draws; the same arguments give the same interval.

    Returns:
        The interval, or None if there are fewer than `FEWEST_GROUPS` groups.

    Raises:
        ValueError: there are no values, the lengths differ, a value is NaN, or level or resamples is out of range.
    """
    (values,) = arrays(values=values)
    means = resampled_means(values, groups, level=level, resamples=resamples, seed=seed)
    return None if few_groups(groups) else _percentiles(means, level)


@dataclass(frozen=True)
class PairedDifference:
    """Difference between the means of a and b on the same pairs."""

    difference: float
    """Mean of a minus mean of b."""
    interval: Interval | None
    """None if there are fewer than `FEWEST_GROUPS` groups."""
    p_value: float
    """Two-sided p-value; below 1 - level if the interval excludes 0, up to rounding by the number of resamples."""


def paired_bootstrap(
    values_a: ArrayLike,
    values_b: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models on the same pairs, resampling whole groups.

    The p-value is twice the share of resampled differences on the rarer side of 0. Zeros count on both sides, and the
    observed data count as one more resample, so the p-value is never 0. With fewer than `FEWEST_GROUPS` groups it is 1.

    Args:
        values_a: Values of the first model, [N]; for accuracies `hits(margins)`.
        values_b: Values of the second model on the same pairs, [N].
        groups: Group of each pair, [N].
        level: Confidence level.
        resamples: Number of resamples, each of as many groups as there are, with replacement.
        seed: Seed of the draws.

    Raises:
        ValueError: as in `bootstrap_interval`.
    """
    values_a, values_b = arrays(values_a=values_a, values_b=values_b)
    difference = values_a - values_b
    means = resampled_means(difference, groups, level=level, resamples=resamples, seed=seed)
    few = few_groups(groups)
    return PairedDifference(
        difference=float(_cancelled(difference.mean(), difference)),
        interval=None if few else _percentiles(means, level),
        p_value=1.0 if few else p_of_draws(means),
    )


def p_of_draws(differences: Floats) -> float:
    """Return the two-sided p-value of resampled differences, [R]; see `paired_bootstrap`."""
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))


def mcnemar_test(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return the exact two-sided p-value of McNemar's test for equal accuracy of two models on the same pairs.

    Only pairs that exactly one model gets right count. They are assumed to be independent; if prompts repeat, use
    `paired_bootstrap` instead.

    Args:
        correct_a: Whether the first model is right, boolean, [N].
        correct_b: Whether the second model is right on the same pairs, boolean, [N].

    Raises:
        ValueError: the arrays are empty, of different lengths, or not boolean.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"expected boolean arrays, got {a.dtype} and {b.dtype}")
    arrays(correct_a=a, correct_b=b)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy_stats.binomtest(only_a, only_a + only_b).pvalue)


def holm_correction(p_values: ArrayLike) -> Floats:
    """Adjust the p-values of several tests to bound the chance of any false positive by the level (Holm, 1979).

    Raises:
        ValueError: there are no p-values, or one is not between 0 and 1.
    """
    p = probabilities(p_values=p_values)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def resampled_means(
    values: Floats, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Floats:
    """Compute the means of resamples of whole groups, [R].

    The same groups, number and seed give the same draws, so two statistics of the same items can be paired.

    Args:
        values: The values, [N].
        groups: Group of each value, [N], of any sortable type.
        resamples: R, the number of resamples, each of as many groups as there are, with replacement.
        seed: Seed of the draws.
        level: Confidence level; only validated.

    Raises:
        ValueError: the lengths differ, or level or resamples is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be positive, got {resamples}")
    index, size = group_index(values, groups)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    means = [sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1) for drawn in group_draws(size, resamples, seed)]
    return _cancelled(np.concatenate(means), values)


def _cancelled(means: ArrayLike, values: Floats) -> Floats:
    """Return means of values, with 0 where only rounding errors are left: thirds that cancel out leave 1e-19."""
    return np.where(np.abs(means) < 1e-12 * np.abs(values).max(), 0.0, means)


def group_index(values: Floats, groups: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """Return the number of each value's group, [N], and the number of groups, G.

    Raises:
        ValueError: there is not one group per value.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if index.shape != values.shape:
        raise ValueError(f"there are {len(values)} values, but groups has shape {list(index.shape)}")
    return index, len(names)


def group_draws(size: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield resamples of group numbers, [R, G], as many at a time as fit into memory."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // size)
    for start in range(0, resamples, at_once):
        yield generator.integers(size, size=(min(at_once, resamples - start), size))


def _percentiles(means: Floats, level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
