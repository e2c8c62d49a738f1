"""A bag-of-words reward model: logistic regression on differences of word counts, as a baseline without a backbone.

It reads only responses. Its penalty is chosen on validation pairs, as the models' learning rates are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import optimize, sparse
from scipy.special import expit

from hafrm.pairs import Conversation, Message, PreferencePair
from hafrm.stats import Floats, accuracy

_WORD = re.compile(r"\w+|[^\w\s]")
_LEAST = 3
"""Minimum number of pairs in which a word must occur to be used."""
_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Candidate weights of the squared norm; chosen on validation pairs."""


class BagOfWords:
    """Scores a response by its words; implements `Scorer`.

    Args:
        weights: Weight by lower-cased word.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return the sum over words of weight times log(1 + count) for each response."""
        return [
            float(sum(self.weights.get(word, 0.0) * np.log1p(n) for word, n in _counts(each.response).items()))
            for each in conversations
        ]


def fit_words(train: Sequence[PreferencePair], validation: Sequence[PreferencePair]) -> BagOfWords:
    """Fit the weights by the Bradley-Terry loss (Eq. 2), with the penalty that is best on validation pairs.

    Args:
        train: Pairs to fit.
        validation: Pairs that choose the penalty; ties go to the larger one.
    """
    differences = [_difference(pair) for pair in train]
    seen = Counter(word for each in differences for word in each)
    places = {word: place for place, word in enumerate(sorted(w for w, n in seen.items() if n >= _LEAST))}
    x, held_out = (_matrix(rows, places) for rows in (differences, map(_difference, validation)))
    best = best_fit(x, held_out, _PENALTIES)
    return BagOfWords({word: float(best[place]) for word, place in places.items()})


def best_fit(x: sparse.csr_array | Floats, held_out: sparse.csr_array | Floats, penalties: Sequence[float]) -> Floats:
    """Return the weights, [W], of the logistic regression on pairs' differences that is best on held-out ones.

    Args:
        x: Chosen minus rejected of the pairs to fit, [B, W].
        held_out: The same of the pairs that choose the penalty.
        penalties: Candidate weights of the squared norm; ties go to the larger one.
    """
    fits = [_fit(x, penalty) for penalty in sorted(penalties, reverse=True)]
    return max(fits, key=lambda weights: accuracy(held_out @ weights).value)  # of equals the first: the larger penalty


def _counts(response: Sequence[Message]) -> Counter[str]:
    return Counter(_WORD.findall("\n".join(turn.content for turn in response).lower()))


def _difference(pair: PreferencePair) -> dict[str, float]:
    chosen, rejected = _counts(pair.chosen), _counts(pair.rejected)
    found = {word: float(np.log1p(chosen[word]) - np.log1p(rejected[word])) for word in chosen | rejected}
    return {word: value for word, value in found.items() if value}


def _matrix(rows: Sequence[dict[str, float]] | map[dict[str, float]], places: dict[str, int]) -> sparse.csr_array:
    """Return the pairs' differences, [B, words]; words unknown from training are ignored."""
    kept = [{places[word]: value for word, value in row.items() if word in places} for row in rows]
    ends = np.cumsum([0, *map(len, kept)])
    columns = np.fromiter((place for row in kept for place in row), dtype=np.int64, count=ends[-1])
    values = np.fromiter((value for row in kept for value in row.values()), dtype=np.float64, count=ends[-1])
    return sparse.csr_array((values, columns, ends), shape=(len(kept), len(places)))


def _fit(x: sparse.csr_array | Floats, penalty: float) -> Floats:
    """Minimise the summed loss plus penalty / 2 times the squared norm of the weights, by L-BFGS."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = x @ weights
        value = np.logaddexp(0, -margins).sum() + penalty / 2 * weights @ weights
        return float(value), -(x.T @ expit(-margins)) + penalty * weights

    found: Floats = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return found
