"""Plackett-Luce, compared with its closed form, written out stage by stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hafrm.losses import bradley_terry_loss, plackett_luce_loss, register_reward_loss

rewards = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


def pairs_of(ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The pairs of a ranking as (winners, losers); ties have none. Shuffled, as training draws them."""
    found = [sorted(pair, key=lambda i: ranks[i]) for pair in combinations(range(len(ranks)), 2)]
    untied = torch.tensor([pair for pair in found if ranks[pair[0]] != ranks[pair[1]]])
    winners, losers = untied[torch.randperm(len(untied))].T
    return winners, losers


def loss_of(values: Tensor, ranks: Sequence[int]) -> Tensor:
    winners, losers = pairs_of(ranks)
    return plackett_luce_loss(values[winners], values[losers], winners).sum()


def closed_form(values: Tensor, order: Sequence[int]) -> Tensor:
    """-log of the product over stages of exp(r_first) / sum over what is left."""
    left = [values[list(order[stage:])].softmax(0)[0] for stage in range(len(order) - 1)]
    return -torch.stack(left).log().sum()


@given(rewards, st.randoms(use_true_random=False))
def test_all_pairs_of_a_ranking_have_its_likelihood(values: list[float], rng: object) -> None:
    r = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    order = list(range(len(values)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    ranks = [order.index(i) for i in range(len(values))]
    ours, theirs = loss_of(r, ranks), closed_form(r, order)
    torch.testing.assert_close(ours, theirs)
    (one,), (other,) = (torch.autograd.grad(each, r) for each in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_the_likelihoods_of_all_rankings_sum_to_1() -> None:
    values = torch.tensor([0.3, -1.2, 2.0, 0.9], dtype=torch.float64)
    total = sum(math.exp(-loss_of(values, ranks).item()) for ranks in permutations(range(4)))
    assert total == pytest.approx(1)


@pytest.mark.parametrize(
    ("ranks", "choices"),
    [
        ([1, 2, 2], [(0, [1, 2])]),  # the best of three
        ([1, 1, 2], [(0, [2]), (1, [2])]),  # two that are each better than the third
        ([1, 2, 2, 3], [(0, [1, 2, 3]), (1, [3]), (2, [3])]),
    ],
)
def test_tied_responses_compete_with_those_below_alone(ranks: list[int], choices: list[tuple[int, list[int]]]) -> None:
    values = torch.tensor([0.5, -0.25, 1.0, 0.1][: len(ranks)], dtype=torch.float64)
    expected = sum(-math.log(values[[one, *others]].softmax(0)[0]) for one, others in choices)
    assert loss_of(values, ranks).item() == pytest.approx(expected)


@given(rewards)
def test_responses_with_one_pair_are_bradley_terrys(values: list[float]) -> None:
    chosen = torch.tensor(values, dtype=torch.float64)
    rejected, margin = chosen.flip(0) * 0.5, chosen.abs() / 3
    ours = plackett_luce_loss(chosen, rejected, torch.arange(len(values)) * 7, margin=margin)
    torch.testing.assert_close(ours, bradley_terry_loss(chosen, rejected, margin=margin))


def test_a_choice_is_shared_by_its_pairs_with_their_margins() -> None:
    """exp(1) against exp(0 + .5) and exp(-1 + 2); the other choice is not touched."""
    chosen, rejected = torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0.0, 3.0, -1.0])
    losses = plackett_luce_loss(chosen, rejected, torch.tensor([4, 2, 4]), margin=torch.tensor([0.5, 0.0, 2.0]))
    shared = math.log((math.exp(1) + math.exp(0.5) + math.exp(1)) / math.exp(1)) / 2
    assert losses.tolist() == pytest.approx([shared, math.log(2), shared], rel=1e-6)


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_values_and_gradients_stay_finite(gap: float) -> None:
    chosen = torch.tensor([gap, gap, 0.0], requires_grad=True)
    losses = plackett_luce_loss(chosen, torch.zeros(3), torch.tensor([0, 0, 1]))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([max(-gap, 0) / 2] * 2 + [math.log(2)], rel=1e-3)
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()
    assert (
        plackett_luce_loss(torch.zeros(1).bfloat16(), torch.ones(1).bfloat16(), torch.zeros(1)).dtype == torch.float32
    )


def test_other_shapes_and_a_taken_name_are_refused() -> None:
    with pytest.raises(ValueError, match="winners"):
        plackett_luce_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match="shape"):
        plackett_luce_loss(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="plackett_luce"):
        register_reward_loss("plackett_luce", bradley_terry_loss)
