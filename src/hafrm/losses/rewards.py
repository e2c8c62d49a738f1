"""Reward losses: -log P(chosen wins), where P is a distribution function of the reward difference (Eq. 2 and variants).

`plackett_luce_loss` is the loss of whole rankings, computed from their pairs. All take the rewards of pairs.
Shape letters: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from hafrm.losses.shapes import cauchy, hinge, logistic, probit, require_pairs, smoothed, wide

if TYPE_CHECKING:
    from torch import Tensor


class RewardLoss(Protocol):
    """A loss on the rewards of pairs."""

    def __call__(
        self, chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Compute the per-pair loss, [B]."""
        ...


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the negative log-probability that the chosen reward wins, with a logistic prior (Eq. 2).

    Args:
        chosen: Rewards of the preferred responses, [B].
        rejected: Rewards of the other responses, [B].
        margin: The reward difference by which `chosen` should win, [B], which is subtracted from the actual difference
            before the sigmoid (Llama 2, arXiv:2307.09288, Eq. 2). None means 0.
        label_smoothing: Probability, 0 to .5, that a label is wrong. The loss is the cross-entropy with the target
            (1 - label_smoothing, label_smoothing), with the margin included in the model's logit.

    Returns:
        Per-pair loss, [B], float32 (float64 for float64 rewards).

    Raises:
        ValueError: the shapes are not all the same [B], or label_smoothing is out of range.
    """
    return smoothed(logistic, reward_difference(chosen, rejected, margin), label_smoothing)


def hinge_reward_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute a large-margin ranking loss without a probabilistic model: max(0, 1 + margin - difference).

    Arguments, result and errors are those of `bradley_terry_loss`.
    """
    return smoothed(hinge, reward_difference(chosen, rejected, margin), label_smoothing)


def probit_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the negative log-probability that the chosen reward wins, with a normal prior (Thurstone's case V).

    Its tail is lighter than the logistic's: the loss of a confident mistake grows quadratically, so wrong labels weigh
    more.
    Arguments, result and errors are those of `bradley_terry_loss`.
    """
    return smoothed(probit, reward_difference(chosen, rejected, margin), label_smoothing)


def cauchy_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the negative log-probability that the chosen reward wins, with a Cauchy prior.

    Its tail is heavier than the logistic's: the loss of a confident mistake grows only logarithmically and its gradient
    vanishes, so wrong labels weigh less. Arguments, result and errors are those of `bradley_terry_loss`.
    """
    return smoothed(cauchy, reward_difference(chosen, rejected, margin), label_smoothing)


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


def reward_centering_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Compute the penalty (chosen + rejected)^2, which pulls rewards towards mean zero (arXiv:2312.09244, Eq. 2).

    Preference losses only depend on differences, so the level of the rewards may drift. Add the penalty with a small
    weight (.01 in the source).

    Returns:
        Per-pair penalty, [B].

    Raises:
        ValueError: the shapes are not both the same [B].
    """
    require_pairs(chosen=chosen, rejected=rejected)
    return (wide(chosen) + wide(rejected)).square()


RewardLossName = Literal["bradley_terry", "hinge", "probit", "cauchy", "plackett_luce"]
_LOSSES: dict[str, RewardLoss] = {
    "bradley_terry": bradley_terry_loss,
    "hinge": hinge_reward_loss,
    "probit": probit_loss,
    "cauchy": cauchy_loss,
}
REWARD_LOSSES: Mapping[str, RewardLoss] = MappingProxyType(_LOSSES)
"""Losses of single pairs by their names in configs."""

PLACKETT_LUCE = "plackett_luce"
"""The name of the loss of rankings in configs; see `plackett_luce_loss`."""


def register_reward_loss(name: str, loss: RewardLoss) -> None:
    """Register your own loss under a name, for `LossConfig(reward_loss=name)` in this process.

    Raises:
        ValueError: the name is taken by another loss, or is not a Python identifier.

    Example:
        >>> def squared(chosen, rejected, *, margin=None, label_smoothing=0.0):
        ...     return (1 - (chosen - rejected)) ** 2
        >>> hafrm.register_reward_loss("squared", squared)
        >>> hafrm.train({"model": ..., "data": ..., "out": ..., "loss": hafrm.LossConfig(reward_loss="squared")})
    """
    if not name.isidentifier() or name == PLACKETT_LUCE or _LOSSES.get(name, loss) is not loss:
        raise ValueError(f"{name!r} can't name a reward loss: it is not a Python identifier, or it is taken")
    _LOSSES[name] = loss


def reward_difference(chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
    """Return by how much chosen rewards exceed rejected ones and the margin, [B], in at least float32.

    Raises:
        ValueError: the shapes are not all the same [B].
    """
    require_pairs(chosen=chosen, rejected=rejected)
    difference = wide(chosen) - wide(rejected)
    if margin is None:
        return difference
    require_pairs(chosen=chosen, margin=margin)
    return difference - margin.to(difference.dtype)
