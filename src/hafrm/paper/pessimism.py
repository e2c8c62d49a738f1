"""Over-optimisation by best-of-N, and whether standard errors of rewards reduce it. Not in the paper.

The more responses a reward model chooses from, the more its choice exploits the model's errors, and the less of the
gain in its own reward is a gain in true reward (Gao et al., 2023). A run with several heads estimates how uncertain a
reward is, so it can choose by a lower confidence bound. We compare one head, the mean of several, and two bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hafrm.models.options import ScoreOptions
from hafrm.paper.measures import compared_by_prompt
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.policies import require_rewards
from hafrm.paper.record import values_line
from hafrm.paper.runs import Run, seed_runs
from hafrm.paper.scales import Job
from hafrm.paper.selections import judge_of, sampling_config
from hafrm.paper.tables import build_findings, differences_table
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import with_interval
from hafrm.sampling.analysis import ScoredPrompt, best_of_n_curve
from hafrm.sampling.best_of_n import RESULTS_FILE, best_of_n
from hafrm.sampling.options import BestOfNConfig, SampleConfig
from hafrm.sampling.run import sample
from hafrm.stats import bootstrap_interval

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
    return seed_runs(job, job.backbones[0], job.sets[:1], method="haf", loss=loss)


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
    sample(_sampling(job), wait=True)
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
    backbone, name = job.backbones[0], job.sets[0]
    config = sampling_config(job, backbone, name, folder=f"{name}-{_DRAWS}", draws=_DRAWS, prompts=_PROMPTS)
    return replace(config, model=job.model(backbone))


def _curves(job: Job, loss: str | None, pessimism: float) -> np.ndarray:
    """Let a way's runs choose; return the expected true reward of the best of n, [seeds, prompts, n]."""
    runs = [str(run.folder(job)) for run in _runs(job, loss)]
    config = BestOfNConfig(
        models=runs,
        samples=_sampling(job).out,
        out=str(job.root / _folder(job, loss, pessimism)),
        judge=judge_of(job, job.sets[0]),
        trust_remote_code=job.trust_remote_code,
        score=ScoreOptions(pessimism=pessimism),
    )
    prompts = best_of_n(config, wait=True).prompts
    return np.array([[_curve(prompt, run) for prompt in prompts] for run in runs])


def _folder(job: Job, loss: str | None, pessimism: float) -> str:
    """Return the folder of a way's choices, relative to the job's root."""
    way = "-".join(filter(None, ("best-of", str(_DRAWS), loss, f"{pessimism:g}")))
    return f"{way}/{job.backbones[0]}/{job.sets[0]}"


def _curve(prompt: ScoredPrompt, run: str) -> np.ndarray:
    assert prompt.gold is not None
    return best_of_n_curve(prompt.rewards[run], prompt.gold, prompt.counts)[:_DRAWS]


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Compare the true rewards of the best of all draws."""
    one, other = ours[:, :, -1], theirs[:, :, -1]
    return compared_by_prompt(one.mean(0), other.mean(0), (one - other).mean(1).tolist())


def _gold_table(curves: _Curves) -> Table:
    rows = tuple((name, *(_cell(each[:, :, n - 1]) for n in _SHOWN)) for name, each in curves.items())
    return Table("Judge's reward of the best of n, 95% interval", ("best by", *(f"n = {n}" for n in _SHOWN)), rows)


def _cell(values: np.ndarray) -> str:
    over_seeds = values.mean(0)
    ends = bootstrap_interval(over_seeds, range(len(over_seeds)))
    return with_interval(over_seeds.mean(), ends, "{:.2f}".format)


def _figure(job: Job, points: Mapping[str, Sequence[float]]) -> Any:
    curves = tuple(
        Curve(name, _WAYS[name][2], tuple((float(np.log2(n)), value) for n, value in enumerate(each, 1)))
        for name, each in points.items()
    )
    panel = Panel(f"{job.sets[0]}: judge's reward", curves, "log2 of n")
    return curve_panels("Judge's reward of the best of n responses", [panel])
