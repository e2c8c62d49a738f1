"""The sum of a reward loss and a policy loss (Eq. 5)."""

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
