"""Policy losses on the log-probs of both responses under the policy and the reference (Eq. 4 and alternatives).

They take the log-probabilities of pairs, summed over response tokens. Shape letters: B pairs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from hafrm.losses.shapes import (
    hinge,
    logistic,
    require_label_smoothing,
    require_pairs,
    require_positive,
    smoothed,
    wide,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairLogProbs:
    """Log-probabilities of the responses of B pairs, each summed over the response's tokens.

    Raises:
        ValueError: the tensors do not share one shape [B], or only one of the two references is given.
    """

    chosen: Tensor
    """log pi(y | x) under the policy, [B]."""
    rejected: Tensor
    """log pi(y' | x) under the policy, [B]."""
    reference_chosen: Tensor | None
    """log pi_ref(y | x), [B]. None: no reference; counts as 0, as if the reference found all responses equally likely.
    """
    reference_rejected: Tensor | None
    """log pi_ref(y' | x), [B], or None."""
    chosen_length: Tensor
    """Tokens of y, [B]."""
    rejected_length: Tensor
    """Tokens of y', [B]."""

    def __post_init__(self) -> None:
        if (self.reference_chosen is None) != (self.reference_rejected is None):
            raise ValueError("give both of reference_chosen and reference_rejected, or neither")
        require_pairs(**{name: value for name, value in vars(self).items() if value is not None})

    @property
    def chosen_log_ratio(self) -> Tensor:
        """pd_win of Eq. 4: log pi(y | x) / pi_ref(y | x), [B]."""
        return _log_ratio(self.chosen, self.reference_chosen)

    @property
    def rejected_log_ratio(self) -> Tensor:
        """pd_lose of Eq. 4: log pi(y' | x) / pi_ref(y' | x), [B]."""
        return _log_ratio(self.rejected, self.reference_rejected)

    @property
    def margin(self) -> Tensor:
        """pd_win - pd_lose of Eq. 4, [B]; times beta, the margin of DPO's implicit rewards."""
        return self.chosen_log_ratio - self.rejected_log_ratio

    @property
    def chosen_mean(self) -> Tensor:
        """Mean log-prob of the tokens of y, [B]."""
        return _per_token(self.chosen, self.chosen_length)

    @property
    def rejected_mean(self) -> Tensor:
        """Mean log-prob of the tokens of y', [B]."""
        return _per_token(self.rejected, self.rejected_length)


def dpo_loss(log_probs: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Compute direct preference optimization: -log sigmoid(beta * (pd_win - pd_lose)) (Eq. 4).

    Args:
        log_probs: Response log-probs of policy and reference.
        beta: The paper's tau: how strongly the policy is tied to the reference.
        label_smoothing: Probability, 0 to .5, that a label is wrong; above 0 this is conservative DPO.

    Returns:
        Per-pair loss, [B].

    Raises:
        ValueError: beta or label_smoothing is out of range.
    """
    require_positive(beta=beta)
    return smoothed(logistic, beta * log_probs.margin, label_smoothing)


def ipo_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute identity preference optimization: (margin - 1 / (2 beta))^2 (arXiv:2310.12036, Eq. 17).

    The log-ratios are averaged over tokens, as in TRL 1.16 on the advice of the method's authors: with sums, the square
    would grow with the lengths of the responses.

    Args:
        log_probs: Response log-probs of policy and reference.
        beta: The source's tau; the target margin is 1 / (2 beta) per token.

    Result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    chosen = _per_token(log_probs.chosen_log_ratio, log_probs.chosen_length)
    rejected = _per_token(log_probs.rejected_log_ratio, log_probs.rejected_length)
    return (chosen - rejected - 1 / (2 * beta)).square()


def slic_loss(log_probs: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Compute sequence likelihood calibration: max(0, 1 - beta * (pd_win - pd_lose)) (arXiv:2305.10425).

    This is TRL's `hinge`: beta times the source's hinge with a margin of 1 / beta, on log-ratios to the reference.
    Arguments, result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    return smoothed(hinge, beta * log_probs.margin, label_smoothing)


def simpo_loss(
    log_probs: PairLogProbs, *, beta: float = 0.1, target_margin: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """Compute simple preference optimization: DPO on log-probs per token without a reference (arXiv:2405.14734, Eq. 6).

    Args:
        log_probs: Response log-probs; the reference is not used.
        beta: Scale of the log-probs per token, which are small: the source uses beta from 2 to 10.
        target_margin: The source's gamma: by how much beta times the log-prob per token of `chosen` should be larger.
        label_smoothing: Probability, 0 to .5, that a label is wrong.

    Result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    margin = beta * (log_probs.chosen_mean - log_probs.rejected_mean)
    return smoothed(logistic, margin - target_margin, label_smoothing)


def orpo_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute odds-ratio preference optimization: NLL - beta * log sigmoid(log odds ratio) (arXiv:2403.07691, Eq. 6).

    The NLL is the mean over the tokens of `chosen`. TRL's includes the prompt's tokens and weights all tokens of a
    batch equally.

    Args:
        log_probs: Response log-probs; the reference is not used.
        beta: The source's lambda, the weight of the odds-ratio term.

    Result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    log_odds_ratio = _log_odds(log_probs.chosen_mean) - _log_odds(log_probs.rejected_mean)
    return beta * logistic(log_odds_ratio) - log_probs.chosen_mean


def kto_pair_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute Kahneman-Tversky optimization on pairs: each response against the other side's mean log-ratio.

    The mean log-ratio of the batch's rejected responses, clamped at 0 and without gradient, replaces the KL divergence
    with which a chosen response is compared, and vice versa (arXiv:2402.01306, in the paired form of DPO's
    implementations). The pairs of a batch therefore depend on each other.

    The result is the mean of a pair's two losses, between 0 and 1. Arguments and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    chosen, rejected = log_probs.chosen_log_ratio, log_probs.rejected_log_ratio
    chosen_kl, rejected_kl = (ratio.detach().mean().clamp(min=0) for ratio in (chosen, rejected))
    gain = (beta * (rejected_kl - chosen)).sigmoid()  # = 1 - sigmoid(beta * (chosen - rejected_kl))
    loss = (beta * (rejected - chosen_kl)).sigmoid()
    return (gain + loss) / 2


def sft_loss(log_probs: PairLogProbs) -> Tensor:
    """Compute supervised fine-tuning: the mean NLL of the tokens of `chosen`, [B].

    The mean over a batch weights all pairs equally, whereas TRL weights all tokens equally.
    """
    return -log_probs.chosen_mean


@dataclass(frozen=True, kw_only=True)
class PolicyLossOptions:
    """Options of all policy losses; `OPTIONS_READ` lists those that each loss uses.

    Raises:
        ValueError: an option is out of range.
    """

    beta: float = 0.1
    """Scale of the log-ratios: the paper's tau (Eq. 4); for `orpo` the weight of the odds ratio."""
    label_smoothing: float = 0.0
    """Probability, 0 to .5, that a label is wrong."""
    target_margin: float = 0.5
    """Margin required by `simpo`, its gamma."""

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_label_smoothing(self.label_smoothing)
        if not (math.isfinite(self.target_margin) and self.target_margin >= 0):
            raise ValueError(f"target_margin must be 0 or a positive number, got {self.target_margin}")


PolicyLoss = Callable[[PairLogProbs, PolicyLossOptions], "Tensor"]
"""A loss on the log-probs of pairs, giving one loss per pair, [B]."""

PolicyLossName = Literal["dpo", "ipo", "slic", "simpo", "orpo", "kto_pair", "sft"]
_POLICY_FUNCTIONS: dict[PolicyLossName, Callable[..., Tensor]] = {
    "dpo": dpo_loss,
    "ipo": ipo_loss,
    "slic": slic_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "kto_pair": kto_pair_loss,
    "sft": sft_loss,
}

OPTIONS_READ: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        name: frozenset(inspect.signature(function).parameters) - {"log_probs"}
        for name, function in _POLICY_FUNCTIONS.items()
    }
)
"""Fields of `PolicyLossOptions` used by each policy loss, so that configs can reject options without effect."""


def _with_options(name: PolicyLossName) -> PolicyLoss:
    """Adapt the policy loss `name` to take log-probs and options."""
    function, read = _POLICY_FUNCTIONS[name], OPTIONS_READ[name]

    def loss(log_probs: PairLogProbs, options: PolicyLossOptions) -> Tensor:
        return function(log_probs, **{key: value for key, value in asdict(options).items() if key in read})

    return loss


POLICY_LOSSES: Mapping[str, PolicyLoss] = MappingProxyType({name: _with_options(name) for name in _POLICY_FUNCTIONS})
"""Policy losses by their names in configs."""

COUPLES_PAIRS: frozenset[str] = frozenset({"kto_pair"})
"""Policy losses in which a pair's loss depends on other pairs of its batch."""

USES_REFERENCE: frozenset[str] = frozenset({"dpo", "ipo", "slic", "kto_pair"})
"""Policy losses that use the reference's log-probs; the others run without a reference."""


def _log_ratio(log_prob: Tensor, reference: Tensor | None) -> Tensor:
    return wide(log_prob) if reference is None else wide(log_prob) - wide(reference)


def _per_token(total: Tensor, length: Tensor) -> Tensor:
    """Average over tokens; an empty response counts as one token to avoid 0 / 0."""
    return wide(total) / length.clamp(min=1)


def _log_odds(log_prob: Tensor) -> Tensor:
    """Compute log(p / (1 - p)) for p = exp(log_prob), clamped below 1 by the dtype's epsilon to keep it finite."""
    import torch

    below_zero = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)
    return below_zero - torch.log(-torch.expm1(below_zero))
