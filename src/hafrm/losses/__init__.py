"""Preference losses: pure functions from tensors to tensors, one number a pair.

Knows rewards and log-probabilities of pairs. Knows no model, tokenizer, device or config, and never averages: that is
the caller's choice. Equation numbers are those of the HAF-RM paper. Shape letters: B pairs.

Two families and their sum:

* reward losses see the rewards of `chosen` and `rejected` (Eq. 2 and other priors than the logistic);
* policy losses see the log-probs of both responses under the policy and the reference (Eq. 4 and its kin);
* `hybrid_loss` adds the two (Eq. 5).

Everything is computed in float32 at least: bfloat16 and float16 are widened, float64 stays float64. Values and
gradients stay finite far beyond any margin that training meets (tested to +-1e4). Shapes are checked first, since
broadcasting [B] against [B, 1] would give a loss that looks right and is not.
"""

from __future__ import annotations

from hafrm.losses.hybrid import hybrid_loss
from hafrm.losses.policies import (
    COUPLES_PAIRS,
    OPTIONS_READ,
    POLICY_LOSSES,
    USES_REFERENCE,
    PairLogProbs,
    PolicyLoss,
    PolicyLossName,
    PolicyLossOptions,
    dpo_loss,
    ipo_loss,
    kto_pair_loss,
    orpo_loss,
    sft_loss,
    simpo_loss,
    slic_loss,
)
from hafrm.losses.rewards import (
    REWARD_LOSSES,
    RewardLoss,
    RewardLossName,
    bradley_terry_loss,
    cauchy_loss,
    hinge_reward_loss,
    probit_loss,
    register_reward_loss,
    reward_centering_penalty,
)

__all__ = [
    "COUPLES_PAIRS",
    "OPTIONS_READ",
    "POLICY_LOSSES",
    "REWARD_LOSSES",
    "USES_REFERENCE",
    "PairLogProbs",
    "PolicyLoss",
    "PolicyLossName",
    "PolicyLossOptions",
    "RewardLoss",
    "RewardLossName",
    "bradley_terry_loss",
    "cauchy_loss",
    "dpo_loss",
    "hinge_reward_loss",
    "hybrid_loss",
    "ipo_loss",
    "kto_pair_loss",
    "orpo_loss",
    "probit_loss",
    "register_reward_loss",
    "reward_centering_penalty",
    "sft_loss",
    "simpo_loss",
    "slic_loss",
]
