"""Claim 1 of Appendix D, measured: does the hybrid's backbone allow a lower policy loss than the baseline's?

E D2(K_H o phi_H) <= min_K E D2(K o phi_s)

phi_s is the trained baseline's backbone, frozen; the right side is found by fitting only the LM head K (`heads`). The
inequality is about optima on the training distribution. A head has vocabulary x hidden parameters, so on few training
pairs the fit can drive the right side to zero, while a hybrid trained for a few epochs stays above it; the same heads
on held-out pairs show what generalises. `refitted` also fits a head to the hybrid's backbone, so that two fitted heads
are compared; this is our addition to the paper.

`run_claims` measures pairs of a hybrid and a baseline run, one pair per seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from hafrm import atomic
from hafrm.atomic import cache_folder
from hafrm.data import DataOptions, PairTables, encode_pairs, load_pairs
from hafrm.errors import ConfigError, ModelError
from hafrm.losses import USES_REFERENCE
from hafrm.models.identity import model_identity
from hafrm.models.loading import ScorerChoice, load_scorer
from hafrm.models.references import precompute_reference
from hafrm.models.runinfo import RunInfo
from hafrm.models.scorers import HybridScorer, ScoreOptions
from hafrm.paper.probes.heads import (
    FitOptions,
    FrozenStates,
    HeadFit,
    PolicyHead,
    fit_policy_head,
    freeze_states,
    head_losses,
)
from hafrm.paper.probes.memory import remembered
from hafrm.paper.probes.representations import RepresentationChange, representation_change
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

    @property
    def holds(self) -> bool:
        """Whether the means satisfy the inequality."""
        return self.hybrid <= self.fitted


@dataclass(frozen=True, kw_only=True)
class FitAccount:
    """Convergence data of a fit: all fields of `HeadFit` except the head."""

    start: str
    loss: float
    start_losses: dict[str, float]
    gradient_norm: float
    gradient_max: float
    steps: int
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Result of the claim on one pair of runs."""

    name: str
    train: HeadComparison
    held_out: HeadComparison
    fit_baseline: FitAccount
    fit_hybrid: FitAccount

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        holds = {"train": {"holds": self.train.holds}, "held_out": {"holds": self.held_out.holds}}
        values = asdict(self)
        return values | {split: values[split] | extra for split, extra in holds.items()}


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

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
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
    """Measure the claim on a hybrid run and a baseline run with the same data and starting model.

    Args:
        name: The seed's name in the result.
        train: Pairs that both runs were trained on.
        held_out: Pairs that neither run was trained on.
        heads: Policy heads of the two runs, "hybrid" and "baseline"; fits start from each.
        policy_loss: Name of the policy loss D2.
        beta: Its scale.
        options: Options of the fits.

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
    """Rebuild a seed from the `dataclasses.asdict` stored on disk."""

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
    """Summarise the seeds.

    Raises:
        ValueError: `seeds` is empty.
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


@dataclass(frozen=True, kw_only=True)
class ClaimsConfig:
    """Options for measuring the claims of Appendix D on one or more seeds."""

    hybrids: list[str]
    """Runs of `--method haf`, one per seed."""

    baselines: list[str]
    """Runs of `--method baseline` on the same data from the same model, in the same order."""

    data: list[str]
    """Training data of all runs (train split)."""

    held_out: list[str]
    """Pairs that no run was trained on (test split)."""

    out: str
    """Output folder for claims.json, with finished seeds in `claims/`."""

    max_pairs: int | None = None
    """Use only the first N pairs of each split; by default all. The claim is about the pairs trained on."""

    fit: FitOptions = field(default_factory=FitOptions)
    data_options: DataOptions = field(default_factory=DataOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        if not self.hybrids or len(self.hybrids) != len(self.baselines):
            raise ConfigError("hybrids and baselines must be as many runs, at least one each.")
        if self.max_pairs is not None and self.max_pairs < 2:
            raise ConfigError(f"max_pairs must be at least 2, got {self.max_pairs}")


def run_claims(config: ClaimsConfig, *, say: Callable[[str], None] = lambda line: None) -> Claim:
    """Measure claim 1 on every seed, illustrate claim 2, and write `claims.json`; resumes after the last finished seed.

    Raises:
        HafrmError: two runs do not belong together, or a run or the data can't be read.
    """
    seeds: list[Seed] = []
    changes: list[dict[str, Any]] = []
    pairs = {"train": load_pairs(config.data, split="train", options=config.data_options)}
    pairs["held_out"] = load_pairs(config.held_out, split="test", options=config.data_options)
    prints = {split: [report.sha256 for report in found.reports] for split, found in pairs.items()}
    for hybrid, baseline in zip(config.hybrids, config.baselines, strict=True):
        info = _require_mates(hybrid, baseline)
        depends_on = {
            "hybrid": model_identity(hybrid, ScorerChoice(head="policy"), config.score),
            "baseline": model_identity(baseline, ScorerChoice(head="reward"), config.score),
            "pairs": prints,
            "max_pairs": config.max_pairs,
            "fit": asdict(config.fit),
            "data_options": asdict(config.data_options),
        }

        def measure(hybrid: str = hybrid, baseline: str = baseline, info: RunInfo = info) -> dict[str, Any]:
            say(f"{hybrid} and {baseline}: fitting policy heads to frozen states")
            limit = config.max_pairs
            found = {split: each.pairs[:limit] for split, each in pairs.items()}
            with torch.inference_mode(False):
                return _Mates(hybrid, baseline, info, config).measure(found)

        value = remembered(Path(config.out) / "claims", "pair", depends_on, measure)
        seeds.append(seed_from(value["seed"]))
        changes.append({"name": seeds[-1].name} | value["representations"])
    claim = summarise_claim(seeds)
    written = {"source": "Appendix D, claim 1"} | claim.as_dict()
    note = "Ours: distances to the starting backbone. The paper's phi* is known to nobody."
    atomic.write_json(Path(config.out) / "claims.json", written | {"representations": {"note": note, "seeds": changes}})
    return claim


def _require_mates(hybrid: str, baseline: str) -> RunInfo:
    """Return the hybrid's run info; raise if the runs do not fit the claim."""
    first, second = RunInfo.load(Path(hybrid)), RunInfo.load(Path(baseline))
    if not (first.reward_weight and first.policy_ratio) or first.policy_loss not in USES_REFERENCE:
        raise ConfigError(f"{hybrid} is no hybrid run whose policy loss reads a reference. Train it with --method haf.")
    if not second.reward_weight or second.policy_ratio:
        raise ConfigError(f"{baseline} is no baseline: it was trained with --method {second.method}.")
    if first.base_model != second.base_model:
        raise ConfigError(f"{hybrid} started from {first.base_model}, {baseline} from {second.base_model}.")
    return first


class _Mates:
    """Hybrid and baseline run of one seed, with the reference model from which both started."""

    def __init__(self, hybrid: str, baseline: str, info: RunInfo, config: ClaimsConfig) -> None:
        self.name, self.info, self.config = hybrid, info, config
        options = replace(config.score.as_in_training(), max_length=None)
        self.hybrid = cast(HybridScorer, load_scorer(hybrid, head="policy", options=options))
        self.baseline = cast(HybridScorer, load_scorer(baseline, head="reward", options=options))
        if self.hybrid.reference is None:
            raise ModelError(f"{hybrid} has no reference policy.")
        self.reference = self.hybrid.reference

    def measure(self, pairs: dict[str, Any]) -> dict[str, Any]:
        """Measure both claims on the pairs of each split; return plain values."""
        heads = {"hybrid": PolicyHead.of(self.hybrid.model), "baseline": PolicyHead.of(self.baseline.model)}
        sides, changes = {}, {}
        for split, found in pairs.items():
            encoded = encode_pairs(found, self.hybrid.encoder, self.config.data_options)
            sides[split] = self._side(encoded, [found[index].group for index in encoded.kept])
            start = self._states(self.reference, self.hybrid, encoded).states
            changes[split] = {
                side: representation_change(getattr(sides[split], side).states, start)
                for side in ("hybrid", "baseline")
            }
        beta, policy_loss = self.info.beta, self.info.policy_loss
        seed = claim_of_seed(
            self.name,
            sides["train"],
            sides["held_out"],
            heads,
            policy_loss=policy_loss,
            beta=beta,
            options=self.config.fit,
        )
        return {"seed": asdict(seed), "representations": _plain(changes)}

    def _side(self, encoded: PairTables, groups: list[str]) -> ClaimSide:
        reference = precompute_reference(
            self.reference,
            encoded,
            layout=self.hybrid.layout,
            batch_size=self.config.score.batch_size,
            cache=cache_folder("references"),
        )
        hybrid = self._states(self.hybrid.model, self.hybrid, encoded)
        return ClaimSide(
            hybrid=hybrid,
            baseline=self._states(self.baseline.model, self.baseline, encoded),
            reference=torch.from_numpy(np.asarray(reference)).to(hybrid.states.device),
            groups=groups,
        )

    def _states(self, model: Any, scorer: HybridScorer, encoded: PairTables) -> FrozenStates:
        options = self.config.score
        return freeze_states(
            model, encoded, scorer.layout, tokens=options.tokens_per_batch, sequences=options.batch_size
        )


def _plain(changes: dict[str, dict[str, RepresentationChange]]) -> dict[str, Any]:
    return {split: {side: change.as_dict() for side, change in found.items()} for split, found in changes.items()}
