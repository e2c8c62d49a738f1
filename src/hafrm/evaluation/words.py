"""A bag-of-words reward model: logistic regression on differences of word counts, as a baseline without a backbone.

It reads only responses. In the study it is fitted on training pairs, with a penalty chosen on validation pairs like the
models' learning rates; in an evaluation, it is fitted on the other folds of the evaluated rows.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np
from scipy import sparse

from hafrm.evaluation.scoring import Scorable
from hafrm.pairs import Conversation, Message, PreferencePair
from hafrm.stats import best_penalty, fit_pairs

_WORD = re.compile(r"\w+|[^\w\s]")
_LEAST = 3
"""Minimum number of pairs in which a word must occur to be used."""
_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Candidate weights of the squared norm; chosen on validation pairs."""
_PENALTY = 10.0
"""The penalty if there are no validation pairs to choose it on."""
_FOLDS = 5
_MOST = 20_000
FITTED_ON = f"fitted on the other four fifths of the same rows, drawn by prompt (of {_MOST:,} rows at most)"
"""What the bag of words in an evaluation is fitted on."""
_FEWEST = 50
"""Minimum number of rows for the bag of words in an evaluation."""


class BagOfWords:
    """Scores a response by its words, each of which has a weight, in lower case; implements `Scorer`."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return the reward of each response."""
        return list(map(self.reward, conversations))

    def reward(self, conversation: Conversation) -> float:
        """Return the sum over the response's words of weight times log(1 + count)."""
        counts = _log_counts(conversation.response).items()
        return sum(self.weights.get(word, 0.0) * value for word, value in counts)


def fit_words(train: Sequence[PreferencePair], validation: Sequence[PreferencePair]) -> BagOfWords:
    """Fit the weights by the Bradley-Terry loss (Eq. 2), with the penalty that is best on validation pairs."""
    differences = [_difference(pair) for pair in train]
    places = _places(differences)
    x, held_out = (_matrix(rows, places) for rows in (differences, map(_difference, validation)))
    best = best_penalty(x, held_out, _PENALTIES)[1]
    return BagOfWords({word: float(best[place]) for word, place in places.items()})


def cross_fitted(rows: Sequence[Scorable], better: Sequence[int]) -> dict[str, list[float]]:
    """Score the responses of rows by bags of words, each fitted on rows with other prompts; see `FITTED_ON`.

    Args:
        better: Number of better responses of each row; they come first.

    Returns:
        Rewards by the row's id; {} if there are fewer than 50 rows.
    """
    if len(rows) < _FEWEST:
        return {}
    pairs = [_pairs(row, number) for row, number in zip(rows[:_MOST], better, strict=False)]
    folds = [zlib.crc32(row.group.encode()) % _FOLDS for row in rows]
    words = [
        _fitted([each for among, of_row in zip(folds, pairs, strict=False) if among != fold for each in of_row])
        for fold in range(_FOLDS)
    ]
    return {row.id: list(map(words[fold].reward, row.conversations)) for row, fold in zip(rows, folds, strict=True)}


def _fitted(differences: Sequence[dict[str, float]]) -> BagOfWords:
    places = _places(differences)
    weights = fit_pairs(_matrix(differences, places), _PENALTY) if places else ()
    return BagOfWords(dict(zip(places, map(float, weights), strict=True)))


def _pairs(row: Scorable, better: int) -> list[dict[str, float]]:
    """Return differences between better and worse responses of a row, such that each response is in at least one."""
    counts = [_log_counts(each.response) for each in row.conversations]
    chosen, rejected = counts[:better], counts[better:]
    size = max(len(chosen), len(rejected)) if rejected else 0
    return [_subtracted(a, b) for a, b in islice(zip(cycle(chosen), cycle(rejected), strict=False), size)]


def _log_counts(response: Sequence[Message]) -> dict[str, float]:
    words = _WORD.findall("\n".join(turn.content for turn in response).lower())
    return {word: math.log1p(n) for word, n in Counter(words).items()}


def _difference(pair: PreferencePair) -> dict[str, float]:
    return _subtracted(_log_counts(pair.chosen), _log_counts(pair.rejected))


def _subtracted(chosen: Mapping[str, float], rejected: Mapping[str, float]) -> dict[str, float]:
    found = {word: chosen.get(word, 0.0) - rejected.get(word, 0.0) for word in chosen.keys() | rejected.keys()}
    return {word: value for word, value in found.items() if value}


def _places(differences: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Return the column of each word that occurs in enough differences."""
    seen = Counter(word for each in differences for word in each)
    return {word: place for place, word in enumerate(sorted(w for w, n in seen.items() if n >= _LEAST))}


def _matrix(rows: Sequence[dict[str, float]] | map[dict[str, float]], places: dict[str, int]) -> sparse.csr_array:
    """Return rows of values by word as a matrix, [B, words]; words unknown from training are ignored."""
    kept = [{places[word]: value for word, value in row.items() if word in places} for row in rows]
    ends = np.cumsum([0, *map(len, kept)])
    columns = np.fromiter((place for row in kept for place in row), dtype=np.int64, count=ends[-1])
    values = np.fromiter((value for row in kept for value in row.values()), dtype=np.float64, count=ends[-1])
    return sparse.csr_array((values, columns, ends), shape=(len(kept), len(places)))
