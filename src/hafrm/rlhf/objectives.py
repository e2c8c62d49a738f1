"""PPO's arithmetic: pure functions from tensors to tensors, independent of models, tokenizers, texts and devices.

Shape letters: S sequences, T response tokens of all of them. Tokens are concatenated, sequence after sequence, and
`lengths` splits them, so no padding can enter a mean, whitening or loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hafrm.numerics import doubled
from hafrm.rlhf.options import KlEstimator, ScoreScale


class ClippedLoss(NamedTuple):
    """Per-token loss, and whether it was clipped."""

    loss: Tensor
    """[T], float32."""
    clipped: Tensor
    """Whether the clipped term is the larger one, boolean, [T]."""


def kl_estimates(log_probs: Tensor, reference: Tensor, estimator: KlEstimator = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token in nats, [T] in float32, for tokens that the policy drew.

    Args:
        log_probs: Log-probs under the policy, [T].
        reference: Log-probs of the same tokens under the reference, [T].

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(log_probs=log_probs, reference=reference)
    log_ratio = log_probs.float() - reference.float()
    return log_ratio if estimator == "k1" else torch.expm1(-log_ratio) + log_ratio


def shaped_rewards(
    scores: Tensor, kl: Tensor, lengths: Sequence[int], coefficient: float, early: Tensor | None = None
) -> Tensor:
    """Return per-token rewards, [T]: minus the KL penalty, plus the sequence's score at its last token.

    This is the reward of Stiennon et al. (2020) and Ouyang et al. (2022), spread over tokens.

    Args:
        scores: Score of each sequence, [S].
        kl: KL estimate of each token, [T].
        lengths: Response tokens of each sequence, [S], summing to T.
        coefficient: Penalty per nat.
        early: Part of the score that is paid at each token, [T]; only the rest is paid at the last token.

    Raises:
        ValueError: the lengths do not fit the scores or the tokens.
    """
    _require_lengths(lengths, kl=kl)
    if scores.shape != (len(lengths),):
        raise ValueError(f"scores must be [S], S = {len(lengths)}, got {list(scores.shape)}")
    rewards = -coefficient * kl
    if early is not None:
        _require_same_shape(kl=kl, early=early)
        rewards = rewards + early
        scores = scores - torch.stack([each.sum() for each in early.split(list(lengths))])
    last = torch.tensor(lengths, device=kl.device).cumsum(0) - 1
    return rewards.index_add(0, last, scores.to(rewards.dtype))


def generalised_advantages(
    rewards: Tensor, values: Tensor, lengths: Sequence[int], *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Compute generalised advantage estimates (Schulman et al., 2016); a sequence ends with its last token.

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}, with V and A zero after the end.

    Args:
        rewards: Reward of each token, [T].
        values: Value before each token, [T].
        lengths: Response tokens of each sequence, [S].
        gamma: Discount factor of later rewards.
        lam: GAE's lambda: 0 relies on the values as far as possible, 1 on the rewards.

    Returns:
        Advantages and returns (A + V), the targets of the values, each [T].

    Raises:
        ValueError: the shapes differ or the lengths do not fit.
    """
    _require_same_shape(rewards=rewards, values=values)
    _require_lengths(lengths, rewards=rewards)
    # Zero padding after a sequence's end is what the recursion needs: no delta, no value, no advantage.
    row_rewards, row_values = (pad_sequence(list(x.split(list(lengths))), batch_first=True) for x in (rewards, values))
    following = torch.cat((row_values[:, 1:], torch.zeros_like(row_values[:, :1])), dim=1)
    deltas = row_rewards + gamma * following - row_values
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    ends = torch.tensor(lengths, device=deltas.device)
    flat = advantages[torch.arange(deltas.shape[1], device=deltas.device) < ends[:, None]]
    return flat, flat + values


def group_advantages(advantages: Tensor, scores: Tensor, early: Sequence[Sequence[float]], size: int) -> Tensor:
    """Return GRPO's advantages of tokens: the sequence's advantage minus what was paid before the token.

    Like the score, what was paid is centred and scaled by group. A response that has ended keeps what it was paid. So a
    response's first token has the sequence's advantage; without early payments all tokens have.

    Args:
        advantages: GRPO's advantages of sequences, (score - mean) / (sd + 1e-4) in each group, [S].
        scores: Their scores, [S]; NaN for sequences not to learn from, whose advantages are 0.
        early: Part of the score that is paid at each token of each sequence.
        size: Sequences per group, which are adjacent.

    Returns:
        Advantages, [S, L], L the tokens of the longest sequence.
    """
    paid = pad_sequence([torch.tensor(each, device=scores.device) for each in early], batch_first=True)
    before = paid.cumsum(1) - paid
    known = torch.where(scores.isnan()[:, None], torch.nan, before).unflatten(0, (-1, size))
    deviations = (known - known.nanmean(1, keepdim=True)).flatten(0, 1)
    groups = scores.unflatten(0, (-1, size))
    squares = (groups - groups.nanmean(1, keepdim=True)).square().nansum(1) / ((~groups.isnan()).sum(1) - 1)
    spread = squares.sqrt().repeat_interleave(size)[:, None]
    return torch.nan_to_num(advantages[:, None] - deviations / (spread + 1e-4), nan=0.0)


def whiten(values: Tensor) -> Tensor:
    """Shift to mean 0 and scale to variance 1 over all tokens, [T]; equal values become 0."""
    values = values.float()
    return (values - values.mean()) * torch.rsqrt(values.var(correction=0) + 1e-8)


def clipped_policy_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> ClippedLoss:
    """Return PPO's negated clipped objective (Schulman et al., 2017, Eq. 7): max(-A r, -A clip(r, 1 - clip, 1 + clip)).

    Args:
        log_probs: Log-probs under the current policy, [T].
        old: Log-probs under the policy that drew the tokens, [T].
        advantages: Advantage of each token, [T].
        clip: Distance of the ratio r from 1 beyond which the objective stops improving.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(log_probs=log_probs, old=old, advantages=advantages)
    ratio = torch.exp(log_probs - old)
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return ClippedLoss(torch.maximum(plain, bounded), bounded > plain)


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> ClippedLoss:
    """Return half the squared error of the value, or of the value clipped to within `clip` of the old one, if larger.

    Args:
        values: Current values, [T].
        old: Values when the tokens were drawn, [T].
        returns: Target values, [T].
        clip: Maximum change of a value per batch.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(values=values, old=old, returns=returns)
    plain = (values - returns).square() / 2
    bounded = (old + (values - old).clamp(-clip, clip) - returns).square() / 2
    return ClippedLoss(torch.maximum(plain, bounded), bounded > plain)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return the share of the returns' variance that values explain: at most 1; 0 for constant values or returns."""
    _require_same_shape(values=values, returns=returns)
    total = returns.float().var(correction=0).item()
    return 1 - (returns - values).float().var(correction=0).item() / total if total > 0 else 0.0


@dataclass(frozen=True)
class ScoreStatistics:
    """Count, mean and squared deviations of all scores so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def after(self, scores: Tensor) -> ScoreStatistics:
        """Return the statistics after adding a batch's scores, [S]."""
        scores = doubled(scores)
        count = self.count + len(scores)
        mean = scores.mean().item()
        shift = mean - self.mean
        squares = (scores - mean).square().sum().item() + shift**2 * self.count * len(scores) / count
        return ScoreStatistics(count, self.mean + shift * len(scores) / count, self.squares + squares)

    def unit(self, scale: ScoreScale) -> float:
        """Return the difference of scores that is scaled to 1 for learning."""
        return math.sqrt(self.squares / max(self.count, 1) + 1e-8) if scale == "normalised" else 1.0

    def scaled(self, scores: Tensor, scale: ScoreScale) -> Tensor:
        """Return scores scaled for learning, [S]; see `ScoreScale`."""
        return scores if scale == "raw" else (scores - self.mean) / self.unit(scale)


@dataclass(frozen=True)
class KlController:
    """KL coefficient, fixed or adapted to a target KL (Ziegler et al., 2019, section 2.2)."""

    coefficient: float
    target: float | None
    """Target KL per sequence in nats; None keeps the coefficient."""
    horizon: int = 10_000
    """Number of sequences over which a KL of twice the target (or more) raises the coefficient by about a fifth."""

    def after(self, kl: float, sequences: int) -> KlController:
        """Return the controller after a batch with this mean KL per sequence; a non-finite KL changes nothing."""
        if self.target is None or not math.isfinite(kl):
            return self
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coefficient=self.coefficient * (1 + error * sequences / self.horizon))


def _require_same_shape(**tensors: Tensor) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if any(tensor.ndim != 1 for tensor in tensors.values()) or len({*map(tuple, shapes.values())}) > 1:
        raise ValueError(f"all must be [T], got {shapes}")


def _require_lengths(lengths: Sequence[int], **tensor: Tensor) -> None:
    ((name, tokens),) = tensor.items()
    if not lengths or min(lengths) < 1 or sum(lengths) != len(tokens):
        raise ValueError(f"lengths must be positive and sum to the {len(tokens)} of {name}, got {list(lengths)}")
