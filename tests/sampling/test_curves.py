"""The best-of-n estimate, compared with hand-worked values, all subsets, and the true distribution."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.sampling.analysis import best_of_n_curve, kl_bound


def test_three_draws_by_hand() -> None:
    """Scores 3, 1, 2 with values 10, 20, 60: n = 2 picks {3, 1}: 10, {3, 2}: 10, {1, 2}: 60."""
    assert best_of_n_curve([3, 1, 2], [10, 20, 60], [1, 1, 1]) == pytest.approx([30, 80 / 3, 10])


def test_a_response_that_came_twice_is_two_draws() -> None:
    """Draws a, a, b with the better score for b: n = 2 picks {a, a}: 3 and twice {a, b}: 6."""
    assert best_of_n_curve([1, 2], [3, 6], [2, 1]) == pytest.approx([4, 5, 6])


def test_equal_scores_are_settled_by_lot() -> None:
    assert best_of_n_curve([5, 5, 5, 5], [1, 2, 3, 6], [1, 1, 1, 1]) == pytest.approx([3, 3, 3, 3])
    # the two at 7 share the best place; the one at 1 counts only for n = 1
    assert best_of_n_curve([7, 7, 1], [4, 8, 0], [1, 1, 1]) == pytest.approx([4, 6, 6])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=6))
def test_it_is_the_mean_over_all_subsets(draws: list[tuple[int, int]]) -> None:
    scores, values = zip(*draws, strict=True)
    expected = []
    for n in range(1, len(draws) + 1):
        of_subsets = []
        for subset in combinations(range(len(draws)), n):
            best = max(scores[i] for i in subset)
            tied = [values[i] for i in subset if scores[i] == best]
            of_subsets.append(sum(tied) / len(tied))
        expected.append(sum(of_subsets) / len(of_subsets))
    assert best_of_n_curve(scores, values, [1] * len(draws)) == pytest.approx(expected)


def test_it_is_unbiased() -> None:
    """Of a policy with two responses, worth 0 and 1 with 1/4: the best of 2 is worth 1 - (3/4)^2 = 7/16."""
    rng = np.random.default_rng(0)
    seen = [best_of_n_curve(draw, draw, np.ones(4, dtype=int))[1] for draw in (rng.random((4000, 4)) < 0.25) * 1.0]
    assert np.mean(seen) == pytest.approx(7 / 16, abs=0.02)


def test_selection_by_the_value_itself_never_falls() -> None:
    assert (np.diff(best_of_n_curve([3, -1, 4, 1], [3, -1, 4, 1], [1, 2, 1, 3])) >= 0).all()


def test_the_bound_of_the_divergence() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    with pytest.raises(ValueError, match="at least 1"):
        kl_bound(0)


@pytest.mark.parametrize(
    ("scores", "values", "counts", "said"),
    [([1], [1, 2], [1], "must all be"), ([], [], [], "must all be"), ([1], [1], [0], "at least 1")],
)
def test_wrong_arguments_are_refused(scores: list, values: list, counts: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        best_of_n_curve(scores, values, counts)
