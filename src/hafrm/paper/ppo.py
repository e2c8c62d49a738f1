"""Check that PPO learns: trained on the world's true reward, does it raise the true reward on new prompts?

The paper does not test this. It is a control for Figure 5: differences between reward models mean nothing if the
trainer does not learn. Uses the job's first set (by default Helpful).
"""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.errors import ConfigError
from hafrm.paper.judged import (
    Judged,
    held_out_prompts,
    judged_answers,
    learning_table,
    learnt,
    points_of,
    reward_curve,
)
from hafrm.paper.plans import Job, Plan
from hafrm.paper.policies import PolicyRun
from hafrm.paper.table2 import scale_notes
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings

_PROMPTS = 240
_LINES = ("haf", "baseline", "dpo", "zero", "haf dash1", "baseline dash1")
"""Curve styles of the seeds, in turn."""


def plan(job: Job) -> Plan:
    """Plan one policy per backbone and seed.

    Raises:
        ConfigError: the scale has no true reward.
    """
    if job.scale.name != "world":
        raise ConfigError("ppo is trained on the world's true reward: use --scale world.")
    return Plan((), policies=tuple(each for backbone in job.backbones for each in _policies(job, backbone)))


def find(job: Job) -> Findings:
    """Report the true reward before and after training, its gain, and its curve for each seed."""
    judged = {backbone: _judged(job, backbone) for backbone in job.backbones}
    points = {backbone: points_of(list(seeds)) for backbone, seeds in judged.items()}
    return Findings(
        title="Does PPO learn?",
        intro=(
            f"PPO on the true reward of {job.sets[0]}. Scale {job.scale.name}, backbones {', '.join(job.backbones)}, "
            f"seeds {', '.join(map(str, job.seeds))}. Each checkpoint answers {_PROMPTS} test prompts once. In "
            "brackets 95% intervals over prompts of the mean over seeds."
        ),
        results={
            "scale": job.scale.name,
            "seeds": list(job.seeds),
            "set": job.sets[0],
            "learnt": {backbone: learnt(each).as_dict() for backbone, each in points.items()},
            "steps": {
                backbone: {str(point.step): point.as_dict() for point in each} for backbone, each in points.items()
            },
        },
        tables=(learning_table("True reward of answers to new prompts", points),),
        figures={
            f"ppo-{backbone}": curve_panels(
                f"True reward over PPO steps, {backbone}",
                [
                    Panel(
                        f"{job.sets[0]}: true reward",
                        tuple(
                            Curve(f"seed {seed}", line, reward_curve(points_of([each]), "gold", "step"))
                            for seed, line, each in zip(job.seeds, _lines(len(job.seeds)), seeds, strict=True)
                        ),
                    )
                ],
            )
            for backbone, seeds in judged.items()
        },
        notes=scale_notes(job),
    )


def _policies(job: Job, backbone: str) -> list[PolicyRun]:
    return [PolicyRun(backbone=backbone, sets=job.sets[:1], rewarded_by=None, seed=seed) for seed in job.seeds]


def _judged(job: Job, backbone: str) -> Sequence[Sequence[Judged]]:
    prompts = held_out_prompts(job, backbone, job.sets[:1], _PROMPTS)
    return [judged_answers(job, policy, prompts) for policy in _policies(job, backbone)]


def _lines(count: int) -> list[str]:
    return [_LINES[place % len(_LINES)] for place in range(count)]
