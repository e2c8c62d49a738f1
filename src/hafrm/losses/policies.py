"""Policy losses on the log-probs of both responses under the policy and the reference (Eq. 4 and alternatives).

They take the log-probabilities of pairs, summed over response tokens. Shape letters: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    return (_mean_margin(log_probs) - 1 / (2 * beta)).square()


def sigmoid_norm_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute DPO on log-ratios averaged over tokens, as in TRL 1.16 (length-normalized DPO of arXiv:2411.15124).

    Arguments, result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    return logistic(beta * _mean_margin(log_probs))


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


def grm_sft_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute GRM's SFT regularizer: -log sigmoid(beta * log pi(y | x)) (arXiv:2406.10216), [B].

    Arguments and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    return logistic(beta * wide(log_probs.chosen))


def robust_dpo_loss(log_probs: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Compute robust DPO: an unbiased estimate of DPO's loss on labels without errors (arXiv:2403.00409, Eq. 11).

    Args:
        log_probs: Response log-probs of policy and reference.
        beta: As for `dpo_loss`.
        label_smoothing: Probability, below .5, that a label is wrong.

    Result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    require_label_smoothing(label_smoothing)
    if label_smoothing == 0.5:
        raise ValueError("label_smoothing must be below 0.5 for the robust loss, got 0.5")
    margin = beta * log_probs.margin
    right, wrong = (1 - label_smoothing) * logistic(margin), label_smoothing * logistic(-margin)
    return (right - wrong) / (1 - 2 * label_smoothing)


def exo_pair_loss(log_probs: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.001) -> Tensor:
    """Compute efficient exact optimization on pairs (arXiv:2402.00856, Eq. 16).

    It is the KL divergence of the policy's preference, sigmoid(beta * margin), from the label's, which is
    (1 - label_smoothing, label_smoothing).

    Args:
        log_probs: Response log-probs of policy and reference.
        beta: As for `dpo_loss`.
        label_smoothing: Probability, above 0, that a label is wrong: the divergence from a certain label is infinite.

    Result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    require_label_smoothing(label_smoothing)
    if label_smoothing == 0:
        raise ValueError("label_smoothing must be above 0 for exo_pair: its paper uses 0.001")
    margin = beta * log_probs.margin
    wins, loses = margin.sigmoid(), (-margin).sigmoid()
    log_wins, log_loses = -logistic(margin), -logistic(-margin)
    return wins * (log_wins - math.log1p(-label_smoothing)) + loses * (log_loses - math.log(label_smoothing))


def nca_pair_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute noise contrastive alignment on pairs (arXiv:2402.05369): raises the likelihood of `chosen` itself.

    Arguments, result and errors are those of `dpo_loss`.
    """
    chosen, rejected = _implicit_rewards(log_probs, beta)
    return logistic(chosen) + (logistic(-chosen) + logistic(-rejected)) / 2


def bco_pair_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute binary classifier optimization on pairs, without its shift of rewards (arXiv:2404.04656).

    A classifier of implicit rewards: `chosen` should be above 0, `rejected` below. Arguments, result and errors are
    those of `dpo_loss`.
    """
    chosen, rejected = _implicit_rewards(log_probs, beta)
    return logistic(chosen) + logistic(-rejected)


def sppo_hard_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute self-play preference optimization with certain labels (arXiv:2405.00675, Eq. 4.7 with P = 1 and 0).

    The log-ratio of `chosen` should be 1 / (2 beta), that of `rejected` -1 / (2 beta). Arguments, result and errors are
    those of `dpo_loss`.
    """
    require_positive(beta=beta)
    target = 1 / (2 * beta)
    return (log_probs.chosen_log_ratio - target).square() + (log_probs.rejected_log_ratio + target).square()


def aot_loss(log_probs: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Compute alignment by optimal transport on pairs (arXiv:2406.05882).

    DPO on the sorted differences of a batch: the distribution of the policy's differences should dominate that of the
    reference's. The pairs of a batch therefore depend on each other, and the i-th loss belongs to the i-th smallest
    difference. Arguments, result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    policy = wide(log_probs.chosen) - wide(log_probs.rejected)
    reference = policy - log_probs.margin
    return smoothed(logistic, beta * (policy.sort().values - reference.sort().values), label_smoothing)


def aot_unpaired_loss(log_probs: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Compute alignment by optimal transport of chosen and rejected responses as two sets (arXiv:2406.05882).

    DPO on the sorted log-ratios of each side; see `aot_loss`, whose arguments, result and errors it shares.
    """
    require_positive(beta=beta)
    chosen, rejected = log_probs.chosen_log_ratio.sort().values, log_probs.rejected_log_ratio.sort().values
    return smoothed(logistic, beta * (chosen - rejected), label_smoothing)


def apo_zero_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute anchored preference optimization for `chosen` better than the policy's own (arXiv:2408.06266, Eq. 7).

    Arguments, result and errors are those of `dpo_loss`.
    """
    chosen, rejected = _implicit_rewards(log_probs, beta)
    return (-chosen).sigmoid() + rejected.sigmoid()


def apo_down_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute anchored preference optimization for `chosen` worse than the policy's own (arXiv:2408.06266, Eq. 8).

    Arguments, result and errors are those of `dpo_loss`.
    """
    chosen, rejected = _implicit_rewards(log_probs, beta)
    return chosen.sigmoid() + (rejected - chosen).sigmoid()


def discopop_loss(log_probs: PairLogProbs, *, beta: float = 0.1) -> Tensor:
    """Compute the loss that a language model discovered: logistic and exponential, mixed (arXiv:2406.08414, Eq. 5).

    The source's temperature tau is fixed at its value 0.05. Arguments, result and errors are those of `dpo_loss`.
    """
    require_positive(beta=beta)
    margin = beta * log_probs.margin
    share = (margin / 0.05).sigmoid()
    exponential = (-logistic(margin / 0.05) - margin).exp()  # share * exp(-margin), which alone would overflow
    return (1 - share) * logistic(margin) + exponential


def _log_ratio(log_prob: Tensor, reference: Tensor | None) -> Tensor:
    """Return log(pi / pi_ref) in at least float32; without a reference, log pi."""
    return wide(log_prob) if reference is None else wide(log_prob) - wide(reference)


def _per_token(total: Tensor, length: Tensor) -> Tensor:
    """Average over tokens; an empty response counts as one token to avoid 0 / 0."""
    return wide(total) / length.clamp(min=1)


def _implicit_rewards(log_probs: PairLogProbs, beta: float) -> tuple[Tensor, Tensor]:
    """Return beta times the log-ratios of chosen and rejected, [B] each."""
    require_positive(beta=beta)
    return beta * log_probs.chosen_log_ratio, beta * log_probs.rejected_log_ratio


def _mean_margin(log_probs: PairLogProbs) -> Tensor:
    """Return the difference of the log-ratios per token of chosen and rejected, [B]."""
    chosen = _per_token(log_probs.chosen_log_ratio, log_probs.chosen_length)
    return chosen - _per_token(log_probs.rejected_log_ratio, log_probs.rejected_length)


def _log_odds(log_prob: Tensor) -> Tensor:
    """Compute log(p / (1 - p)) for p = exp(log_prob), clamped below 1 by the dtype's epsilon to keep it finite."""
    import torch

    below_zero = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)
    return below_zero - torch.log(-torch.expm1(below_zero))


POLICY_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "dpo": dpo_loss,
    "ipo": ipo_loss,
    "slic": slic_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "kto_pair": kto_pair_loss,
    "sft": sft_loss,
    "grm_sft": grm_sft_loss,
    "robust": robust_dpo_loss,
    "exo_pair": exo_pair_loss,
    "nca_pair": nca_pair_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "aot": aot_loss,
    "aot_unpaired": aot_unpaired_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
    "sigmoid_norm": sigmoid_norm_loss,
}
"""The policy losses by their names in configs. A function's further arguments are fields of `PolicyLossOptions`."""

COUPLES_PAIRS = frozenset({"kto_pair", "aot", "aot_unpaired"})
"""Policy losses in which a pair's loss depends on the other pairs of its batch."""

WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "sft", "grm_sft"})
"""Policy losses that don't use the reference's log-probs, so that runs need no reference."""
