"""The inequality of Appendix D, measured on hidden states and heads.

E D2(K_H o phi_H) <= min_K E D2(K o phi_s)

phi_s is the trained baseline's backbone, frozen; the right side is found by fitting only the LM head K (`heads`). The
inequality is about optima on the training distribution. A head has vocabulary x hidden parameters, so on few training
pairs the fit can drive the right side to zero, while a hybrid trained for a few epochs stays above it; the same heads
on held-out pairs show what generalises. `refitted` also fits a head to the hybrid's backbone, so that two fitted heads
are compared; this is our addition to the paper.

Claim 2 bounds the distance of phi_H to an ideal phi*, which is unknown. We measure instead the distance to the backbone
at the start of training, and how many directions the states use.

Shape letters: B pairs, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from hafrm.paper.probes.heads import Fit, FitOptions, FrozenStates, PolicyHead, fit_policy_head, head_losses
from hafrm.stats import Interval, PairedDifference, paired_bootstrap


@dataclass(frozen=True)
class ClaimSide:
    """Hidden states of one split's pairs under both backbones. Shape letters: B pairs."""

    hybrid: FrozenStates
    """Hidden states phi_H of the pairs."""
    baseline: FrozenStates
    """Hidden states phi_s of the same pairs."""
    reference: Tensor
    """Log-probs of both responses under the reference policy, [B, 2]."""
    groups: Sequence[str]
    """Prompt groups of the pairs, [B]."""


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """Mean D2 of three heads on one split."""

    pairs: int
    hybrid: float
    """Mean D2 of K_H o phi_H: the hybrid as trained."""
    fitted: float
    """Mean D2 of K o phi_s, with K fitted to the training pairs."""
    refitted: float
    """Mean D2 of K o phi_H, with K fitted to the training pairs in the same way."""
    difference: PairedDifference
    """hybrid - fitted over pairs, resampling prompt groups. The claim says that it is at most 0."""
    refitted_difference: PairedDifference
    """refitted - fitted."""
    holds: bool
    """Whether the means satisfy the inequality."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Result of the claim on one pair of runs."""

    name: str
    train: HeadComparison
    held_out: HeadComparison
    fit_baseline: Fit
    fit_hybrid: Fit


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Result of the claim over seeds, on one split."""

    differences: list[float]
    """hybrid - fitted for each seed."""
    holds: int
    """Number of seeds whose difference is at most 0."""
    mean: float
    interval: Interval | None
    """95% interval of the mean over seeds, by Student's t; None for a single seed."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Result of claim 1 over all seeds."""

    seeds: list[Seed]
    train: SplitSummary
    held_out: SplitSummary
    representations: list[dict[str, Any]] = field(default_factory=list)
    """For claim 2, by seed and split: `representation_change` of both backbones."""


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
    """Measure the claim on a hybrid run and a baseline run with the same data and starting model.

    Args:
        train: Pairs that both runs were trained on.
        held_out: Pairs that neither run was trained on.
        heads: Policy heads of the two runs, "hybrid" and "baseline"; fits start from each.
        beta: Its scale.

    Raises:
        TrainingError: no fit has a finite loss.
    """
    settings: dict[str, Any] = {"policy_loss": policy_loss, "beta": beta}
    fits = {
        side: fit_policy_head(getattr(train, side), heads, train.reference, **settings, options=options)
        for side in ("hybrid", "baseline")
    }

    @torch.no_grad()
    def compare(split: ClaimSide) -> HeadComparison:
        measured = (
            (split.hybrid, heads["hybrid"]),
            (split.baseline, fits["baseline"][0]),
            (split.hybrid, fits["hybrid"][0]),
        )
        hybrid, fitted, refitted = (
            head_losses(frozen, head, split.reference, **settings).double().cpu().numpy() for frozen, head in measured
        )
        return HeadComparison(
            pairs=len(hybrid),
            hybrid=float(hybrid.mean()),
            fitted=float(fitted.mean()),
            refitted=float(refitted.mean()),
            difference=paired_bootstrap(hybrid, fitted, split.groups),
            refitted_difference=paired_bootstrap(refitted, fitted, split.groups),
            holds=bool(hybrid.mean() <= fitted.mean()),
        )

    return Seed(
        name=name,
        train=compare(train),
        held_out=compare(held_out),
        fit_baseline=fits["baseline"][1],
        fit_hybrid=fits["hybrid"][1],
    )


def summarise_claim(seeds: Sequence[Seed]) -> Claim:
    """Summarise the seeds, at least one."""
    return Claim(
        seeds=list(seeds),
        train=_summary([seed.train for seed in seeds]),
        held_out=_summary([seed.held_out for seed in seeds]),
    )


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


def representation_change(states: Tensor, start: Tensor) -> dict[str, float]:
    """Compare hidden states with those of the same tokens at the start of training.

    Args:
        states: Hidden states, [T, H].
        start: Hidden states of the starting backbone, [T, H].

    Returns:
        `relative_change` is the mean over tokens of |h - h0| / |h0|, `effective_rank` that of the states after
        training, and `effective_rank_start` before.

    Raises:
        ValueError: the shapes differ, or there are fewer than two tokens.
    """
    if states.shape != start.shape or states.dim() != 2 or len(states) < 2:
        raise ValueError(f"expected states of one shape [T, H], got {list(states.shape)} and {list(start.shape)}")
    change = (states - start).norm(dim=1) / start.norm(dim=1).clamp(min=torch.finfo(start.dtype).tiny)
    return {
        "tokens": len(states),
        "relative_change": change.double().mean().item(),
        "effective_rank": effective_rank(states),
        "effective_rank_start": effective_rank(start),
    }


def effective_rank(states: Tensor) -> float:
    """Compute the effective rank of centred states, [T, H].

    It is the exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007): between 1 and H, or
    0 if all states are equal.
    """
    centred = states.double() - states.double().mean(dim=0)
    squares: Tensor = torch.linalg.eigvalsh(centred.T @ centred)
    values = squares.clamp(min=0).sqrt()
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp().item())
