"""The log-probs of pairs, which policy losses take. Shape letters: B pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hafrm.losses.shapes import require_pairs, wide

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
        return log_ratio(self.chosen, self.reference_chosen)

    @property
    def rejected_log_ratio(self) -> Tensor:
        """pd_lose of Eq. 4: log pi(y' | x) / pi_ref(y' | x), [B]."""
        return log_ratio(self.rejected, self.reference_rejected)

    @property
    def margin(self) -> Tensor:
        """pd_win - pd_lose of Eq. 4, [B]; times beta, the margin of DPO's implicit rewards."""
        return self.chosen_log_ratio - self.rejected_log_ratio

    @property
    def chosen_mean(self) -> Tensor:
        """Mean log-prob of the tokens of y, [B]."""
        return per_token(self.chosen, self.chosen_length)

    @property
    def rejected_mean(self) -> Tensor:
        """Mean log-prob of the tokens of y', [B]."""
        return per_token(self.rejected, self.rejected_length)


def log_ratio(log_prob: Tensor, reference: Tensor | None) -> Tensor:
    """Return log(pi / pi_ref) in at least float32; without a reference, log pi."""
    return wide(log_prob) if reference is None else wide(log_prob) - wide(reference)


def per_token(total: Tensor, length: Tensor) -> Tensor:
    """Average over tokens; an empty response counts as one token to avoid 0 / 0."""
    return wide(total) / length.clamp(min=1)
