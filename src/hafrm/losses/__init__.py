"""Preference losses: pure functions from tensors to one loss per pair.

They take rewards and log-probabilities of pairs. They are independent of models, tokenizers, devices and configs, and
leave averaging to the caller. Equation numbers are those of the HAF-RM paper. Shape letters: B pairs.

Two families and their sum:

* reward losses use the rewards of `chosen` and `rejected` (Eq. 2, variants with other priors than the logistic, and
  Plackett-Luce for rankings);
* policy losses use the log-probs of both responses under the policy and the reference (Eq. 4 and alternatives);
* `hybrid_loss` adds the two (Eq. 5).

`consistency_loss` takes both: rewards of all prefixes of the responses, and the probability of their tokens.

Computations use at least float32: bfloat16 and float16 are widened, float64 is kept. Values and gradients stay finite
far beyond the margins seen in training (tested to +-1e4). Shapes are checked first, because broadcasting [B] against
[B, 1] would silently give a wrong loss. torch is imported when a loss is first computed, so that options can be checked
without it.
"""

from __future__ import annotations

from hafrm.losses.hybrid import consistency_loss, hybrid_loss
from hafrm.losses.named import (
    POLICY_LOSSES,
    PolicyLoss,
    PolicyLossOptions,
    couples_pairs,
    loss_terms,
    named_policy_loss,
    options_read,
    uses_reference,
)
from hafrm.losses.policies import (
    PairLogProbs,
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    dpo_loss,
    exo_pair_loss,
    ipo_loss,
    kto_pair_loss,
    nca_pair_loss,
    orpo_loss,
    robust_dpo_loss,
    sft_loss,
    sigmoid_norm_loss,
    simpo_loss,
    slic_loss,
    sppo_hard_loss,
)
from hafrm.losses.rewards import (
    PLACKETT_LUCE,
    REWARD_LOSSES,
    RewardLoss,
    RewardLossName,
    bradley_terry_loss,
    cauchy_loss,
    hinge_reward_loss,
    plackett_luce_loss,
    probit_loss,
    register_reward_loss,
    reward_centering_penalty,
)

__all__ = [
    "PLACKETT_LUCE",
    "POLICY_LOSSES",
    "REWARD_LOSSES",
    "PairLogProbs",
    "PolicyLoss",
    "PolicyLossOptions",
    "RewardLoss",
    "RewardLossName",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_pair_loss",
    "bradley_terry_loss",
    "cauchy_loss",
    "consistency_loss",
    "couples_pairs",
    "discopop_loss",
    "dpo_loss",
    "exo_pair_loss",
    "hinge_reward_loss",
    "hybrid_loss",
    "ipo_loss",
    "kto_pair_loss",
    "loss_terms",
    "named_policy_loss",
    "nca_pair_loss",
    "options_read",
    "orpo_loss",
    "plackett_luce_loss",
    "probit_loss",
    "register_reward_loss",
    "reward_centering_penalty",
    "robust_dpo_loss",
    "sft_loss",
    "sigmoid_norm_loss",
    "simpo_loss",
    "slic_loss",
    "sppo_hard_loss",
    "uses_reference",
]
