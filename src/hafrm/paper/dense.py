"""Dense rewards: what a policy learns if the score is paid token by token. Not in the paper.

The policy head of a HAF run gives each token a reward, tau * log pi / pi_ref. PPO can pay their sum at the response's
end or each at its token, and either together with the reward head's score. The two ways to pay differ only in the
tokens that are credited; the heads differ in what is rewarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

from hafrm.models.options import Head
from hafrm.paper import policies
from hafrm.paper.plans import Plan
from hafrm.paper.policies import Point, held_out_prompts, judged_answers, learning_table, points_of, reward_curve
from hafrm.paper.runs import Policy
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings, differences_table
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Cell, Findings, Table
from hafrm.rlhf.options import Dense
from hafrm.stats import paired_bootstrap


class _Way(NamedTuple):
    """A way to reward a policy by a HAF run."""

    head: Head
    dense: Dense
    style: str
    """Style of its curves: a color per head, dashed where the score is paid at the end."""


_WAYS: Mapping[str, _Way] = {
    "reward head": _Way("reward", "none", "baseline"),
    "policy head, at the end": _Way("policy", "none", "dpo dash1"),
    "policy head, by token": _Way("policy", "token", "dpo"),
    "both heads, at the end": _Way("combined", "none", "haf dash1"),
    "both heads, by token": _Way("combined", "token", "haf"),
}

_PAIRS = (
    ("policy head, by token", "policy head, at the end"),
    ("both heads, by token", "both heads, at the end"),
    ("policy head, by token", "reward head"),
    ("both heads, by token", "reward head"),
)
"""Ways to compare, the first with the second."""


def _policies(job: Job, way: _Way) -> list[Policy]:
    backbone, sets = job.backbones[0], job.sets[:1]
    return [
        Policy(backbone=backbone, sets=sets, rewarded_by="haf", seed=seed, head=way.head, dense=way.dense)
        for seed in job.seeds
    ]


def plan(job: Job) -> Plan:
    """Plan a HAF run per seed on the first set, and a policy for each way to be rewarded by it.

    Raises:
        ConfigError: outside the world, no reward model is given as judge.
    """
    policies.require_rewards(job, "dense")
    planned = [policy for way in _WAYS.values() for policy in _policies(job, way)]
    runs = dict.fromkeys(policy.reward for policy in planned if policy.reward)
    return Plan(tuple(runs)) + policies.with_answers(job, planned)


def find(job: Job) -> Findings:
    """Report the true reward over steps and over KL for each way, and differences between ways."""
    prompts = held_out_prompts(job, job.backbones[0], job.sets[:1], policies.PROMPTS)
    points = {
        name: points_of([judged_answers(job, policy, prompts) for policy in _policies(job, way)])
        for name, way in _WAYS.items()
    }
    differences = {f"{one} - {other}": _difference(points[one], points[other]) for one, other in _PAIRS}
    return build_findings(
        job,
        "dense",
        results={
            "seeds": list(job.seeds),
            "set": job.sets[0],
            "steps": {name: {str(point.step): point.as_dict() for point in each} for name, each in points.items()},
            "differences": differences,
        },
        tables=[
            learning_table("Judge's reward of answers to new prompts", points),
            differences_table("Differences, mean of all checkpoints after the start", differences),
            _steps_table(points),
        ],
        figures={"dense": _figure(job, points)},
        prompts=policies.PROMPTS,
    )


def _difference(ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, Any]:
    """Compare the judge's reward of two ways, averaged over the checkpoints after the start.

    Returns:
        `{"mean", "ci95", "by_seed"}`; the 95% interval is over prompts, of the mean over seeds.
    """
    one, other = (_over_steps([point.gold for point in way[1:]]) for way in (ours, theirs))
    found = paired_bootstrap(one, other, range(len(one)))
    seeds = (_over_steps([point.gold_by_seed for point in way[1:]]) for way in (ours, theirs))
    by_seed = [mine - rival for mine, rival in zip(*seeds, strict=True)]
    return {"mean": found.difference, "ci95": found.interval, "by_seed": by_seed}


def _over_steps(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(fmean, zip(*rows, strict=True)))


def _steps_table(points: Mapping[str, Sequence[Point]]) -> Table:
    steps = [point.step for point in next(iter(points.values()))]
    rows: list[tuple[Cell, ...]] = [
        (name, *(f"{fmean(point.gold):.2f} ({point.kl:.1f}; {point.length:.0f})" for point in each))
        for name, each in points.items()
    ]
    return Table("Judge's reward (KL in nats; tokens) after each number of steps", ("", *map(str, steps)), tuple(rows))


def _figure(job: Job, points: Mapping[str, Sequence[Point]]) -> Any:
    def curves(by: Literal["step", "kl"]) -> tuple[Curve, ...]:
        return tuple(reward_curve(name, way.style, points[name], "gold", by) for name, way in _WAYS.items())

    title = f"{job.sets[0]}: judge's reward"
    panels = [Panel(title, curves("step")), Panel(title, curves("kl"), "KL from the start, nats")]
    return curve_panels("Judge's reward over PPO steps and over KL, by what is paid where", panels)
