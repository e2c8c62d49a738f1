"""Figure 7: margins of a reward model against those of a DPO model trained separately on the same pairs."""

from __future__ import annotations

from markupsafe import Markup

from hafrm.paper.plans import Job, Plan
from hafrm.paper.probes.agreement import Agreement, AgreementConfig, agreement_figure, run_agreement
from hafrm.paper.runs import Run
from hafrm.paper.table2 import scale_notes, setting
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import percent


def plan(job: Job) -> Plan:
    """Plan the baseline and DPO for each set, shared with Table 2."""
    return Plan(
        tuple(
            Run(backbone=backbone, sets=(name,), method=method, seed=job.seeds[0])
            for backbone in job.backbones
            for name in job.sets
            for method in ("baseline", "dpo")
        )
    )


def find(job: Job) -> Findings:
    """Build a scatter plot and a table row for each set."""
    found = {(backbone, name): _agreement(job, backbone, name) for backbone in job.backbones for name in job.sets}
    figures: dict[str, Markup] = {f"figure7-{a}-{b}": agreement_figure(each) for (a, b), each in found.items()}
    return Findings(
        title="Figure 7: do a reward model and a DPO model agree?",
        intro=f"Margins on test pairs. {setting(job, job.seeds[:1])}",
        results={
            "scale": job.scale.name,
            "agreement": {f"{backbone}/{name}": each.as_dict() for (backbone, name), each in found.items()},
        },
        tables=(_table(found),),
        figures=figures,
        notes=(
            'The paper shows one plot and calls the correlation "strong positive (even linearity)"; it prints no '
            "number. Intervals resample prompts.",
            *scale_notes(job),
        ),
    )


def _agreement(job: Job, backbone: str, name: str) -> Agreement:
    baseline, dpo = (
        Run(backbone=backbone, sets=(name,), method=method, seed=job.seeds[0]).folder(job.scale, job.out)
        for method in ("baseline", "dpo")
    )
    out = job.root / "agreement" / backbone / name
    return run_agreement(
        AgreementConfig(reward=str(baseline), dpo=str(dpo), data=job.scale.sets[name].test, out=str(out))
    )


def _table(found: dict[tuple[str, str], Agreement]) -> Table:
    rows = []
    for (backbone, name), each in found.items():
        ends = f"[{each.interval.low:.2f}, {each.interval.high:.2f}]" if each.interval else "–"
        same = "–" if each.same_sign is None else percent(each.same_sign)
        rows.append(
            (backbone, name, str(each.pairs), f"{each.pearson.value:.2f} {ends}", f"{each.spearman.value:.2f}", same)
        )
    header = ("backbone", "set", "pairs", "Pearson r, 95% interval", "Spearman", "margins of one sign, %")
    return Table("Ours", header, tuple(rows))
