"""Token-wise perplexity of responses and its variance over a data set (the paper's Table 6).

The paper's pp is -log Prob(sequence) / Length(sequence): a mean negative log-prob in nats a token, without an
exponential. The sequence here is the response, given its prompt, with the token that ends its turn; the paper does not
say whether the prompt counts. Variances are sample variances (ddof = 1), over the pairs whose two responses fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hafrm.errors import DataError
from hafrm.evaluation.scoring import PairScore

__all__ = ["PerplexityVariance", "perplexity_variance"]


@dataclass(frozen=True, kw_only=True)
class PerplexityVariance:
    """A cell of Table 6: the perplexities of one data set under one model, in nats a token."""

    model: str
    data: str
    n: int
    """Pairs that count: both responses were read whole."""
    unscored: dict[str, int]
    """Pairs left out, by reason: "overlong", or "refused_by_template"."""
    mean_win: float
    mean_lose: float
    var_win: float
    """Sample variance of pp of the better responses."""
    var_lose: float
    var_difference: float
    """Sample variance of pp_win - pp_lose over pairs: the third column of Table 7."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def perplexity_variance(scores: Sequence[PairScore]) -> PerplexityVariance:
    """Perplexities of a data set from the scores of its pairs.

    Args:
        scores: Scores of one model on one data set whose rewards are mean log-probs a response token, as a
            `load_log_prob_scorer` gives them per token.

    Raises:
        DataError: fewer than two pairs were scored, so that there is no variance.
    """
    scored = [score for score in scores if score.reward_chosen is not None and score.reward_rejected is not None]
    if len(scored) < 2:
        raise DataError(
            f"{len(scored)} of {len(scores)} pairs have a perplexity for both responses; a variance needs two. "
            "Raise `score.max_length`, or give more pairs."
        )
    win = -np.array([score.reward_chosen for score in scored], dtype=np.float64)
    lose = -np.array([score.reward_rejected for score in scored], dtype=np.float64)
    return PerplexityVariance(
        model=scored[0].model,
        data=scored[0].data,
        n=len(scored),
        unscored=dict(Counter(score.unscored for score in scores if score.unscored)),
        mean_win=float(win.mean()),
        mean_lose=float(lose.mean()),
        var_win=float(win.var(ddof=1)),
        var_lose=float(lose.var(ddof=1)),
        var_difference=float((win - lose).var(ddof=1)),
    )
