"""Compute how the reward of the selected response grows with n: pure functions on NumPy arrays.

Shape letters: R distinct responses to a prompt, N draws of them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from hafrm.stats import Floats


def best_of_n_curve(scores: ArrayLike, values: ArrayLike, counts: ArrayLike) -> Floats:
    """Return the expected value of the best of n by score, for every n up to N, [N].

    This is the mean over all subsets of n of the N draws, an unbiased estimate from one sample of N: sorted by score,
    draw i (from 1) is the best of C(N - i, n - 1) of the C(N, n) subsets (Stiennon et al., 2020, take subsets too).
    Ties in score are broken at random.

    Args:
        scores: Scores that select, [R].
        values: Values to average, such as the true reward, [R].
        counts: How often each response was drawn, positive integers, [R].

    Raises:
        ValueError: the shapes are not the same [R] with R > 0, or a count is below 1.
    """
    scores, values = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    counts = np.asarray(counts, dtype=np.int64)
    if scores.ndim != 1 or not scores.size or not scores.shape == values.shape == counts.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (scores, values, counts))
        raise ValueError(f"scores, values and counts must all be [R], got {shapes}")
    if (counts < 1).any():
        raise ValueError(f"counts must be at least 1, got {counts.min()}")
    _, tied = np.unique(-scores, return_inverse=True)  # best first; equal scores share a rank
    draws = np.bincount(tied, weights=counts).astype(np.int64)
    means = np.bincount(tied, weights=counts * values) / draws
    return np.asarray(_best_shares(int(counts.sum())) @ np.repeat(means, draws), dtype=np.float64)


@lru_cache(maxsize=64)
def _best_shares(draws: int) -> Floats:
    """Return the share of subsets of n of N draws whose best is draw i, [n, i], with i in order from the best."""
    return np.array(
        [[math.comb(draws - 1 - i, n - 1) / math.comb(draws, n) for i in range(draws)] for n in range(1, draws + 1)]
    )


def kl_bound(n: int) -> float:
    """Return the upper bound on KL(best-of-n || policy) in nats: log n - (n - 1) / n.

    Exact if no single response has a noticeable probability (Beirami et al., 2024).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n
