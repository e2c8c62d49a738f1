"""Compute losses and metrics from the scores of a batch (Eq. 5), with the metric names of TRL.

Shape letters: B pairs, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from hafrm.data import PairTables
from hafrm.errors import ConfigError
from hafrm.logprobs import Foresight
from hafrm.losses import (
    PLACKETT_LUCE,
    REWARD_LOSSES,
    PairLogProbs,
    consistency_loss,
    couples_pairs,
    hybrid_loss,
    named_policy_loss,
    plackett_luce_loss,
    reward_centering_penalty,
    uses_reference,
)
from hafrm.models.hybrid import SequenceScores
from hafrm.stats import fit_temperature
from hafrm.training.batches import PairBatch
from hafrm.training.loss import LossConfig


@dataclass(frozen=True)
class PairLosses:
    """Per-pair values: the loss to minimise and the metrics to log, each [B]."""

    loss: Tensor
    metrics: dict[str, Tensor]


Metric = Callable[[Tensor, Tensor], Tensor]
"""A metric of the rewards of chosen and rejected responses, [B] each, to one number per pair, [B]."""

_METRICS: dict[str, Metric] = {}


def register_metric(name: str, metric: Metric) -> None:
    """Log a metric of your own in this process, as `custom/NAME` in training and `eval_custom/NAME` in validation.

    Args:
        name: A Python identifier.
        metric: Takes the rewards of the chosen and of the rejected responses, [B] each, and returns one number per
            pair, [B], of which means are logged.

    Raises:
        ValueError: the name is taken by another metric, or is not a Python identifier.

    Example:
        >>> hafrm.register_metric("wide", lambda chosen, rejected: (chosen - rejected > 1).float())
    """
    if not name.isidentifier() or _METRICS.get(name, metric) is not metric:
        raise ValueError(f"{name!r} can't name a metric: it is not a Python identifier, or it is taken")
    _METRICS[name] = metric


class Objective:
    """The training objective: which scores it needs, and how to compute losses from them.

    Args:
        config: The losses, with the weights that the method fixes.
        length_slope: How strongly longer responses are preferred in the training pairs, if length is controlled; see
            `length_slope`.
    """

    def __init__(self, config: LossConfig, length_slope: float = 0.0) -> None:
        self.config, self.length_slope = config, length_slope
        self.needs_rewards = config.reward_weight != 0
        self.needs_log_probs = config.policy_ratio != 0
        self.needs_reference = self.needs_log_probs and uses_reference(config.policy_loss)
        self.couples_pairs = self.needs_log_probs and couples_pairs(config.policy_loss)
        """Whether a pair's loss depends on the other pairs in its part, so that splitting a step into parts changes it.
        """
        self._options = config.policy_options

    def pair_losses(self, model: nn.Module, batch: PairBatch, reference: Tensor | None = None) -> PairLosses:
        """Run a model on a batch and compute its losses and metrics.

        Args:
            model: A `HybridModel`, or a wrapper of one.
            batch: The batch.
            reference: Live reference log-probs, [S], if the batch has none.
        """
        reference = batch.reference if reference is None else reference
        scores: SequenceScores = model(
            batch.sequences,
            rewards=self.needs_rewards,
            log_probs=self.needs_log_probs,
            prefixes=bool(self.config.consistency_weight),
            foresight=self._foresight(batch, reference),
        )
        return self(scores, batch, reference)

    def _foresight(self, batch: PairBatch, reference: Tensor | None) -> Foresight | None:
        """Return the policy loss's derivative with respect to a pair's log-probs, for use during the forward pass."""
        if not self.needs_log_probs or self.couples_pairs or not torch.is_grad_enabled():
            return None

        sizes = zip(*batch.units, strict=True)
        firsts = dict(zip(*(accumulate(each, initial=0) for each in sizes), strict=True))  # pairs by sequences

        def slopes(log_probs: Tensor, first: int) -> Tensor:
            """Return the derivative in the log-probs of whole prompts' sequences, of which `first` is the first."""
            last = first + len(log_probs)
            pairs = slice(firsts[first], firsts[last])
            sides = [side[pairs] - first for side in (batch.chosen, batch.rejected)]
            known = None if reference is None else reference[first:last]
            with torch.enable_grad():
                leaf = log_probs.detach().requires_grad_()
                lengths = batch.sequences.response_lengths[first:last]
                loss = self._policy_loss(_pair_log_probs(leaf, known, lengths, *sides))
                (slope,) = torch.autograd.grad(loss.sum(), leaf)
            return slope

        return Foresight(batch.sequences.lengths, tuple(sequences for sequences, _ in batch.units), slopes)

    def __call__(self, scores: SequenceScores, batch: PairBatch, reference: Tensor | None) -> PairLosses:
        """Compute the losses and metrics of a batch.

        Args:
            batch: The batch, for margins and response lengths.
            reference: Reference log-probs, [S]; required if `needs_reference`.

        Returns:
            `rewards/*` belong to the head that scores: the reward head or, if that is not trained, the policy head with
            its implicit reward beta * log-ratio. `policy/*` are always those of the implicit reward.
        """
        reward_loss, policy_loss = None, None
        metrics: dict[str, Tensor] = {}
        if scores.rewards is not None:
            chosen, rejected = scores.rewards[batch.chosen], scores.rewards[batch.rejected]
            reward_loss = self._reward_loss(scores.rewards if scores.of_heads is None else scores.of_heads, batch)
            metrics |= {"loss/reward": reward_loss} | _preference_metrics("rewards", chosen, rejected)
        if scores.log_probs is not None:
            lengths = batch.sequences.response_lengths
            log_probs = _pair_log_probs(scores.log_probs, reference, lengths, batch.chosen, batch.rejected)
            policy_loss = self._policy_loss(log_probs)
            implicit = self._implicit_rewards(log_probs)
            metrics |= {"loss/policy": policy_loss} | _preference_metrics("policy", *implicit)
            metrics |= {"logps/chosen": log_probs.chosen, "logps/rejected": log_probs.rejected}
            if scores.rewards is None:
                metrics |= _preference_metrics("rewards", *implicit)
        loss = hybrid_loss(
            reward_loss, policy_loss, reward_weight=self.config.reward_weight, policy_ratio=self.config.policy_ratio
        )
        if scores.prefixes is not None and scores.token_log_probs is not None:
            sequences = batch.sequences.response_lengths, batch.chosen, batch.rejected
            consistency = consistency_loss(scores.prefixes, scores.token_log_probs, *sequences)
            metrics |= {"loss/consistency": consistency}
            loss = loss + self.config.consistency_weight * consistency
        ends = metrics["rewards/chosen"].detach(), metrics["rewards/rejected"].detach()
        metrics |= {f"custom/{name}": metric(*ends) for name, metric in _METRICS.items()}
        lengths = batch.sequences.response_lengths
        metrics |= _length_metrics(lengths[batch.chosen] - lengths[batch.rejected], metrics["rewards/margins"])
        return PairLosses(loss, {name: value.detach() for name, value in metrics.items()})

    def _policy_loss(self, log_probs: PairLogProbs) -> Tensor:
        return named_policy_loss(self.config.policy_loss)(log_probs, self._options)

    def _implicit_rewards(self, log_probs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """Return the policy head's rewards: beta * log-ratio, or beta * mean log-prob if the loss has no reference."""
        if self.needs_reference:
            return self.config.beta * log_probs.chosen_log_ratio, self.config.beta * log_probs.rejected_log_ratio
        return self.config.beta * log_probs.chosen_mean, self.config.beta * log_probs.rejected_mean

    def _reward_loss(self, rewards: Tensor, batch: PairBatch) -> Tensor:
        """Return the per-pair loss, [B], of rewards, [S], or the mean over the heads of [S, K].

        In training, each head weighs each pair by a draw from the exponential distribution of mean 1.
        """
        chosen, rejected = rewards[batch.chosen], rewards[batch.rejected]
        if rewards.ndim == 1:
            return self._loss_of_head(chosen, rejected, batch)
        losses = torch.stack([self._loss_of_head(*head, batch) for head in zip(chosen.T, rejected.T, strict=True)], 1)
        if torch.is_grad_enabled():
            drawn = [np.random.default_rng(row).exponential(size=losses.shape[1]) for row in batch.rows.tolist()]
            losses = losses * torch.tensor(np.array(drawn)).to(losses)
        return losses.mean(1)

    def margin(self, batch: PairBatch) -> Tensor:
        """Return by how much chosen rewards should exceed rejected ones, [B]: less if length explains the label."""
        if not self.length_slope:
            return batch.margin
        lengths = batch.sequences.response_lengths.log()
        return batch.margin - self.length_slope * (lengths[batch.chosen] - lengths[batch.rejected])

    def _loss_of_head(self, chosen: Tensor, rejected: Tensor, batch: PairBatch) -> Tensor:
        margin = self.margin(batch)
        if self.config.reward_loss == PLACKETT_LUCE:
            loss = plackett_luce_loss(chosen, rejected, batch.chosen, margin=margin)
        else:
            loss = REWARD_LOSSES[self.config.reward_loss](
                chosen, rejected, margin=margin, label_smoothing=self.config.label_smoothing
            )
        if self.config.centering:
            loss = loss + self.config.centering * reward_centering_penalty(chosen, rejected)
        return loss


def length_slope(tables: PairTables) -> float:
    """Fit b to pairs, where the chosen response wins with probability sigmoid(b * log(its tokens / the other's)).

    Raises:
        ConfigError: the longer response wins every pair, or the shorter one does.
    """
    gaps = -np.diff(np.log(tables.lengths()), axis=1)[:, 0]
    sign = 1.0 if gaps.mean() > 0 else -1.0
    temperature = fit_temperature(sign * gaps)
    if temperature == 0:
        raise ConfigError(
            f"loss.length_control: the {'longer' if sign > 0 else 'shorter'} response wins every training pair of "
            "different lengths, so length explains all labels and nothing else can be learned."
        )
    return sign / temperature


def _pair_log_probs(
    log_probs: Tensor, reference: Tensor | None, lengths: Tensor, chosen: Tensor, rejected: Tensor
) -> PairLogProbs:
    """Gather the values of sequences, [S], into those of pairs, [B], by the indices of their sides."""
    return PairLogProbs(
        log_probs[chosen],
        log_probs[rejected],
        None if reference is None else reference[chosen],
        None if reference is None else reference[rejected],
        lengths[chosen],
        lengths[rejected],
    )


def _length_metrics(longer: Tensor, margin: Tensor) -> dict[str, Tensor]:
    """Compute how often the longer response is the chosen one, and how often it has the higher reward; ties are half.

    Both arguments are differences of chosen and rejected responses, [B]: of their tokens and of their rewards.
    """
    return {
        "length/accuracies": 0.5 + 0.5 * longer.sign().float(),
        "length/agreement": 0.5 + 0.5 * longer.sign().float() * margin.sign().float(),
    }


def _preference_metrics(name: str, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Compute TRL's metrics of rewards. A tie counts as half a hit, as in `hafrm.stats`."""
    margin = chosen - rejected
    return {
        f"{name}/chosen": chosen,
        f"{name}/rejected": rejected,
        f"{name}/margins": margin,
        f"{name}/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
    }
