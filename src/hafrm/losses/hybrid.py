"""Losses of both heads: the sum of a reward loss and a policy loss (Eq. 5), and the consistency of prefixes' rewards.

Shape letters: B pairs, S sequences, T response tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hafrm.losses.shapes import require_pairs, wide

if TYPE_CHECKING:
    from torch import Tensor


def hybrid_loss(
    reward_loss: Tensor | None,
    policy_loss: Tensor | None,
    *,
    reward_weight: float = 1.0,
    policy_ratio: float = 0.2,
) -> Tensor:
    """Return reward_weight * reward_loss + policy_ratio * policy_loss (Eq. 5).

    A term with weight 0 is skipped, so (1, 0) *is* the reward loss and (0, 1) *is* the policy loss, even if the other
    is NaN, infinite or None.

    Args:
        reward_loss: Per-pair reward loss, [B]; may be None if its weight is 0.
        policy_loss: Per-pair policy loss, [B]; may be None if its weight is 0.
        reward_weight: Weight of the reward loss (1 in the paper).
        policy_ratio: Weight of the policy loss, the paper's alpha; Figure 6 tries negative ones too.

    Returns:
        Per-pair loss, [B].

    Raises:
        ValueError: the shapes differ, a loss with nonzero weight is None, a weight is not finite, or both are 0.
    """
    weighted = {"reward_loss": (reward_weight, reward_loss), "policy_loss": (policy_ratio, policy_loss)}
    terms: dict[str, Tensor] = {}
    for name, (weight, loss) in weighted.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {name} must be a finite number, got {weight}")
        if weight == 0:
            continue
        if loss is None:
            raise ValueError(f"{name} is None, but its weight is {weight}")
        terms[name] = weight * wide(loss)
    if not terms:
        raise ValueError("reward_weight and policy_ratio are both 0, so there is nothing to train")
    require_pairs(**terms)
    import torch

    return torch.stack(list(terms.values())).sum(dim=0)


def consistency_loss(
    prefix_rewards: Tensor, log_probs: Tensor, lengths: Tensor, chosen: Tensor, rejected: Tensor
) -> Tensor:
    """Compute the intra-trajectory consistency loss of pairs (ICRM, arXiv:2506.09096).

    d_t is the probability that the label is right according to the prefix that ends at token t: the sigmoid of its
    reward's lead over the mean prefix reward of the other response, or of its lag if the response is the rejected one.
    The rewards of neighbouring prefixes are pulled together, in proportion to the probability of the token between
    them:

        sum over t of p(t + 1) * -(d_(t+1) * log d_t + d_t * log d_(t+1)) / 2, divided by the sum of p(t + 1)

    where factors outside the logarithms, the other response's mean and p, the probability of token t + 1 under the
    policy, have no gradient. A pair's loss is the mean over its two responses. The formula is that of the authors'
    code, with four differences: p comes from the policy head in training instead of a separate, frozen generator; it is
    not scaled; means are only over response tokens; and sums are divided by the response's own sum of p instead of a
    running mean over batches, so that a pair's loss does not depend on other pairs.

    Args:
        prefix_rewards: Reward of each response up to each of its tokens, [T].
        log_probs: Log-probs of these tokens, [T].
        lengths: Tokens of each sequence, [S], at least 1, summing to T.
        chosen: Index of each pair's better sequence, [B].
        rejected: Index of each pair's worse sequence, [B].

    Returns:
        Per-pair loss, [B]; a response of one token adds 0.

    Raises:
        ValueError: the shapes don't fit together.
    """
    import torch
    from torch.nn.functional import logsigmoid

    if prefix_rewards.ndim != 1 or prefix_rewards.shape != log_probs.shape or chosen.shape != rejected.shape:
        raise ValueError(
            f"expected prefix_rewards and log_probs [T], chosen and rejected [B]; got {list(prefix_rewards.shape)}, "
            f"{list(log_probs.shape)}, {list(chosen.shape)} and {list(rejected.shape)}"
        )
    rewards, likely = wide(prefix_rewards), wide(log_probs).detach().exp()
    sequence = torch.repeat_interleave(lengths)
    means = rewards.detach().new_zeros(len(lengths)).index_add(0, sequence, rewards.detach()) / lengths

    side, rival = torch.cat([chosen, rejected]), torch.cat([rejected, chosen])
    sign = rewards.new_ones(len(side))
    sign[len(chosen) :] = -1
    steps = lengths[side] - 1
    of = torch.repeat_interleave(steps)  # which side each of its steps, from a token to the next, belongs to
    first = (lengths.cumsum(0) - lengths)[side] - (steps.cumsum(0) - steps)
    at = first[of] + torch.arange(len(of), device=of.device)

    right = [logsigmoid(sign[of] * (rewards[place] - means[rival][of])) for place in (at, at + 1)]
    before, after = right
    losses = -likely[at + 1] * (after.detach().exp() * before + before.detach().exp() * after) / 2
    sums = rewards.new_zeros(2, len(side)).index_add(1, of, torch.stack([losses, likely[at + 1]]))
    each = sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)
    return (each[: len(chosen)] + each[len(chosen) :]) / 2
