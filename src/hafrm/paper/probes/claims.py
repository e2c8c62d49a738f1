"""Claim 1 of Appendix D, measured: does the hybrid's backbone serve the policy loss better than the baseline's could?

    E D2(K_H o phi_H) <= min_K E D2(K o phi_s)

phi_s is the trained baseline's backbone, frozen; the right side is found by fitting the LM head K alone (`heads`). The
inequality is about optima on the training distribution. A head has as many parameters as the vocabulary has states, so
on few training pairs the right side can be fitted to nothing, where the hybrid that was trained for a few epochs stays
above it; the same heads on held-out pairs say what was learnt. `refitted` gives the hybrid's backbone the same
treatment, so that two fitted heads are compared: that is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from hafrm.paper.probes.heads import FitOptions, FrozenStates, HeadFit, PolicyHead, fit_policy_head, head_losses
from hafrm.stats import Interval, PairedDifference, paired_bootstrap

__all__ = [
    "Claim",
    "ClaimSide",
    "FitAccount",
    "HeadComparison",
    "Seed",
    "SplitSummary",
    "claim_of_seed",
    "seed_from",
    "summarise_claim",
]


@dataclass(frozen=True)
class ClaimSide:
    """The pairs of one split as both backbones see them. Shape letters: B pairs."""

    hybrid: FrozenStates
    """phi_H of the pairs."""
    baseline: FrozenStates
    """phi_s of the same pairs."""
    reference: Tensor
    """Log-probs of both responses under the reference policy, [B, 2]."""
    groups: Sequence[str]
    """The pairs' prompt groups, [B]."""


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """Mean D2 on one split."""

    pairs: int
    hybrid: float
    """K_H o phi_H: the hybrid as it was trained."""
    fitted: float
    """K o phi_s, with K fitted to the training pairs."""
    refitted: float
    """K o phi_H, with K fitted to the training pairs in the same way."""
    difference: PairedDifference
    """hybrid - fitted, over pairs, resampling prompt groups. The claim says that it is at most 0."""
    refitted_difference: PairedDifference
    """refitted - fitted."""

    @property
    def holds(self) -> bool:
        """Whether the inequality holds for the means."""
        return self.hybrid <= self.fitted


@dataclass(frozen=True, kw_only=True)
class FitAccount:
    """How settled a fit is: all of `HeadFit` but the head."""

    start: str
    loss: float
    start_losses: dict[str, float]
    gradient_norm: float
    gradient_max: float
    steps: int
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Seed:
    """The claim on one pair of runs."""

    name: str
    train: HeadComparison
    held_out: HeadComparison
    fit_baseline: FitAccount
    fit_hybrid: FitAccount

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        holds = {"train": {"holds": self.train.holds}, "held_out": {"holds": self.held_out.holds}}
        values = asdict(self)
        return values | {split: values[split] | extra for split, extra in holds.items()}


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """The claim over seeds, on one split."""

    differences: list[float]
    """hybrid - fitted of each seed."""
    holds: int
    """Seeds on which it is at most 0."""
    mean: float
    interval: Interval | None
    """95% of the mean over seeds, by Student's t; None for a single seed."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Claim 1 over all seeds."""

    seeds: list[Seed]
    train: SplitSummary
    held_out: SplitSummary

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"seeds": [seed.as_dict() for seed in self.seeds]}


def claim_of_seed(
    name: str,
    train: ClaimSide,
    held_out: ClaimSide,
    heads: dict[str, PolicyHead],
    *,
    policy_loss: str,
    beta: float,
    options: FitOptions,
) -> Seed:
    """Measure the claim on one hybrid run and one baseline run of the same data and start.

    Args:
        name: The seed's name in the result.
        train: The pairs that both were trained on.
        held_out: Pairs that neither has seen.
        heads: The policy heads of the two runs, "hybrid" and "baseline": fits start from each.
        policy_loss: D2, by name.
        beta: Its scale.
        options: How long heads are fitted.

    Raises:
        TrainingError: no fit has a finite loss.
    """
    fits = {
        side: fit_policy_head(
            getattr(train, side), heads, train.reference, policy_loss=policy_loss, beta=beta, options=options
        )
        for side in ("hybrid", "baseline")
    }

    def compare(split: ClaimSide) -> HeadComparison:
        losses = [
            _losses(split.hybrid, heads["hybrid"], split.reference, policy_loss, beta),
            _losses(split.baseline, fits["baseline"].head, split.reference, policy_loss, beta),
            _losses(split.hybrid, fits["hybrid"].head, split.reference, policy_loss, beta),
        ]
        hybrid, fitted, refitted = losses
        return HeadComparison(
            pairs=len(hybrid),
            hybrid=float(hybrid.mean()),
            fitted=float(fitted.mean()),
            refitted=float(refitted.mean()),
            difference=paired_bootstrap(hybrid, fitted, split.groups),
            refitted_difference=paired_bootstrap(refitted, fitted, split.groups),
        )

    return Seed(
        name=name,
        train=compare(train),
        held_out=compare(held_out),
        fit_baseline=_account(fits["baseline"]),
        fit_hybrid=_account(fits["hybrid"]),
    )


def seed_from(values: Mapping[str, Any]) -> Seed:
    """A seed from its `dataclasses.asdict`, as it was kept on disk."""

    def difference(kept: Mapping[str, Any]) -> PairedDifference:
        ends = kept["interval"]
        return PairedDifference(kept["difference"], None if ends is None else Interval(*ends), kept["p_value"])

    def comparison(kept: Mapping[str, Any]) -> HeadComparison:
        paired = {name: difference(kept[name]) for name in ("difference", "refitted_difference")}
        return HeadComparison(**(dict(kept) | paired))

    return Seed(
        name=values["name"],
        train=comparison(values["train"]),
        held_out=comparison(values["held_out"]),
        fit_baseline=FitAccount(**values["fit_baseline"]),
        fit_hybrid=FitAccount(**values["fit_hybrid"]),
    )


def summarise_claim(seeds: Sequence[Seed]) -> Claim:
    """Put the seeds together.

    Raises:
        ValueError: there are no seeds.
    """
    if not seeds:
        raise ValueError("there are no seeds")
    return Claim(
        seeds=list(seeds),
        train=_summary([seed.train for seed in seeds]),
        held_out=_summary([seed.held_out for seed in seeds]),
    )


@torch.no_grad()
def _losses(
    frozen: FrozenStates, head: PolicyHead, reference: Tensor, policy_loss: str, beta: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    return head_losses(frozen, head, reference, policy_loss=policy_loss, beta=beta).double().cpu().numpy()


def _account(fit: HeadFit) -> FitAccount:
    return FitAccount(**{name: value for name, value in vars(fit).items() if name != "head"})


def _summary(comparisons: Sequence[HeadComparison]) -> SplitSummary:
    differences = [comparison.difference.difference for comparison in comparisons]
    interval = None
    if len(differences) > 1:
        error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        reach = float(scipy_stats.t.ppf(0.975, len(differences) - 1)) * error
        interval = Interval(float(np.mean(differences)) - reach, float(np.mean(differences)) + reach)
    return SplitSummary(
        differences=differences,
        holds=sum(comparison.holds for comparison in comparisons),
        mean=float(np.mean(differences)),
        interval=interval,
    )
