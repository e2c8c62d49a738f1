"""Best-of-N selection against a judge's ranking."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hafrm.stats.checks import Floats


def top_k_hits(scores: ArrayLike, ranks: ArrayLike, k: int) -> Floats:
    """Compute for each prompt the chance that the selected response is among the judge's best k (Tables 4 and 11).

    The mean over prompts is the top-k recall. The response with the highest score is selected. The result is the
    expectation under random tie-breaking: equal highest scores are selected with equal probability, and responses with
    equal ranks around place k share the remaining places equally. If all scores are equal, it is exactly k / N.

    Args:
        scores: Scores of N responses to each prompt, [Q, N].
        ranks: The judge's ranks of the same responses, best lowest, [Q, N]; inf for unranked ones.
        k: Number of top places that count.

    Returns:
        Chance between 0 and 1 per prompt, [Q], ready for `bootstrap_interval`.

    Raises:
        ValueError: the shapes are not the same [Q, N] with Q > 0, k is not between 1 and N, or a value is NaN.
    """
    scores, ranks = np.asarray(scores, dtype=np.float64), np.asarray(ranks, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != ranks.shape or not scores.size:
        raise ValueError(f"scores and ranks must both be [Q, N], got {list(scores.shape)} and {list(ranks.shape)}")
    random_recall(scores.shape[1], k)  # checks k
    if np.isnan(scores).any() or np.isnan(ranks).any():
        raise ValueError("scores and ranks must not be NaN")
    selected = scores == scores.max(axis=1, keepdims=True)
    better = (ranks[:, None, :] < ranks[:, :, None]).sum(axis=2)
    equal = (ranks[:, None, :] == ranks[:, :, None]).sum(axis=2)
    in_top_k = np.clip((k - better) / equal, 0, 1)
    return np.asarray((selected * in_top_k).sum(axis=1) / selected.sum(axis=1))


def random_recall(n: int, k: int) -> float:
    """Return the top-k recall of choosing one of n responses at random: k / n.

    Raises:
        ValueError: k is not between 1 and n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of responses, {n}; got {k}")
    return k / n
