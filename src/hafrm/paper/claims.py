"""Appendix D's claim 1, tested: is a hybrid's policy loss below the minimum that the baseline's states allow?

Compares a trained hybrid with the best policy head on the baseline's frozen backbone. The paper names no data set for
this; we use the first pairs of the job's first set (by default Helpful).
"""

from __future__ import annotations

from hafrm.data import DataOptions
from hafrm.paper.plans import Job, Plan
from hafrm.paper.probes.claims import Claim, ClaimsConfig, run_claims
from hafrm.paper.probes.heads import FitOptions
from hafrm.paper.runs import train_config
from hafrm.paper.table2 import scale_notes, setting
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import interval
from hafrm.stats import Interval
from hafrm.training.config import Method

_METHODS: tuple[Method, ...] = ("haf", "baseline")
_PAIRS = 200
_FIT = FitOptions(max_steps=200)


def plan(job: Job) -> Plan:
    """Plan one HAF and one baseline run per seed, shared with Table 2."""
    return Plan(
        tuple(
            run
            for backbone in job.backbones
            for method in _METHODS
            for run in job.runs(job.sets[:1], method, backbone=backbone)
        )
    )


def find(job: Job) -> Findings:
    """Test the inequality on training and on held-out pairs, for each seed."""
    found = {backbone: _claim(job, backbone) for backbone in job.backbones}
    return Findings(
        title="Appendix D: claim 1",
        intro="D2 is the DPO loss. The claim: D2(hybrid) is at most the least D2 of any policy head on the baseline's "
        f"frozen states. {_PAIRS} pairs of {job.sets[0]}. {setting(job, job.seeds)}",
        results={"scale": job.scale.name, "claims": {name: each.as_dict() for name, each in found.items()}},
        tables=(_table(found), _over_seeds(found)),
        notes=(
            "On training pairs the fitted head is free to learn them by heart, which no trained hybrid does: that side "
            "fails wherever pairs are few and the head is large. On held-out pairs a head that has learnt by heart is "
            "bad, so that the inequality holds there says nothing for the claim. The fair comparison is with a head "
            "that was fitted to the hybrid's states in the same way (refitted).",
            *scale_notes(job),
        ),
    )


def _claim(job: Job, backbone: str) -> Claim:
    hybrids, baselines = (
        [str(run.folder(job.scale, job.out)) for run in job.runs(job.sets[:1], method, backbone=backbone)]
        for method in _METHODS
    )
    files = job.scale.sets[job.sets[0]]
    (run, *_) = job.runs(job.sets[:1], "haf", backbone=backbone)
    return run_claims(
        ClaimsConfig(
            hybrids=hybrids,
            baselines=baselines,
            data=train_config(job.scale, run, job.out, model="").data,  # for a capped set, the file of sampled pairs
            held_out=[files.test],
            out=str(job.root / "claims-fits" / backbone),
            max_pairs=_PAIRS,
            fit=_FIT,
            data_options=DataOptions(max_length=job.scale.max_length),
        )
    )


def _table(found: dict[str, Claim]) -> Table:
    rows = []
    for backbone, claim in found.items():
        for number, seed in enumerate(claim.seeds, 1):
            for split, each in (("training", seed.train), ("held out", seed.held_out)):
                between = each.refitted_difference
                rows.append(
                    (
                        f"{backbone}, pair {number}",
                        split,
                        f"{each.hybrid:.3f}",
                        f"{each.fitted:.3f}",
                        "yes" if each.holds else "no",
                        f"{each.refitted:.3f}",
                        f"{between.difference:+.3f} {_ends(between.interval)}".strip(),
                    )
                )
    header = ("runs", "pairs", "hybrid", "baseline, fitted", "hybrid at most fitted", "hybrid, refitted")
    return Table("D2, the DPO loss", (*header, "refitted less fitted, 95%"), tuple(rows))


def _over_seeds(found: dict[str, Claim]) -> Table:
    rows = [
        (
            f"{backbone}, {split}",
            f"{each.mean:+.3f} {_ends(each.interval)}".strip(),
            f"{each.holds} of {len(each.differences)}",
        )
        for backbone, claim in found.items()
        for split, each in (("training", claim.train), ("held out", claim.held_out))
    ]
    return Table("Over seeds", ("pairs", "hybrid less fitted, 95%", "holds"), tuple(rows))


def _ends(ends: Interval | None) -> str:
    return interval(ends, "{:+.3f}".format)
