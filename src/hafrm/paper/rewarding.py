"""Ways to reward a policy with HAF runs: token by token, or by lower confidence bounds.

The policy head of a HAF run gives each token a reward, tau * log pi / pi_ref. PPO can pay their sum at the response's
end or each reward at its token, with or without the reward head's score (`dense`). With several reward heads, PPO can
maximise their mean, or their mean minus some standard errors (`bounds`). Neither is in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from hafrm.paper import policies
from hafrm.paper.measures import compared_by_prompt
from hafrm.paper.plans import Plan
from hafrm.paper.policies import Point
from hafrm.paper.runs import Policy, seed_policies
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings, differences_table
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings, Table


@dataclass(frozen=True)
class _Study:
    """A comparison of ways to reward a policy."""

    ways: Mapping[str, tuple[str, Mapping[str, Any]]]
    """By name: the style of its curves, and the options of its policies."""
    rivals: tuple[tuple[str, str], ...]
    """Ways to compare, the first with the second."""
    compared: str
    """What the figure compares."""


def _heads(pessimism: float) -> Mapping[str, Any]:
    return {"loss": "heads", "head": "reward", "pessimism": pessimism}


_STUDIES: Mapping[str, _Study] = {
    "dense": _Study(
        ways={
            "reward head": ("baseline", {"head": "reward"}),
            "policy head, at the end": ("dpo dash1", {"head": "policy"}),
            "policy head, by token": ("dpo", {"head": "policy", "dense": "token"}),
            "both heads, at the end": ("haf dash1", {"head": "combined"}),
            "both heads, by token": ("haf", {"head": "combined", "dense": "token"}),
        },
        rivals=(
            ("policy head, by token", "policy head, at the end"),
            ("both heads, by token", "both heads, at the end"),
            ("policy head, by token", "reward head"),
            ("both heads, by token", "reward head"),
        ),
        compared="by what is paid where",
    ),
    "bounds": _Study(
        ways={
            "one head": ("baseline", {"head": "reward"}),
            "mean of five heads": ("dpo", _heads(0.0)),
            "mean - 2 standard errors": ("haf dash1", _heads(2.0)),
            "mean - 10 standard errors": ("haf", _heads(10.0)),
        },
        rivals=(
            ("mean of five heads", "one head"),
            ("mean - 2 standard errors", "one head"),
            ("mean - 10 standard errors", "one head"),
            ("mean - 2 standard errors", "mean of five heads"),
            ("mean - 10 standard errors", "mean of five heads"),
        ),
        compared="by the reward's standard errors",
    ),
}


def _policies(job: Job, options: Mapping[str, Any]) -> list[Policy]:
    return seed_policies(job, job.backbones[0], job.sets[:1], rewarded_by="haf", **options)


def plan(job: Job, name: str) -> Plan:
    """Plan HAF runs for each seed on the first set, and a policy for each way of rewarding it.

    Raises:
        ConfigError: outside the world, no reward model is given as judge.
    """
    policies.require_rewards(job, name)
    planned = [policy for _, options in _STUDIES[name].ways.values() for policy in _policies(job, options)]
    runs = dict.fromkeys(policy.reward for policy in planned if policy.reward)
    return Plan(tuple(runs)) + policies.with_answers(job, planned)


def find(job: Job, name: str) -> Findings:
    """Report the true reward over steps and over KL for each way, and differences between ways."""
    study = _STUDIES[name]
    prompts = policies.held_out_prompts(job, job.backbones[0], job.sets[:1], policies.PROMPTS)
    judged = {
        way: [policies.judged_answers(job, policy, prompts) for policy in _policies(job, options)]
        for way, (_, options) in study.ways.items()
    }
    points = {way: policies.points_of(seeds) for way, seeds in judged.items()}
    differences = {f"{one} - {other}": _difference(points[one], points[other]) for one, other in study.rivals}
    return build_findings(
        job,
        name,
        results={
            "seeds": list(job.seeds),
            "set": job.sets[0],
            "steps": {way: policies.by_step(each) for way, each in points.items()},
            "differences": differences,
        },
        tables=[
            policies.learning_table("Judge's reward of answers to new prompts", points),
            differences_table("Differences, mean of all checkpoints after the start", differences),
            _steps_table(points),
        ],
        figures={name: _figure(job, study, points)},
        values=policies.answers_lines(judged, job.seeds),
        prompts=policies.PROMPTS,
    )


def _difference(ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, Any]:
    """Compare the judge's reward of two ways, averaged over the checkpoints after the start."""
    one, other = (policies.averaged(point.gold for point in way[1:]) for way in (ours, theirs))
    seeds = (policies.averaged(point.gold_by_seed for point in way[1:]) for way in (ours, theirs))
    return compared_by_prompt(one, other, (mine - rival for mine, rival in zip(*seeds, strict=True)))


def _steps_table(points: Mapping[str, Sequence[Point]]) -> Table:
    steps = [point.step for point in next(iter(points.values()))]
    rows = [
        (name, *(f"{fmean(point.gold):.2f} ({point.kl:.1f}; {point.length:.0f})" for point in each))
        for name, each in points.items()
    ]
    return Table("Judge's reward (KL in nats; tokens) after each number of steps", ("", *map(str, steps)), rows)


def _figure(job: Job, study: _Study, points: Mapping[str, Sequence[Point]]) -> Any:
    def curves(by: Literal["step", "kl"]) -> tuple[Curve, ...]:
        return tuple(
            policies.reward_curve(way, style, points[way], "gold", by) for way, (style, _) in study.ways.items()
        )

    title = f"{job.sets[0]}: judge's reward"
    panels = [Panel(title, curves("step")), Panel(title, curves("kl"), "KL from the start, nats")]
    return curve_panels(f"Judge's reward over PPO steps and over KL, {study.compared}", panels)
