"""Policy losses by their names in configs, and sums of them such as `dpo + 0.2*sft`."""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING

from hafrm.losses.policies import COUPLES_PAIRS, POLICY_FUNCTIONS, WITHOUT_REFERENCE, PairLogProbs
from hafrm.losses.shapes import require_label_smoothing, require_positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PolicyLossOptions:
    """Options of all policy losses; `options_read` returns those that a loss uses.

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

POLICY_LOSSES: tuple[str, ...] = tuple(POLICY_FUNCTIONS)
"""Names of the policy losses; sums of them are names too."""

_TERM = re.compile(r"(?:([0-9.e-]+)\s*\*\s*)?([a-z_]+)")


def loss_terms(name: str) -> Mapping[str, float]:
    """Return the weights of the losses in a name such as `dpo` or `dpo + 0.2*sft`.

    Raises:
        ValueError: a term is not a known loss with a positive weight, or a loss occurs twice.
    """
    terms: dict[str, float] = {}
    for part in name.replace(" ", "").split("+"):
        found = _TERM.fullmatch(part)
        if found is None or found[2] not in POLICY_FUNCTIONS or found[2] in terms:
            raise ValueError(
                f"must be one of {', '.join(POLICY_FUNCTIONS)}, or a sum of them such as dpo+0.2*sft, got {name!r}"
            )
        try:
            weight = float(found[1] or 1.0)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"has a weight that is not a positive number: {part!r}")
        terms[found[2]] = weight
    return terms


def named_policy_loss(name: str) -> PolicyLoss:
    """Return the policy loss, or the weighted sum of losses, of a name; see `loss_terms`."""
    terms = loss_terms(name)

    def loss(log_probs: PairLogProbs, options: PolicyLossOptions) -> Tensor:
        given = asdict(options)
        parts = (
            weight * POLICY_FUNCTIONS[term](log_probs, **{option: given[option] for option in options_read(term)})
            for term, weight in terms.items()
        )
        return reduce(operator.add, parts)

    return loss


def options_read(name: str) -> frozenset[str]:
    """Return the fields of `PolicyLossOptions` that a loss uses, so that configs can reject options without effect."""
    signatures = (inspect.signature(POLICY_FUNCTIONS[term]) for term in loss_terms(name))
    return frozenset(option for each in signatures for option in each.parameters if option != "log_probs")


def couples_pairs(name: str) -> bool:
    """Return whether a pair's loss depends on other pairs of its batch."""
    return not COUPLES_PAIRS.isdisjoint(loss_terms(name))


def uses_reference(name: str) -> bool:
    """Return whether a policy loss uses the reference's log-probs; some run without a reference."""
    return not loss_terms(name).keys() <= WITHOUT_REFERENCE
