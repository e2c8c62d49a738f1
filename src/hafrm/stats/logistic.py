"""Logistic regression on differences of pairs: the Bradley-Terry loss and a penalty on the weights' squared norm.

Shape letters: B pairs, W weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, sparse
from scipy.special import expit

from hafrm.stats.checks import Floats


def fit_pairs(x: sparse.csr_array | Floats, penalty: float) -> Floats:
    """Return the weights, [W], that minimise the summed loss plus penalty / 2 times their squared norm, by L-BFGS.

    Args:
        x: Chosen minus rejected, [B, W].
        penalty: The weight of the squared norm.
    """

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = x @ weights
        value = np.logaddexp(0, -margins).sum() + penalty / 2 * weights @ weights
        return float(value), -(x.T @ expit(-margins)) + penalty * weights

    found: Floats = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return found


def best_penalty(
    x: sparse.csr_array | Floats, held_out: sparse.csr_array | Floats, penalties: Sequence[float]
) -> tuple[float, Floats]:
    """Return the penalty with which a fit has the lowest loss on held-out pairs, and the weights of that fit, [W].

    The loss is that of the fit, because accuracies of so few pairs differ by chance: by them a penalty can win whose
    margins are far too large.

    Args:
        x: Chosen minus rejected of the pairs to fit, [B, W].
        held_out: The same for the pairs on which the penalty is chosen.
        penalties: Candidates; ties go to the larger one.
    """
    fits = [(penalty, fit_pairs(x, penalty)) for penalty in sorted(penalties, reverse=True)]
    return min(fits, key=lambda fit: float(np.logaddexp(0, -(held_out @ fit[1])).mean()))
