"""PPO's arithmetic, compared with hand-worked values and properties that hold for all inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hafrm.rlhf.objectives import (
    KlController,
    ScoreStatistics,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalised_advantages,
    kl_estimates,
    shaped_rewards,
    whiten,
)

numbers = st.floats(-3, 3, width=32)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def close(actual: Tensor, expected: list[float], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.float(), torch.tensor(expected), atol=tolerance, rtol=tolerance)


def test_kl_of_a_token_by_hand() -> None:
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    close(kl_estimates(policy, reference), [math.log(2), -math.log(2)])
    # r = reference / policy is 1/2 and 2: r - 1 - log r.
    close(kl_estimates(policy, reference, "k3"), [-0.5 + math.log(2), 1 - math.log(2)])


def test_both_estimators_have_the_divergence_as_mean() -> None:
    """Summed over all outcomes with their probabilities, both are KL(policy || reference)."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    divergence = (policy * (policy / reference).log()).sum()
    for estimator in ("k1", "k3"):
        mean = (policy * kl_estimates(policy.log(), reference.log(), estimator)).sum()
        torch.testing.assert_close(mean, divergence)


@given(st.lists(st.tuples(numbers, numbers), min_size=1))
def test_k3_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    a, b = torch.tensor(pairs).T
    assert (kl_estimates(a, b, "k3") >= -1e-6).all()


def test_each_token_pays_and_the_last_one_is_paid() -> None:
    rewards = shaped_rewards(torch.tensor([2.0, -1.0]), torch.tensor([0.1, 0.3, 0.5]), [2, 1], 0.2)
    close(rewards, [-0.02, 2 - 0.06, -1 - 0.1])


def test_advantages_by_hand() -> None:
    """gamma .5, lam .5; the second sequence's first value must not be the first one's future."""
    rewards, values = torch.tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 1.5, 4.0])
    advantages, returns = generalised_advantages(rewards, values, [3, 1], gamma=0.5, lam=0.5)
    # deltas: 1 + .5*1 - .5 = 1; 0 + .5*1.5 - 1 = -.25; 2 - 1.5 = .5; 3 - 4 = -1
    # A_2 = .5; A_1 = -.25 + .25*.5 = -.125; A_0 = 1 + .25*-.125 = .96875
    close(advantages, [0.96875, -0.125, 0.5, -1.0])
    close(returns, [1.46875, 0.875, 2.0, 3.0])


@given(LENGTHS, st.randoms(use_true_random=False), st.floats(0, 1), st.floats(0, 1))
def test_sequences_do_not_see_each_other(lengths: list[int], rng: object, gamma: float, lam: float) -> None:
    values, rewards = (torch.tensor([rng.uniform(-2, 2) for _ in range(sum(lengths))]) for _ in range(2))  # type: ignore[attr-defined]
    together, _ = generalised_advantages(rewards, values, lengths, gamma=gamma, lam=lam)
    alone = [
        generalised_advantages(r, v, [len(r)], gamma=gamma, lam=lam)[0]
        for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@given(LENGTHS)
def test_at_lambda_1_returns_are_the_sums_to_come(lengths: list[int]) -> None:
    """This holds for any values."""
    rewards = torch.linspace(-1, 2, sum(lengths))
    _, returns = generalised_advantages(rewards, torch.randn(sum(lengths)), lengths, gamma=1, lam=1)
    sums = [part.flip(0).cumsum(0).flip(0) for part in rewards.split(lengths)]
    torch.testing.assert_close(returns, torch.cat(sums), atol=1e-5, rtol=1e-5)


def test_whitened_values() -> None:
    close(whiten(torch.tensor([1.0, 2.0, 3.0])), [-math.sqrt(1.5), 0, math.sqrt(1.5)])
    close(whiten(torch.tensor([4.0])), [0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, True),  # a good token is likelier by more than the clip
        (1.5, -2.0, 3.0, False),  # a bad token is likelier: not clipped
        (0.5, 2.0, -1.0, False),
        (0.5, -2.0, 1.6, True),
        (1.1, 2.0, -2.2, False),
    ],
)
def test_the_clipped_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    log_probs = torch.tensor([math.log(ratio) - 1], requires_grad=True)
    found = clipped_policy_loss(log_probs, torch.tensor([-1.0]), torch.tensor([advantage]), 0.2)
    close(found.loss.detach(), [loss])
    assert found.clipped.tolist() == [clipped]
    found.loss.sum().backward()
    assert log_probs.grad is not None
    close(log_probs.grad, [0.0 if clipped else -advantage * ratio])


def test_the_clipped_value_loss_by_hand() -> None:
    values = torch.tensor([1.0, 0.1, -1.0])
    found = clipped_value_loss(values, torch.zeros(3), torch.ones(3), 0.2)
    # Kept within .2 of 0: .2, .1, -.2; errors to 1: .8, .9, 1.2, against 0, .9, 2 of the values themselves.
    close(found.loss, [0.32, 0.405, 2.0])
    assert found.clipped.tolist() == [True, False, False]


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(3)) == 0


def test_the_price_of_a_nat_follows_its_target() -> None:
    start = KlController(0.2, target=6.0, horizon=10_000)
    assert start.after(6.0, 16).coefficient == 0.2
    assert start.after(6.6, 1000).coefficient == pytest.approx(0.2 * 1.01)
    assert start.after(600, 1000).coefficient == pytest.approx(0.2 * 1.02)  # bounded at a fifth
    assert start.after(-3, 1000).coefficient == pytest.approx(0.2 * 0.98)
    assert start.after(math.nan, 1000) == start
    assert KlController(0.2, None).after(60, 16).coefficient == 0.2


def test_shapes_that_would_broadcast_are_refused() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    for call in (
        lambda: kl_estimates(two, three),
        lambda: clipped_policy_loss(two, two, torch.zeros(1), 0.2),
        lambda: clipped_value_loss(two, torch.zeros(2, 1), two, 0.2),
        lambda: shaped_rewards(two, three, [2, 2], 0.1),
        lambda: shaped_rewards(three, two, [1, 1], 0.1),
        lambda: generalised_advantages(two, two, [2, 0], gamma=1, lam=1),
    ):
        with pytest.raises(ValueError, match="must"):
            call()


@given(st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4))
def test_statistics_of_batches_are_those_of_all(batches: list[list[float]]) -> None:
    every = torch.tensor([score for batch in batches for score in batch], dtype=torch.float64)
    found = ScoreStatistics()
    for batch in batches:
        found = found.after(torch.tensor(batch))
    assert found.count == len(every)
    assert found.mean == pytest.approx(every.mean().item(), abs=1e-6)
    assert found.squares == pytest.approx(every.var(correction=0).item() * len(every), abs=1e-5)


def test_scores_that_are_learnt_from() -> None:
    """Centred scores do not depend on a reward model's zero, and normalised ones not on its unit either."""
    scores = torch.tensor([1.0, 3.0])
    for offset, factor in ((0.0, 1.0), (100.0, 1.0), (7.0, 4.0)):
        moved = factor * scores + offset
        known = ScoreStatistics().after(moved)
        close(known.scaled(moved, "centred") / factor, [-1.0, 1.0])
        close(known.scaled(moved, "normalised"), [-1.0, 1.0])
        close(known.scaled(moved, "raw"), moved.tolist())
