"""Claim 1 of Appendix D: does the hybrid's backbone allow a lower policy loss than the baseline's?

`inequality` says how it is measured, and what is measured for claim 2. The paper names no data set; we use the first
pairs of the job's first set (by default Helpful).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import TypeAdapter

from hafrm import atomic
from hafrm.data import DataOptions, PairTables, encode_pairs, load_pairs
from hafrm.errors import ConfigError, ModelError
from hafrm.losses import uses_reference
from hafrm.models.identity import model_identity
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.references import precompute_reference
from hafrm.models.runinfo import RunInfo
from hafrm.models.scorers import HybridScorer
from hafrm.pairs import PreferencePair
from hafrm.paper.plans import Plan
from hafrm.paper.probes import remembered
from hafrm.paper.probes.heads import FitOptions, FrozenStates, PolicyHead, freeze_states
from hafrm.paper.probes.inequality import Claim, ClaimSide, Seed, claim_of_seed, representation_change, summarise_claim
from hafrm.paper.runs import seed_runs
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import with_interval

_PAIRS = 200
"""Training pairs, and held-out pairs, that are measured."""

_FIT = FitOptions(max_steps=200)


def run_claims(
    mates: Iterable[tuple[str, str]],
    data: Sequence[str],
    held_out: Sequence[str],
    out: Path,
    *,
    fit: FitOptions,
    options: DataOptions,
) -> Claim:
    """Measure claim 1 on every seed, and illustrate claim 2; resumes after the last finished seed.

    Args:
        mates: For each seed a run of `--method haf`, and one of `--method baseline` on the same data and model.
        data: Training data of all runs (train split).
        held_out: Pairs that no run was trained on (test split).
        out: Folder of finished seeds.
        fit: Options of the fits.
        options: Options of reading and encoding the pairs.

    Raises:
        HafrmError: two runs do not belong together, or a run or the data can't be read.
    """
    score = ScoreOptions()
    pairs = {
        split: load_pairs(list(names), split=of, options=options)
        for split, names, of in (("train", data, "train"), ("held_out", held_out, "test"))
    }
    seeds: list[Seed] = []
    changes: list[dict[str, Any]] = []
    for hybrid, baseline in mates:
        info = _require_mates(hybrid, baseline)
        depends_on = {
            "hybrid": model_identity(hybrid, ScorerChoice(head="policy"), score),
            "baseline": model_identity(baseline, ScorerChoice(head="reward"), score),
            "pairs": {split: [report.sha256 for report in found.reports] for split, found in pairs.items()},
            "max_pairs": _PAIRS,
            "fit": asdict(fit),
            "data_options": asdict(options),
        }

        def measure(hybrid: str = hybrid, baseline: str = baseline, info: RunInfo = info) -> dict[str, Any]:
            used = {split: found.pairs[:_PAIRS] for split, found in pairs.items()}
            with torch.inference_mode(False):
                return _measure_mates(hybrid, baseline, info, used, fit, options)

        value = remembered(out, "pair", depends_on, measure)
        seeds.append(TypeAdapter(Seed).validate_python(value["seed"]))
        changes.append({"name": seeds[-1].name} | value["representations"])
    return replace(summarise_claim(seeds), representations=changes)


def _require_mates(hybrid: str, baseline: str) -> RunInfo:
    """Return the hybrid's run info; raise if the runs do not fit the claim."""
    first, second = RunInfo.load(Path(hybrid)), RunInfo.load(Path(baseline))
    if not (first.reward_weight and first.policy_ratio) or not uses_reference(first.policy_loss):
        raise ConfigError(
            f"{hybrid} is not a hybrid run whose policy loss reads a reference. Train it with --method haf."
        )
    if not second.reward_weight or second.policy_ratio:
        raise ConfigError(f"{baseline} is not a baseline: it was trained with --method {second.method}.")
    if first.base_model != second.base_model:
        raise ConfigError(f"{hybrid} started from {first.base_model}, {baseline} from {second.base_model}.")
    return first


def _measure_mates(
    hybrid: str,
    baseline: str,
    info: RunInfo,
    pairs: Mapping[str, list[PreferencePair]],
    fit: FitOptions,
    options: DataOptions,
) -> dict[str, Any]:
    """Measure both claims on a hybrid and a baseline run, on the pairs of each split; return plain values."""
    score = replace(ScoreOptions().as_in_training(), max_length=None)
    ours = cast(HybridScorer, load_scorer(hybrid, head="policy", options=score))
    theirs = cast(HybridScorer, load_scorer(baseline, head="reward", options=score))
    if ours.reference is None:
        raise ModelError(f"{hybrid} has no reference policy.")

    def states(model: Any, scorer: HybridScorer, encoded: PairTables) -> FrozenStates:
        limits = {"tokens": score.tokens_per_batch, "sequences": score.batch_size}
        return freeze_states(model, encoded, scorer.layout, **limits)

    sides: dict[str, ClaimSide] = {}
    changes: dict[str, Any] = {}
    for split, found in pairs.items():
        encoded = encode_pairs(found, ours.encoder, options)
        reference = precompute_reference(
            ours.reference,
            encoded,
            layout=ours.layout,
            batch_size=score.batch_size,
            cache=atomic.cache_folder("references"),
        )
        after = {"hybrid": states(ours.model, ours, encoded), "baseline": states(theirs.model, theirs, encoded)}
        sides[split] = ClaimSide(
            **after,
            reference=torch.from_numpy(np.asarray(reference)).to(after["hybrid"].states.device),
            groups=[found[index].group for index in encoded.kept],
        )
        start = states(ours.reference, ours, encoded).states
        changes[split] = {side: representation_change(each.states, start) for side, each in after.items()}
    seed = claim_of_seed(
        hybrid,
        sides["train"],
        sides["held_out"],
        {"hybrid": PolicyHead.of(ours.model), "baseline": PolicyHead.of(theirs.model)},
        policy_loss=info.policy_loss,
        beta=info.beta,
        options=fit,
    )
    return {"seed": asdict(seed), "representations": changes}


def plan(job: Job) -> Plan:
    """Plan one HAF and one baseline run per seed, shared with Table 2."""
    return Plan(
        tuple(
            run
            for backbone in job.backbones
            for method in ("haf", "baseline")
            for run in seed_runs(job, backbone, job.sets[:1], method=method)
        )
    )


def find(job: Job) -> Findings:
    """Test the inequality on training and on held-out pairs, for each seed."""
    found = {backbone: _claim(job, backbone) for backbone in job.backbones}
    results = {"claims": {name: asdict(each) for name, each in found.items()}}
    return build_findings(
        job, "claims", results, tables=(_table(found), _over_seeds(found), _claim_2(found)), pairs=_PAIRS
    )


def _claim(job: Job, backbone: str) -> Claim:
    hybrids, baselines = (seed_runs(job, backbone, job.sets[:1], method=method) for method in ("haf", "baseline"))
    return run_claims(
        [(str(one.folder(job)), str(other.folder(job))) for one, other in zip(hybrids, baselines, strict=True)],
        hybrids[0].data(job).names("train"),  # a capped set has a file of sampled pairs
        [job.scale.sets[job.sets[0]].test],
        job.root / "claims-fits" / backbone,
        fit=_FIT,
        options=DataOptions(max_length=job.scale.max_length),
    )


def _table(found: Mapping[str, Claim]) -> Table:
    rows = []
    for backbone, claim in found.items():
        for number, seed in enumerate(claim.seeds, 1):
            for split, each in (("training", seed.train), ("held out", seed.held_out)):
                between = each.refitted_difference
                rows.append(
                    (
                        f"{backbone}, pair {number}",
                        f"{split}, {each.pairs}",
                        f"{each.hybrid:.3f}",
                        f"{each.fitted:.3f}",
                        "yes" if each.holds else "no",
                        f"{each.refitted:.3f}",
                        with_interval(between.difference, between.interval, "{:+.3f}".format),
                    )
                )
    columns = ("runs", "pairs", "hybrid", "baseline, fitted", "hybrid at most fitted", "hybrid, refitted")
    return Table("D2, the DPO loss", (*columns, "refitted - fitted, 95%"), rows)


def _over_seeds(found: Mapping[str, Claim]) -> Table:
    rows = [
        (
            f"{backbone}, {split}",
            with_interval(each.mean, each.interval, "{:+.3f}".format),
            f"{each.holds} of {len(each.differences)}",
        )
        for backbone, claim in found.items()
        for split, each in (("training", claim.train), ("held out", claim.held_out))
    ]
    return Table("Over seeds", ("pairs", "hybrid - fitted, 95%", "holds"), rows)


def _claim_2(found: Mapping[str, Claim]) -> Table:
    rows = [
        (
            f"{backbone}, pair {number}",
            "training" if split == "train" else "held out",
            {"hybrid": "HAF", "baseline": "Baseline"}[side],
            f"{change['relative_change']:.3f}",
            f"{change['effective_rank']:.1f}",
            f"{change['effective_rank_start']:.1f}",
        )
        for backbone, claim in found.items()
        for number, seed in enumerate(claim.representations, 1)
        for split in ("train", "held_out")
        for side, change in seed[split].items()
    ]
    title = "Claim 2: how far training moved the hidden states, and how many directions they use"
    columns = ("runs", "pairs", "backbone of", "change from the start", "effective rank", "effective rank at the start")
    return Table(title, columns, rows)
