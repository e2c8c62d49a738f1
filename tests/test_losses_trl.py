"""Losses, compared with TRL's own code: its trainers' loss methods run on made-up model outputs."""

import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from hafrm.losses import (
    PairLogProbs,
    PolicyLossOptions,
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    bradley_terry_loss,
    discopop_loss,
    dpo_loss,
    exo_pair_loss,
    ipo_loss,
    named_policy_loss,
    nca_pair_loss,
    orpo_loss,
    reward_centering_penalty,
    robust_dpo_loss,
    sft_loss,
    sigmoid_norm_loss,
    simpo_loss,
    slic_loss,
    sppo_hard_loss,
)

pytest.importorskip("trl", reason="TRL is an optional dependency")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # otherwise its notice on unstable modules would be an error

from trl import DPOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

LENGTHS = torch.tensor([3, 1, 6, 2, 5, 4])  # chosen before rejected
TOKENS = 6


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)


@pytest.fixture
def token_log_probs() -> torch.Tensor:
    """Log-probs of 6 responses padded on the right, 0 at padding."""
    mask = torch.arange(TOKENS) < LENGTHS[:, None]
    return -3 * torch.rand(6, TOKENS, generator=torch.Generator().manual_seed(0)) * mask


@pytest.fixture
def pairs(token_log_probs: torch.Tensor) -> PairLogProbs:
    chosen, rejected = token_log_probs.sum(dim=1).chunk(2)
    reference = -5 * torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
    return PairLogProbs(chosen, rejected, reference[0], reference[1], *LENGTHS.chunk(2))


@pytest.mark.parametrize("margin", [None, torch.tensor([0.5, 0.0, 2.0])], ids=["no margin", "margin"])
@pytest.mark.parametrize("centering", [None, 0.01])
def test_reward_trainer(margin, centering):
    rewards = torch.tensor([1.0, -0.5, 2.0, 0.0, 3.0, 1.5])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centering),
        accelerator=ACCELERATOR,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {} if margin is None else {"margin": margin}
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=rewards[:, None]), inputs)
    chosen, rejected = rewards.chunk(2)
    ours = bradley_terry_loss(chosen, rejected, margin=margin)
    ours = ours + (centering or 0.0) * reward_centering_penalty(chosen, rejected)
    torch.testing.assert_close(ours.mean(), theirs)


def trl_dpo(
    token_log_probs: torch.Tensor,
    pairs: PairLogProbs,
    loss_types: str | list[str],
    beta: float,
    *,
    weights: tuple[float, ...] = (1.0,),
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The batch loss of TRL's DPOTrainer, for a model that gives these log-probs."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_types] if isinstance(loss_types, str) else loss_types,
        loss_weights=list(weights),
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    zeros = torch.zeros_like(token_log_probs)
    outputs = SimpleNamespace(log_probs=token_log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    lengths = torch.cat([pairs.chosen_length, pairs.rejected_length])
    inputs = {
        "input_ids": torch.zeros(len(lengths), 1 + TOKENS, dtype=torch.int64),  # a prompt of one token
        "completion_mask": ((torch.arange(1 + TOKENS) > 0) & (torch.arange(1 + TOKENS) <= lengths[:, None])).long(),
        "ref_chosen_logps": pairs.reference_chosen,
        "ref_rejected_logps": pairs.reference_rejected,
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


@pytest.mark.parametrize(
    ("loss_type", "ours"), [("sigmoid", dpo_loss), ("ipo", ipo_loss), ("hinge", slic_loss)], ids=["dpo", "ipo", "slic"]
)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_trainer(token_log_probs, pairs, loss_type, ours, beta):
    theirs = trl_dpo(token_log_probs, pairs, loss_type, beta)
    torch.testing.assert_close(ours(pairs, beta=beta).mean(), theirs)


@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [
        ("nca_pair", nca_pair_loss),
        ("bco_pair", bco_pair_loss),
        ("sppo_hard", sppo_hard_loss),
        ("apo_zero", apo_zero_loss),
        ("apo_down", apo_down_loss),
        ("discopop", discopop_loss),
        ("sigmoid_norm", sigmoid_norm_loss),
    ],
)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_further_losses_of_the_dpo_trainer(token_log_probs, pairs, loss_type, ours, beta):
    theirs = trl_dpo(token_log_probs, pairs, loss_type, beta)
    torch.testing.assert_close(ours(pairs, beta=beta).mean(), theirs)


@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [("robust", robust_dpo_loss), ("exo_pair", exo_pair_loss), ("aot", aot_loss), ("aot_unpaired", aot_unpaired_loss)],
)
@pytest.mark.parametrize("label_smoothing", [0.01, 0.2])
def test_losses_of_the_dpo_trainer_with_label_smoothing(token_log_probs, pairs, loss_type, ours, label_smoothing):
    theirs = trl_dpo(token_log_probs, pairs, loss_type, 0.3, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours(pairs, beta=0.3, label_smoothing=label_smoothing).mean(), theirs)


def test_a_sum_of_losses(token_log_probs, pairs):
    theirs = trl_dpo(token_log_probs, pairs, ["sigmoid", "bco_pair"], 0.3, weights=(1.0, 0.25))
    ours = named_policy_loss("dpo + 0.25*bco_pair")(pairs, PolicyLossOptions(beta=0.3))
    torch.testing.assert_close(ours.mean(), theirs)


def test_dpo_trainer_sft_weighs_tokens_alike(token_log_probs, pairs):
    theirs = trl_dpo(token_log_probs, pairs, "sft", 0.1)
    ours = (sft_loss(pairs) * pairs.chosen_length).sum() / pairs.chosen_length.sum()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cpo_trainer_sigmoid_is_conservative_dpo_without_reference(pairs, label_smoothing):
    trainer = SimpleNamespace(
        alpha=0.0, accelerator=ACCELERATOR, loss_type="sigmoid", beta=0.3, label_smoothing=label_smoothing
    )
    theirs, *_ = CPOTrainer.cpo_loss(trainer, pairs.chosen, pairs.rejected)
    free = PairLogProbs(pairs.chosen, pairs.rejected, None, None, pairs.chosen_length, pairs.rejected_length)
    torch.testing.assert_close(dpo_loss(free, beta=0.3, label_smoothing=label_smoothing), theirs)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cpo_trainer_simpo(pairs, label_smoothing):
    trainer = SimpleNamespace(
        alpha=0.0,
        accelerator=ACCELERATOR,
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=0.7,
        label_smoothing=label_smoothing,
    )
    means = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    theirs, *_ = CPOTrainer.cpo_loss(trainer, *means)  # its trainer hands token means to this loss
    ours = simpo_loss(pairs, beta=2.0, target_margin=0.7, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, theirs)


def test_orpo_trainer(pairs):
    trainer = SimpleNamespace(accelerator=ACCELERATOR, beta=0.3)
    means = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    theirs, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    torch.testing.assert_close(orpo_loss(pairs, beta=0.3), -means[0] - theirs)  # its trainer adds the NLL - this
