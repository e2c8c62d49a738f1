"""The claims of Appendix D on trained runs: pairs of a hybrid and a baseline run, one pair a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hafrm import atomic
from hafrm.atomic import cache_folder
from hafrm.data import DataOptions, EncodedPairs, encode_pairs, load_pairs
from hafrm.errors import ConfigError, ModelError
from hafrm.losses import USES_REFERENCE
from hafrm.models.identity import model_identity
from hafrm.models.loading import ScorerChoice, load_scorer
from hafrm.models.references import precompute_reference
from hafrm.models.runinfo import RunInfo
from hafrm.models.scorers import HybridScorer, ScoreOptions
from hafrm.paper.probes.claims import Claim, ClaimSide, Seed, claim_of_seed, seed_from, summarise_claim
from hafrm.paper.probes.heads import FitOptions, FrozenStates, PolicyHead, freeze_states
from hafrm.paper.probes.memory import remembered
from hafrm.paper.probes.representations import RepresentationChange, representation_change

__all__ = ["ClaimsConfig", "run_claims"]


@dataclass(frozen=True, kw_only=True)
class ClaimsConfig:
    """The claims of Appendix D, on one or more seeds."""

    hybrids: list[str]
    """Runs of `--method haf`, one a seed."""

    baselines: list[str]
    """Runs of `--method baseline` on the same data from the same model, in the same order."""

    data: list[str]
    """What all of them were trained on; its train split."""

    held_out: list[str]
    """Pairs that none of them has seen; their test split."""

    out: str
    """The folder for claims.json, and for the seeds that are done in `claims/`."""

    max_pairs: int | None = None
    """The first so many pairs of each split; by default all. The claim is about those that were trained on."""

    fit: FitOptions = field(default_factory=FitOptions)
    data_options: DataOptions = field(default_factory=DataOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        if not self.hybrids or len(self.hybrids) != len(self.baselines):
            raise ConfigError("hybrids and baselines must be as many runs, at least one each.")
        if self.max_pairs is not None and self.max_pairs < 2:
            raise ConfigError(f"max_pairs must be at least 2, got {self.max_pairs}")


def run_claims(config: ClaimsConfig, *, say: Callable[[str], None] = lambda line: None) -> Claim:
    """Measure claim 1 on every seed, illustrate claim 2, and write `claims.json`; goes on after the last whole seed.

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
    """The hybrid's description; refuses runs that the claim is not about."""
    first, second = RunInfo.load(Path(hybrid)), RunInfo.load(Path(baseline))
    if not (first.reward_weight and first.policy_ratio) or first.policy_loss not in USES_REFERENCE:
        raise ConfigError(f"{hybrid} is no hybrid run whose policy loss reads a reference. Train it with --method haf.")
    if not second.reward_weight or second.policy_ratio:
        raise ConfigError(f"{baseline} is no baseline: it was trained with --method {second.method}.")
    if first.base_model != second.base_model:
        raise ConfigError(f"{hybrid} started from {first.base_model}, {baseline} from {second.base_model}.")
    return first


class _Mates:
    """A hybrid and a baseline run of one seed, with the reference that both started from."""

    def __init__(self, hybrid: str, baseline: str, info: RunInfo, config: ClaimsConfig) -> None:
        self.name, self.info, self.config = hybrid, info, config
        options = replace(config.score.as_in_training(), max_length=None)
        self.hybrid = cast(HybridScorer, load_scorer(hybrid, head="policy", options=options))
        self.baseline = cast(HybridScorer, load_scorer(baseline, head="reward", options=options))
        if self.hybrid.reference is None:
            raise ModelError(f"{hybrid} has no reference policy.")
        self.reference = self.hybrid.reference

    def measure(self, pairs: dict[str, Any]) -> dict[str, Any]:
        """Both claims on the pairs of each split, as plain values."""
        heads = {"hybrid": PolicyHead.of(self.hybrid.model), "baseline": PolicyHead.of(self.baseline.model)}
        sides, changes = {}, {}
        for split, found in pairs.items():
            encoded = encode_pairs(found, self.hybrid.encoder, self.config.data_options)
            sides[split] = self._side(encoded)
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

    def _side(self, encoded: EncodedPairs) -> ClaimSide:
        reference = precompute_reference(
            self.reference,
            encoded.groups,
            layout=self.hybrid.layout,
            batch_size=self.config.score.batch_size,
            cache=cache_folder("references"),
        )
        hybrid = self._states(self.hybrid.model, self.hybrid, encoded)
        return ClaimSide(
            hybrid=hybrid,
            baseline=self._states(self.baseline.model, self.baseline, encoded),
            reference=torch.from_numpy(np.asarray(reference)).to(hybrid.states.device),
            groups=[pair.group for pair in encoded.pairs],
        )

    def _states(self, model: Any, scorer: HybridScorer, encoded: EncodedPairs) -> FrozenStates:
        options = self.config.score
        return freeze_states(
            model, encoded.groups, scorer.layout, tokens=options.tokens_per_batch, sequences=options.batch_size
        )


def _plain(changes: dict[str, dict[str, RepresentationChange]]) -> dict[str, Any]:
    return {split: {side: change.as_dict() for side, change in found.items()} for split, found in changes.items()}
