"""Losses, compared with scipy, hand-worked values, and properties of their definitions."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from hafrm.losses import (
    POLICY_LOSSES,
    REWARD_LOSSES,
    PairLogProbs,
    PolicyLossOptions,
    bradley_terry_loss,
    cauchy_loss,
    consistency_loss,
    dpo_loss,
    hinge_reward_loss,
    hybrid_loss,
    ipo_loss,
    kto_pair_loss,
    named_policy_loss,
    options_read,
    orpo_loss,
    probit_loss,
    reward_centering_penalty,
    sft_loss,
    simpo_loss,
    slic_loss,
    uses_reference,
)

# For each prior, the log-probability that a response with a lead of z wins.
LOG_PROBABILITY = {
    "bradley_terry": special.log_expit,
    "hinge": lambda z: -np.maximum(0, 1 - z),  # no probability, but the same place in the sum
    "probit": stats.norm.logcdf,
    "cauchy": lambda z: np.log(stats.cauchy.cdf(z)),
}

each_reward_loss = pytest.mark.parametrize("name", REWARD_LOSSES)
each_policy_loss = pytest.mark.parametrize("name", POLICY_LOSSES)
no_deadline = settings(deadline=None)  # the first call of a PyTorch operation may take long
rewards = st.floats(-100, 100, width=32)
OPTIONS = PolicyLossOptions(beta=0.3, label_smoothing=0.1, target_margin=0.7)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_probs(*, reference: bool = True, dtype: torch.dtype = torch.float64, **fields: torch.Tensor) -> PairLogProbs:
    """Three pairs of different lengths; the fields given replace the usual ones."""
    values = {
        "chosen": doubles(-12.0, -30.5, -4.0),
        "rejected": doubles(-15.0, -22.0, -9.5),
        "reference_chosen": doubles(-13.5, -30.0, -5.0) if reference else None,
        "reference_rejected": doubles(-14.0, -24.5, -9.0) if reference else None,
    }
    values = {name: value if value is None else value.to(dtype) for name, value in (values | fields).items()}
    return PairLogProbs(**values, chosen_length=torch.tensor([4, 10, 2]), rejected_length=torch.tensor([5, 8, 3]))


# Reward losses


@each_reward_loss
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("margin", [None, doubles(0.5, 0.0, 2.0, 1.0, 0.25)], ids=["no margin", "margin"])
def test_reward_losses_are_the_cross_entropy_of_their_prior(name, smoothing, margin):
    chosen, rejected = doubles(-3.0, 0.0, 1.5, 2.0, 8.0), doubles(1.0, 0.0, 1.0, 3.5, 2.0)
    loss = REWARD_LOSSES[name](chosen, rejected, margin=margin, label_smoothing=smoothing)
    z = (chosen - rejected - (0 if margin is None else margin)).numpy()
    log_p = LOG_PROBABILITY[name]
    np.testing.assert_allclose(loss.numpy(), -(1 - smoothing) * log_p(z) - smoothing * log_p(-z), rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected", "margin", "expected"),
    [
        (bradley_terry_loss, 0.0, 0.0, None, math.log(2)),
        (bradley_terry_loss, math.log(3), 0.0, None, math.log(4 / 3)),  # wins with probability 3/4
        (bradley_terry_loss, 2.0, 0.0, 2.0, math.log(2)),
        (hinge_reward_loss, 1.5, 1.0, None, 0.5),
        (hinge_reward_loss, 1.5, 1.0, 2.0, 2.5),
        (hinge_reward_loss, 5.0, 1.0, 2.0, 0.0),
        (probit_loss, 1.0, 0.0, None, -math.log(0.8413447460685429)),
        (cauchy_loss, 1.0, 0.0, None, -math.log(3 / 4)),
        (cauchy_loss, 0.0, 1.0, None, -math.log(1 / 4)),
    ],
)
def test_reward_losses_by_hand(loss, chosen, rejected, margin, expected):
    margin = None if margin is None else doubles(margin)
    assert loss(doubles(chosen), doubles(rejected), margin=margin).item() == pytest.approx(expected, abs=1e-12)


@each_reward_loss
@no_deadline
@given(chosen=rewards, rejected=rewards, shift=rewards)
def test_only_the_difference_matters(name, chosen, rejected, shift):
    loss = REWARD_LOSSES[name]
    torch.testing.assert_close(
        loss(doubles(chosen + shift), doubles(rejected + shift)),
        loss(doubles(chosen), doubles(rejected)),
        rtol=1e-7,
        atol=1e-9,
    )


@each_reward_loss
@no_deadline
@given(low=rewards, rise=st.floats(0, 100, width=32), rejected=rewards)
def test_a_better_chosen_reward_never_costs_more(name, low, rise, rejected):
    before, after = (REWARD_LOSSES[name](doubles(reward), doubles(rejected)) for reward in (low, low + rise))
    assert after <= before


@each_reward_loss
@no_deadline
@given(chosen=rewards, rejected=rewards)
def test_a_label_that_is_a_coin_flip_does_not_know_who_won(name, chosen, rejected):
    loss = REWARD_LOSSES[name]
    torch.testing.assert_close(
        loss(doubles(chosen), doubles(rejected), label_smoothing=0.5),
        loss(doubles(rejected), doubles(chosen), label_smoothing=0.5),
    )


@no_deadline
@given(chosen=rewards, rejected=rewards)
def test_swapping_a_pair_shifts_bradley_terry_by_the_difference(chosen, rejected):
    """-log sigmoid(d) + log sigmoid(-d) = -d."""
    swap = bradley_terry_loss(doubles(chosen), doubles(rejected)) - bradley_terry_loss(
        doubles(rejected), doubles(chosen)
    )
    assert swap.item() == pytest.approx(rejected - chosen, abs=1e-9)


@each_reward_loss
@pytest.mark.parametrize("difference", [-1e4, -300.0, -1.0, 0.0, 1.5, 300.0, 1e4])
def test_values_and_gradients_hold_far_out_in_float32(name, difference):
    slope = {
        "bradley_terry": lambda z: -special.expit(-z),
        "hinge": lambda z: -float(z < 1),
        "probit": lambda z: -math.sqrt(2 / math.pi) / special.erfcx(-z / math.sqrt(2)),
        "cauchy": lambda z: -stats.cauchy.pdf(z) / stats.cauchy.cdf(z),
    }[name](difference)
    chosen = torch.tensor([difference], requires_grad=True)
    loss = REWARD_LOSSES[name](chosen, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(-LOG_PROBABILITY[name](difference), rel=1e-6, abs=2e-7)
    assert chosen.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-30)


def test_centering_penalty_is_the_square_of_the_sum():
    penalty = reward_centering_penalty(doubles(1.0, -2.0, 3.0), doubles(2.0, 2.0, -1.0))
    assert penalty.tolist() == [9.0, 0.0, 4.0]


# Policy losses


def test_log_ratios_by_hand():
    pairs = log_probs()
    assert pairs.chosen_log_ratio.tolist() == [1.5, -0.5, 1.0]
    assert pairs.rejected_log_ratio.tolist() == [-1.0, 2.5, -0.5]
    assert pairs.margin.tolist() == [2.5, -3.0, 1.5]
    assert pairs.chosen_mean.tolist() == [-3.0, -3.05, -2.0]
    assert pairs.rejected_mean.tolist() == pytest.approx([-3.0, -2.75, -9.5 / 3])


def test_dpo_is_bradley_terry_on_implicit_rewards():
    pairs = log_probs()
    expected = bradley_terry_loss(0.3 * doubles(1.5, -0.5, 1.0), 0.3 * doubles(-1.0, 2.5, -0.5), label_smoothing=0.1)
    torch.testing.assert_close(dpo_loss(pairs, beta=0.3, label_smoothing=0.1), expected)


def test_dpo_by_hand():
    expected = [math.log(1 + math.exp(-0.1 * margin)) for margin in (2.5, -3.0, 1.5)]
    assert dpo_loss(log_probs()).tolist() == pytest.approx(expected)


@no_deadline
@given(values=st.lists(st.floats(-1e4, 0, width=32), min_size=3, max_size=3), beta=st.floats(0.01, 10))
def test_a_policy_equal_to_its_reference_starts_at_log_2(values, beta):
    same = doubles(*values)
    loss = dpo_loss(log_probs(chosen=same, reference_chosen=same, rejected=same - 1, reference_rejected=same - 1))
    assert loss.tolist() == pytest.approx([math.log(2)] * 3)


def test_ipo_by_hand_is_a_token_mean():
    margins = [1.5 / 4 + 1.0 / 5, -0.5 / 10 - 2.5 / 8, 1.0 / 2 + 0.5 / 3]
    expected = [(margin - 1 / 0.6) ** 2 for margin in margins]
    assert ipo_loss(log_probs(), beta=0.3).tolist() == pytest.approx(expected)


def test_slic_by_hand():
    assert slic_loss(log_probs(), beta=0.5).tolist() == pytest.approx([0.0, 2.5, 0.25])
    assert slic_loss(log_probs(), beta=0.5, label_smoothing=0.1).tolist() == pytest.approx([0.225, 2.25, 0.4])


def test_simpo_by_hand():
    margins = np.array([-3.0 + 3.0, -3.05 + 2.75, -2.0 + 9.5 / 3])
    expected = -special.log_expit(2 * margins - 0.7)
    assert simpo_loss(log_probs(), beta=2.0, target_margin=0.7).tolist() == pytest.approx(expected.tolist())


def test_orpo_by_hand():
    def log_odds(mean: float) -> float:
        return math.log(math.exp(mean) / (1 - math.exp(mean)))

    means = [(-3.0, -3.0), (-3.05, -2.75), (-2.0, -9.5 / 3)]
    expected = [-c - 0.3 * special.log_expit(log_odds(c) - log_odds(r)) for c, r in means]
    assert orpo_loss(log_probs(), beta=0.3).tolist() == pytest.approx(expected)


def test_kto_pair_by_hand():
    chosen_kl, rejected_kl = 2.0 / 3, 1.0 / 3
    expected = [
        (1 - special.expit(0.3 * (c - rejected_kl)) + 1 - special.expit(0.3 * (chosen_kl - r))) / 2
        for c, r in [(1.5, -1.0), (-0.5, 2.5), (1.0, -0.5)]
    ]
    assert kto_pair_loss(log_probs(), beta=0.3).tolist() == pytest.approx(expected)


def test_kto_pair_takes_no_negative_divergence():
    loss = kto_pair_loss(log_probs(chosen=doubles(-20.0, -40.0, -9.0)))  # mean log-ratio below 0
    rejected_side = torch.sigmoid(0.1 * doubles(-1.0, 2.5, -0.5))
    chosen_side = torch.sigmoid(0.1 * (1.0 / 3 - doubles(-6.5, -10.0, -4.0)))
    torch.testing.assert_close(loss, (chosen_side + rejected_side) / 2)


def test_kto_pair_takes_no_gradient_through_the_other_pairs():
    chosen, rejected = doubles(-12.0, -30.5, -4.0).requires_grad_(), doubles(-15.0, -22.0, -9.5).requires_grad_()
    kto_pair_loss(log_probs(chosen=chosen, rejected=rejected))[0].backward()
    assert chosen.grad[0] < 0 < rejected.grad[0]
    assert chosen.grad[1:].tolist() == rejected.grad[1:].tolist() == [0.0, 0.0]


def test_sft_is_the_mean_token_loss_of_the_chosen_response():
    assert sft_loss(log_probs()).tolist() == [3.0, 3.05, 2.0]


def test_grm_regularizes_with_the_sigmoid_of_the_chosen_log_prob():
    """As `compute_loss` of GRM's trainer with `sft_only`: log-probs are summed over tokens."""
    expected = -torch.nn.functional.logsigmoid(0.1 * log_probs().chosen)
    torch.testing.assert_close(named_policy_loss("grm_sft")(log_probs(), PolicyLossOptions()), expected)


@each_policy_loss
def test_no_reference_is_a_reference_of_zeros(name):
    zeros = log_probs(reference_chosen=torch.zeros(3), reference_rejected=torch.zeros(3))
    without = named_policy_loss(name)(log_probs(reference=False), OPTIONS)
    torch.testing.assert_close(without, named_policy_loss(name)(zeros, OPTIONS))


@each_policy_loss
def test_uses_reference_tells_the_truth(name):
    moved = log_probs(reference_chosen=doubles(-14.5, -31.0, -6.0))
    changed = not torch.equal(named_policy_loss(name)(log_probs(), OPTIONS), named_policy_loss(name)(moved, OPTIONS))
    assert changed == (uses_reference(name))


@each_policy_loss
@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(PolicyLossOptions)])
def test_options_read_tells_the_truth(name, option):
    other = dataclasses.replace(OPTIONS, **{option: 0.4})
    changed = not torch.equal(
        named_policy_loss(name)(log_probs(), OPTIONS), named_policy_loss(name)(log_probs(), other)
    )
    assert changed == (option in options_read(name))


@each_policy_loss
def test_descent_raises_chosen_and_lowers_rejected(name):
    chosen, rejected = doubles(-12.0, -30.5, -4.0).requires_grad_(), doubles(-15.0, -22.0, -9.5).requires_grad_()
    named_policy_loss(name)(log_probs(chosen=chosen, rejected=rejected), OPTIONS).sum().backward()
    if name == "apo_down":  # lowers both, chosen less
        assert (chosen.grad < rejected.grad).all()
        return
    assert (chosen.grad < 0).all()
    assert name in ("sft", "grm_sft") or (rejected.grad > 0).all()


@each_policy_loss
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_policy_losses_stay_finite_far_out(name, gap):
    chosen = torch.full((3,), min(gap, 0.0), requires_grad=True)
    rejected = torch.full((3,), -max(gap, 0.0), requires_grad=True)
    pairs = PairLogProbs(chosen, rejected, torch.zeros(3), torch.zeros(3), torch.ones(3), torch.ones(3))
    loss = named_policy_loss(name)(pairs, OPTIONS)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(chosen.grad).all()
    assert rejected.grad is None or torch.isfinite(rejected.grad).all()


def test_an_empty_response_counts_as_one_token():
    empty = torch.zeros(3, dtype=torch.int64)
    pairs = dataclasses.replace(log_probs(chosen=torch.zeros(3)), chosen_length=empty)
    assert sft_loss(pairs).tolist() == [0.0, 0.0, 0.0]


# Properties of all losses


@each_reward_loss
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_reward_gradients_are_those_of_the_values(name, smoothing):
    chosen, rejected = doubles(-3.0, 0.3, 1.5).requires_grad_(), doubles(1.0, 0.0, -8.0).requires_grad_()
    margin = doubles(0.1, 0.2, 0.3).requires_grad_()

    def loss(chosen, rejected, margin):
        return REWARD_LOSSES[name](chosen, rejected, margin=margin, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, (chosen, rejected, margin))


def test_the_centering_gradient_is_that_of_the_value():
    inputs = (doubles(1.0, -2.0).requires_grad_(), doubles(0.5, 3.0).requires_grad_())
    assert torch.autograd.gradcheck(reward_centering_penalty, inputs)


def test_the_consistency_loss_by_hand():
    """Two pairs of one prompt: a response of three tokens beats one of two, and one of one token."""
    rewards = doubles(1.0, 2.0, -1.0, 0.5, 1.5, 3.0)
    likely = doubles(0.9, 0.5, 0.25, 0.1, 0.8, 0.3)
    found = consistency_loss(rewards, likely.log(), torch.tensor([3, 2, 1]), torch.tensor([0, 0]), torch.tensor([1, 2]))

    def side(lead, weights):
        right = special.expit(lead)
        each = [-(b * math.log(a) + a * math.log(b)) / 2 for a, b in pairwise(right)]
        return np.average(each, weights=weights)

    best = np.array([1.0, 2.0, -1.0])
    first = side(best - 1.0, [0.5, 0.25]) + side(2 / 3 - np.array([0.5, 1.5]), [0.8])
    second = side(best - 3.0, [0.5, 0.25])  # a response of one token has no neighbours
    assert found.tolist() == pytest.approx([first / 2, second / 2], rel=1e-12)


def test_the_consistency_loss_draws_likely_neighbours_to_the_label():
    """Gradients: up for the chosen response's prefixes, down for the rejected one's, in proportion to p."""
    rewards, lengths, sides = doubles(*[0.0] * 6).requires_grad_(), torch.tensor([3, 3]), torch.tensor([[0], [1]])
    likely = doubles(1.0, 0.6, 0.2, 1.0, 0.2, 0.6).log().requires_grad_()
    consistency_loss(rewards, likely, lengths, *sides).sum().backward()
    assert likely.grad is None
    assert (rewards.grad[:3] < 0).all()
    torch.testing.assert_close(rewards.grad[3:], -rewards.grad[:3].flip(0), rtol=1e-12, atol=0)
    assert rewards.grad[0] / rewards.grad[2] == pytest.approx(0.6 / 0.2)


def test_tokens_that_no_policy_writes_have_no_consistency_loss():
    impossible = torch.full((4,), -1000.0)
    sides = torch.tensor([[0], [1]])
    assert consistency_loss(torch.randn(4), impossible, torch.tensor([2, 2]), *sides).tolist() == [0.0]
    with pytest.raises(ValueError, match="prefix_rewards"):
        consistency_loss(torch.zeros(3), impossible, torch.tensor([2, 2]), *sides)


@each_policy_loss
def test_policy_gradients_are_those_of_the_values(name):
    pairs = log_probs()
    # kto_pair takes no gradient through its batch means, which finite differences would see: below 0 they are constant.
    far = doubles(-1000.0, -1000.0, -1000.0) if name == "kto_pair" else doubles(0.0, 0.0, 0.0)
    inputs = ((pairs.chosen + far).requires_grad_(), (pairs.rejected + far).requires_grad_())

    def loss(chosen, rejected):
        return named_policy_loss(name)(log_probs(chosen=chosen, rejected=rejected), OPTIONS)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_inputs_are_widened_before_any_arithmetic(dtype):
    chosen, rejected = torch.tensor([100.0, 8.0], dtype=dtype), torch.tensor([0.0625, 8.0], dtype=dtype)
    for loss in REWARD_LOSSES.values():
        assert loss(chosen, rejected).dtype == torch.float32
    assert hinge_reward_loss(rejected, chosen)[0].item() == 100.9375  # bfloat16 would say 101
    pairs = log_probs(dtype=dtype)
    for policy_loss in map(named_policy_loss, POLICY_LOSSES):
        assert policy_loss(pairs, OPTIONS).dtype == torch.float32
    assert reward_centering_penalty(chosen, rejected).dtype == torch.float32
    assert hybrid_loss(chosen, rejected).dtype == torch.float32


def test_float64_stays_float64():
    for loss in REWARD_LOSSES.values():
        assert loss(doubles(1.0), doubles(2.0), margin=torch.ones(1)).dtype == torch.float64
    for policy_loss in map(named_policy_loss, POLICY_LOSSES):
        assert policy_loss(log_probs(), OPTIONS).dtype == torch.float64


@each_reward_loss
@pytest.mark.parametrize(
    ("chosen", "rejected", "margin"), [((3,), (3, 1), None), ((3,), (1,), None), ((), (), None), ((3,), (3,), (1,))]
)
def test_shapes_that_would_broadcast_are_refused(name, chosen, rejected, margin):
    margin = None if margin is None else torch.zeros(margin)
    with pytest.raises(ValueError, match=r"same shape \[B\]; got chosen"):
        REWARD_LOSSES[name](torch.zeros(chosen), torch.zeros(rejected), margin=margin)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PairLogProbs)])
def test_pair_log_probs_refuse_fields_of_other_shapes(field):
    with pytest.raises(ValueError, match=rf"{field} \[3, 1\]"):
        dataclasses.replace(log_probs(), **{field: torch.ones(3, 1)})


def test_half_a_reference_is_refused():
    with pytest.raises(ValueError, match="both of reference_chosen and reference_rejected"):
        log_probs(reference_rejected=None)


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": math.nan}, {"label_smoothing": 0.6}, {"label_smoothing": -0.1}, {"target_margin": -1.0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PolicyLossOptions(**options)


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss, slic_loss, simpo_loss, orpo_loss, kto_pair_loss])
def test_losses_check_beta_themselves(loss):
    with pytest.raises(ValueError, match="beta must be a positive number, got 0"):
        loss(log_probs(), beta=0.0)


@pytest.mark.parametrize("loss", [dpo_loss, slic_loss, simpo_loss])
def test_losses_check_label_smoothing_themselves(loss):
    with pytest.raises(ValueError, match=r"label_smoothing must be between 0 and 0\.5, got 0\.9"):
        loss(log_probs(), label_smoothing=0.9)


# The hybrid sum


def test_hybrid_by_hand():
    assert hybrid_loss(doubles(1.0, 2.0), doubles(10.0, 20.0)).tolist() == [3.0, 6.0]
    assert hybrid_loss(doubles(1.0, 2.0), doubles(10.0, 20.0), reward_weight=0.5, policy_ratio=-0.1).tolist() == [
        -0.5,
        -1.0,
    ]


def test_weights_of_1_and_0_are_the_baseline_and_dpo():
    reward = bradley_terry_loss(doubles(1.0, 2.0, 3.0), doubles(0.0, 5.0, 3.0))
    policy = dpo_loss(log_probs())
    assert torch.equal(hybrid_loss(reward, policy, reward_weight=1, policy_ratio=0), reward)
    assert torch.equal(hybrid_loss(reward, policy, reward_weight=0, policy_ratio=1), policy)


def test_a_term_without_weight_may_be_anything():
    nan = torch.full((2,), math.nan, requires_grad=True)
    reward = torch.ones(2, requires_grad=True)
    loss = hybrid_loss(reward, nan, policy_ratio=0.0)
    loss.sum().backward()
    assert loss.tolist() == [1.0, 1.0]
    assert nan.grad is None
    assert hybrid_loss(None, torch.ones(2), reward_weight=0.0, policy_ratio=2.0).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("reward", "policy", "weights", "message"),
    [
        (torch.ones(2), torch.ones(2, 1), {}, "same shape"),
        (torch.ones(2), torch.ones(1), {}, "same shape"),
        (torch.ones(()), None, {"policy_ratio": 0.0}, "same shape"),
        (torch.ones(2), None, {}, "policy_loss is None"),
        (torch.ones(2), torch.ones(2), {"policy_ratio": math.nan}, "weight of policy_loss"),
        (torch.ones(2), torch.ones(2), {"reward_weight": 0.0, "policy_ratio": 0.0}, "both 0"),
    ],
)
def test_hybrid_refuses(reward, policy, weights, message):
    with pytest.raises(ValueError, match=message):
        hybrid_loss(reward, policy, **weights)
