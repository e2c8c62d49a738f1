"""What an experiment needs: training runs, evaluations of them, and policies trained on their rewards.

A plan is data, so it can be shown without running anything. `execute` does only what is missing: an interrupted
reproduction resumes where it stopped, and experiments in one output root share runs and evaluations.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hafrm.evaluation.run import EvaluateConfig, evaluate
from hafrm.evaluation.scoring import RESULTS_FILE
from hafrm.paper.policies import (
    PolicyRun,
    other_policy_options,
    policy_command,
    policy_config,
    train_missing_policy,
)
from hafrm.paper.runs import (
    OTHER_OPTIONS,
    Run,
    command,
    require_same_options,
    shown_state,
    state_of,
    train_config,
    train_missing,
)
from hafrm.paper.scales import Scale
from hafrm.paper.study.options import StudyOptions
from hafrm.training.config import Method

ALL_METHODS: tuple[Method, ...] = ("haf", "baseline", "dpo")
"""All three methods, in the order in which evaluations compare them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A reproduction request: the scale, and which parts of it to run."""

    scale: Scale
    backbones: tuple[str, ...]
    sets: tuple[str, ...]
    """Paper names of the sets to use."""
    seeds: tuple[int, ...]
    out: Path
    """Output root shared by experiments."""
    rewardbench: str | None = None
    """RewardBench's pairs, for the external half of Table 3."""
    judge: str | None = None
    """Reward model that judges best-of-N at scales other than `world`."""
    study: StudyOptions = field(default_factory=StudyOptions)

    @property
    def root(self) -> Path:
        """Output folder of this scale."""
        return self.out / self.scale.name

    def runs(self, sets: tuple[str, ...], method: Method, *, backbone: str) -> tuple[Run, ...]:
        """Return the runs of one method on these sets, one per seed."""
        return tuple(Run(backbone=backbone, sets=sets, method=method, seed=seed) for seed in self.seeds)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The three methods, trained on the same data, compared on held-out pairs of one or more sets."""

    backbone: str
    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Evaluation folder, relative to `evaluations`."""
        return f"{self.backbone}/{'+'.join(self.trained_on)}-seed{self.seed}/on-{'+'.join(self.tested_on)}"

    def runs(self) -> dict[Method, Run]:
        """Return the runs compared, by method."""
        common = {"backbone": self.backbone, "sets": self.trained_on, "seed": self.seed}
        return {method: Run(method=method, **common) for method in ALL_METHODS}  # type: ignore[arg-type]

    def config(self, job: Job) -> EvaluateConfig:
        """Return the evaluation's options."""
        return EvaluateConfig(
            models=[str(run.folder(job.scale, job.out)) for run in self.runs().values()],
            data=[job.scale.sets[name].test for name in self.tested_on],
            out=str(job.root / "evaluations" / self.name),
        )


@dataclass(frozen=True)
class Plan:
    """Distinct runs, evaluations and policies, in the order of execution."""

    runs: tuple[Run, ...]
    evaluations: tuple[Evaluation, ...] = ()
    policies: tuple[PolicyRun, ...] = ()

    def __add__(self, other: Plan) -> Plan:
        runs, evaluations = self.runs + other.runs, self.evaluations + other.evaluations
        policies = self.policies + other.policies
        return Plan(tuple(dict.fromkeys(runs)), tuple(dict.fromkeys(evaluations)), tuple(dict.fromkeys(policies)))


def comparison_plan(job: Job, pairs: Iterable[tuple[tuple[str, ...], tuple[str, ...]]]) -> Plan:
    """Plan HAF, the baseline and DPO on every backbone and seed, for each (training sets, test sets)."""
    plan = Plan(())
    for trained_on, tested_on in pairs:
        for backbone in job.backbones:
            for seed in job.seeds:
                each = Evaluation(backbone=backbone, trained_on=trained_on, tested_on=tested_on, seed=seed)
                plan += Plan(tuple(each.runs().values()), (each,))
    return plan


def execute(job: Job, plan: Plan, say: Callable[[str], None]) -> None:
    """Train and evaluate what is missing.

    Args:
        job: The reproduction job.
        plan: What the job needs.
        say: Called with a progress line before each missing run and evaluation.

    Raises:
        ConfigError: a folder contains a run with other options; raised before any training.
        HafrmError: a run or an evaluation failed.
    """
    for name in dict.fromkeys([*(run.backbone for run in plan.runs), *(policy.backbone for policy in plan.policies)]):
        if job.scale.name == "world":
            say(f"backbone {name}: taken from the cache, or pretrained first (some minutes)")
        job.scale.backbone(name).model()
    for run in plan.runs:
        require_same_options(job.scale, run, job.out)
    for number, run in enumerate(plan.runs, 1):
        if state_of(run.folder(job.scale, job.out)) != "finished":
            say(f"run {number}/{len(plan.runs)}: {run.name}")
        train_missing(job.scale, run, job.out)
    for number, evaluation in enumerate(plan.evaluations, 1):
        config = evaluation.config(job)
        if not (Path(config.out) / RESULTS_FILE).exists():
            say(f"evaluation {number}/{len(plan.evaluations)}: {evaluation.name}")
        evaluate(config, say=say)
    for number, policy in enumerate(plan.policies, 1):
        if state_of(policy.folder(job.scale, job.out)) != "finished":
            say(f"policy {number}/{len(plan.policies)}: {policy.name}")
        train_missing_policy(job.scale, policy, job.out)


def described(job: Job, plan: Plan) -> Iterator[str]:
    """Describe the plan line by line: each run and evaluation with its state and the equivalent command."""
    states = [shown_state(job.scale, run, job.out) for run in plan.runs]
    yield f"{len(plan.runs)} training runs, of which {states.count('finished')} are finished:"
    for run, state in zip(plan.runs, states, strict=True):
        config = train_config(job.scale, run, job.out, model=job.scale.backbone(run.backbone).shown)
        yield f"  [{state}] {run.name}"
        yield f"    {shlex.join(command(config))}"
    yield f"{len(plan.evaluations)} evaluations:"
    for evaluation in plan.evaluations:
        config_ = evaluation.config(job)
        done = "finished" if (Path(config_.out) / RESULTS_FILE).exists() else "missing"
        yield f"  [{done}] {evaluation.name}"
        yield f"    {shlex.join(['hafrm', 'evaluate', *config_.models, '--data', *config_.data, '--out', config_.out])}"
    if plan.policies:
        yield f"{len(plan.policies)} policies:"
    for policy in plan.policies:
        options = policy_config(job.scale, policy, job.out, model=job.scale.backbone(policy.backbone).shown)
        changed = other_policy_options(options, shown=job.scale.name == "world")
        state = f"{OTHER_OPTIONS}: {changed}" if changed else state_of(Path(options.out))
        yield f"  [{state}] {policy.name}"
        yield f"    {shlex.join(policy_command(options))}"
