"""Plackett-Luce: the loss of rankings, computed from their pairs. Shape letters: B pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hafrm.losses.rewards import reward_difference

if TYPE_CHECKING:
    from torch import Tensor


def plackett_luce_loss(chosen: Tensor, rejected: Tensor, winners: Tensor, *, margin: Tensor | None = None) -> Tensor:
    """Compute the negative log-likelihood of rankings under the Plackett-Luce model.

    Each response that won a pair is treated as chosen from itself and the responses that lost to it, with probability
    exp(r) / (exp(r) + sum of exp(r_lost)). If the pairs are all those of a ranking, these choices are the stages of
    Plackett-Luce: best of all, best of the rest, and so on. Tied responses, which form no pair, are each chosen from
    themselves and all responses below. With a single pair, this is the Bradley-Terry loss.

    Args:
        chosen: Rewards of the preferred responses, [B].
        rejected: Rewards of the other responses, [B].
        winners: Which response the preferred one is, integers, [B]. Pairs with equal numbers are one choice.
        margin: The reward difference by which `chosen` should win, [B]; see `bradley_terry_loss`.

    Returns:
        Per-pair loss, [B]: a choice's loss is shared equally by its pairs, so the sum over a ranking's pairs is its
        negative log-likelihood.

    Raises:
        ValueError: the shapes are not all the same [B].
    """
    import torch

    behind = -reward_difference(chosen, rejected, margin)
    if winners.shape != behind.shape:
        raise ValueError(f"winners must be {list(behind.shape)} like the rewards, got {list(winners.shape)}")
    _, choice, pairs = torch.unique(winners, return_inverse=True, return_counts=True)
    none = behind.new_zeros(len(pairs))
    largest = none.scatter_reduce(0, choice, behind.detach(), "amax")  # at least 0, the chosen response's own
    rivals = none.index_add(0, choice, (behind - largest[choice]).exp())
    losses = largest + ((-largest).exp() + rivals).log()
    shared: Tensor = (losses / pairs)[choice]
    return shared
