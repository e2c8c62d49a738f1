"""Splits are drawn by prompt: no prompt on both sides, the same draw in any order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.data import split_by_group
from hafrm.pairs import PreferencePair
from tests.tiny import pair


def grouped(sizes: list[int]) -> list[PreferencePair]:
    """Pairs of prompts that occur as often as `sizes` says."""
    return [pair(f"prompt {g}", f"yes {i}", "no", row=100 * g + i) for g, size in enumerate(sizes) for i in range(size)]


sizes = st.lists(st.integers(1, 8), min_size=1, max_size=40)


@given(sizes=sizes, fraction=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_every_pair_is_on_one_side_and_no_prompt_on_both(sizes: list[int], fraction: float, seed: int) -> None:
    pairs = grouped(sizes)
    stay, drawn = split_by_group(pairs, fraction, seed)
    assert sorted(p.row for p in stay + drawn) == sorted(p.row for p in pairs)
    assert not {p.group for p in stay} & {p.group for p in drawn}
    assert stay


@given(sizes=sizes, fraction=st.floats(0, 0.99), order=st.randoms())
def test_the_order_of_the_rows_does_not_matter(sizes: list[int], fraction: float, order: random.Random) -> None:
    pairs = grouped(sizes)
    shuffled = list(pairs)
    order.shuffle(shuffled)
    expected, found = split_by_group(pairs, fraction, 0), split_by_group(shuffled, fraction, 0)
    assert [{p.group for p in side} for side in expected] == [{p.group for p in side} for side in found]


@given(sizes=st.lists(st.integers(1, 5), min_size=30, max_size=60), fraction=st.floats(0.05, 0.5))
def test_the_share_is_right_to_within_a_group(sizes: list[int], fraction: float) -> None:
    pairs = grouped(sizes)
    _, drawn = split_by_group(pairs, fraction, 0)
    assert round(fraction * len(pairs)) <= len(drawn) < round(fraction * len(pairs)) + 5


def test_a_small_share_draws_at_least_one_pair_and_no_share_none() -> None:
    assert [len(split_by_group(grouped([1] * 5), fraction, 0)[1]) for fraction in (0, 0.01)] == [0, 1]


def test_pairs_keep_their_order() -> None:
    pairs = grouped([3] * 20)
    for side in split_by_group(pairs, 0.4, 0):
        assert [p.row for p in side] == sorted(p.row for p in side)


def test_another_seed_draws_other_prompts() -> None:
    pairs = grouped([1] * 200)
    draws = [{p.group for p in split_by_group(pairs, 0.1, seed)[1]} for seed in range(3)]
    assert all(len(draw) == 20 for draw in draws)
    assert draws[0] != draws[1] != draws[2]


def test_the_draw_is_the_same_for_ever() -> None:
    """Changing the rule would move prompts of published results between train and test."""
    _, drawn = split_by_group(grouped([1] * 20), 0.2, 0)
    assert [p.prompt.turns[0].content for p in drawn] == ["prompt 4", "prompt 9", "prompt 10", "prompt 17"]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        split_by_group(grouped([1, 1]), fraction, 0)
