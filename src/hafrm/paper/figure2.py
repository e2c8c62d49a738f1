"""Figure 2: does a reward head favour the responses of the policy head that shares its backbone?

The paper does not name the data set; we use the job's first set (by default Helpful).
"""

from __future__ import annotations

from hafrm.paper.plans import Job, Plan
from hafrm.paper.probes.consistency import Consistency, ConsistencyConfig, Share, consistency_figure, run_consistency
from hafrm.paper.runs import Run
from hafrm.paper.table2 import scale_notes, setting
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import interval, percent
from hafrm.sampling.engines import SampleOptions
from hafrm.training.config import Method

_SAMPLING = SampleOptions(max_new_tokens=128)


def plan(job: Job) -> Plan:
    """Plan HAF and DPO with all checkpoints, and a baseline as oracle at scales other than `world`."""
    return Plan(tuple(run for backbone in job.backbones for run in _runs(job, backbone).values()))


def find(job: Job) -> Findings:
    """Build a plot per backbone and the shares of points above the diagonal."""
    found = {backbone: _consistency(job, backbone) for backbone in job.backbones}
    return Findings(
        title="Figure 2: does HAF favour its own policy head's responses?",
        intro=f"Trained on {job.sets[0]}; both policies answer test prompts, and each point is a pair of checkpoints "
        f"that are alike by one of five measures. {setting(job, job.seeds[:1])} In brackets 95% intervals, resampling "
        "prompts.",
        results={"scale": job.scale.name, "consistency": {name: each.as_dict() for name, each in found.items()}},
        tables=(_table(found),),
        figures={f"figure2-{backbone}": consistency_figure(each) for backbone, each in found.items()},
        notes=(
            "Above the diagonal HAF's reward head gives HAF's responses a larger lead than the oracle does; the paper "
            'says "almost always" and prints no number. The two rewards have units of their own, so the share is also '
            "given with both divided by their standard deviations.",
            f"The oracle is {'the true reward of the world' if job.scale.name == 'world' else 'a baseline run'}.",
            *scale_notes(job),
        ),
    )


def _runs(job: Job, backbone: str) -> dict[Method, Run]:
    seed, sets = job.seeds[0], job.sets[:1]
    methods: tuple[Method, ...] = ("haf", "dpo")
    runs = {
        method: Run(backbone=backbone, sets=sets, method=method, seed=seed, keep_checkpoints=True) for method in methods
    }
    if job.scale.name != "world":
        runs["baseline"] = Run(backbone=backbone, sets=sets, method="baseline", seed=seed)
    return runs


def _consistency(job: Job, backbone: str) -> Consistency:
    folders = {method: str(run.folder(job.scale, job.out)) for method, run in _runs(job, backbone).items()}
    data = job.scale.sets[job.sets[0]].test
    return run_consistency(
        ConsistencyConfig(
            haf=folders["haf"],
            dpo=folders["dpo"],
            data=data,
            oracle=folders.get("baseline", data),
            sampling=_SAMPLING,
            out=str(job.root / "consistency" / backbone),
        )
    )


def _table(found: dict[str, Consistency]) -> Table:
    rows = []
    for backbone, each in found.items():
        rows.append((backbone, "all", str(len(each.points)), _share(each.share_above), _share(each.share_above_scaled)))
        for by, share in each.by_matching.items():
            number = sum(point.matching == by for point in each.points)
            rows.append((backbone, by, str(number), _share(share), "–"))
    header = ("backbone", "matched by", "points", "above the diagonal, %", "the same, scaled, %")
    return Table("Ours", header, tuple(rows))


def _share(share: Share) -> str:
    return f"{percent(share.value)} {interval(share.interval, percent)}".rstrip()
