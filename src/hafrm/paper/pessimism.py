"""Over-optimisation by best-of-N, and what standard errors of rewards do about it. Not in the paper.

The more responses a reward model chooses from, the more its choice exploits the model's errors, and the less of the
gain in its own reward is a gain in true reward (Gao et al., 2023). A run with several heads estimates how uncertain a
reward is, so it can choose by a lower confidence bound. We compare one head, the mean of several, and two bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hafrm.judging.options import JudgeOptions
from hafrm.models.options import ScoreOptions
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.policies import require_rewards
from hafrm.paper.record import values_line
from hafrm.paper.runs import Run
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings, differences_table
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import interval
from hafrm.sampling.analysis import ScoredPrompt, best_of_n_curve
from hafrm.sampling.best_of_n import RESULTS_FILE, best_of_n
from hafrm.sampling.options import BestOfNConfig, SampleConfig, SampleOptions
from hafrm.sampling.run import sample
from hafrm.stats import bootstrap_interval, paired_bootstrap

_PROMPTS, _DRAWS = 120, 64

_SHOWN = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of responses in the table."""

_WAYS: Mapping[str, tuple[str | None, float, str]] = {
    "one head": (None, 0.0, "baseline"),
    "mean of five heads": ("heads", 0.0, "dpo"),
    "mean - 1 standard error": ("heads", 1.0, "haf dash1"),
    "mean - 2 standard errors": ("heads", 2.0, "haf"),
}
"""The runs' losses (see `LOSSES`), the standard errors to subtract, and the style of curves."""

_Curves = Mapping[str, np.ndarray]
"""By way: expected true reward of the best of n, [seeds, prompts, n]."""


def _runs(job: Job, loss: str | None) -> list[Run]:
    return [Run(backbone=job.backbones[0], sets=job.sets[:1], method="haf", seed=seed, loss=loss) for seed in job.seeds]


def plan(job: Job) -> Plan:
    """Plan a HAF run with one head and one with several for each seed.

    Raises:
        ConfigError: outside the world, no reward model is given as judge.
    """
    require_rewards(job, "pessimism")
    responses = Responses(
        made=f"{_folder(job, 'heads', 2.0)}/{RESULTS_FILE}",
        backbone=job.backbones[0],
        sets=job.sets[:1],
        prompts=_PROMPTS,
        draws=_DRAWS,
        new_tokens=job.scale.max_length // 2,
        readers=len(_WAYS) * len(job.seeds) + (job.judge is not None),
    )
    return Plan((*_runs(job, None), *_runs(job, "heads")), responses=(responses,))


def find(job: Job) -> Findings:
    """Report the true reward of the best of n by each way, for all n."""
    sample(_sampling(job))
    curves = {name: _curves(job, loss, pessimism) for name, (loss, pessimism, _) in _WAYS.items()}
    first, *others = curves
    differences = {f"{name} - {first}": _difference(curves[name], curves[first]) for name in others}
    differences |= {f"{name} - {others[0]}": _difference(curves[name], curves[others[0]]) for name in others[1:]}
    points = {name: [float(value) for value in each.mean((0, 1))] for name, each in curves.items()}
    return build_findings(
        job,
        "pessimism",
        results={"seeds": list(job.seeds), "set": job.sets[0], "gold": points, "differences": differences},
        tables=[_gold_table(curves), differences_table(f"Differences at n = {_DRAWS}", differences)],
        figures={"pessimism": _figure(job, points)},
        values=(
            values_line(name, {"gold": of_seed[:, n - 1]}, seed=seed, n=n)
            for name, each in curves.items()
            for seed, of_seed in zip(job.seeds, each, strict=True)
            for n in _SHOWN
        ),
        prompts=_PROMPTS,
        draws=_DRAWS,
    )


def _sampling(job: Job) -> SampleConfig:
    backbone = job.scale.backbone(job.backbones[0])
    return SampleConfig(
        model=job.model(backbone.name),
        data=[job.scale.sets[job.sets[0]].test],
        out=str(job.root / "samples" / backbone.name / f"{job.sets[0]}-{_DRAWS}"),
        n=_DRAWS,
        prompts=_PROMPTS,
        max_length=job.scale.max_length,
        chat_template=backbone.chat_template,
        sampling=SampleOptions(max_new_tokens=job.scale.max_length // 2),
    )


def _curves(job: Job, loss: str | None, pessimism: float) -> np.ndarray:
    """Let a way's runs choose; return the expected true reward of the best of n, [seeds, prompts, n]."""
    runs = [str(run.folder(job)) for run in _runs(job, loss)]
    true = job.scale.sets[job.sets[0]].test.removeprefix("world/")
    config = BestOfNConfig(
        models=runs,
        samples=_sampling(job).out,
        out=str(job.root / _folder(job, loss, pessimism)),
        judge=job.judge or JudgeOptions(kind="oracle", model=true),
        trust_remote_code=job.trust_remote_code,
        score=ScoreOptions(pessimism=pessimism),
    )
    prompts = best_of_n(config).prompts
    return np.array([[_curve(prompt, run) for prompt in prompts] for run in runs])


def _folder(job: Job, loss: str | None, pessimism: float) -> str:
    """Return the folder of a way's choices, relative to the job's root."""
    way = "-".join(filter(None, ("best-of", str(_DRAWS), loss, f"{pessimism:g}")))
    return f"{way}/{job.backbones[0]}/{job.sets[0]}"


def _curve(prompt: ScoredPrompt, run: str) -> np.ndarray:
    assert prompt.gold is not None
    return best_of_n_curve(prompt.rewards[run], prompt.gold, prompt.counts)[:_DRAWS]


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Compare the true rewards of the best of all draws; the 95% interval is over prompts, of the mean over seeds."""
    ends = [each[:, :, -1] for each in (ours, theirs)]
    found = paired_bootstrap(ends[0].mean(0), ends[1].mean(0), range(ours.shape[1]))
    by_seed = (ends[0] - ends[1]).mean(1).tolist()
    return {"mean": found.difference, "ci95": found.interval, "by_seed": by_seed}


def _gold_table(curves: _Curves) -> Table:
    rows = tuple((name, *(_cell(each[:, :, n - 1]) for n in _SHOWN)) for name, each in curves.items())
    return Table("Judge's reward of the best of n, 95% interval", ("best by", *(f"n = {n}" for n in _SHOWN)), rows)


def _cell(values: np.ndarray) -> str:
    over_seeds = values.mean(0)
    ends = bootstrap_interval(over_seeds, range(len(over_seeds)))
    return f"{over_seeds.mean():.2f} {interval(ends, '{:.2f}'.format)}".strip()


def _figure(job: Job, points: Mapping[str, Sequence[float]]) -> Any:
    curves = tuple(
        Curve(name, _WAYS[name][2], tuple((float(np.log2(n)), value) for n, value in enumerate(each, 1)))
        for name, each in points.items()
    )
    panel = Panel(f"{job.sets[0]}: judge's reward", curves, "log2 of n")
    return curve_panels("Judge's reward of the best of n responses", [panel])
