"""`hafrm reproduce`: a table or figure of the paper, at the scale that there is a machine for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.errors import ConfigError
from hafrm.reproduce.findings import write_findings
from hafrm.reproduce.paper import SETS
from hafrm.reproduce.plans import Job, described, execute
from hafrm.reproduce.registry import EXPERIMENTS, Experiment
from hafrm.reproduce.scales import (
    Overrides,
    Scale,
    ScaleName,
    in_paper_order,
    paper_scale,
    small_scale,
    world_scale,
)

__all__ = ["ReproduceConfig", "parser", "run"]


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Reproduce a table or figure of the paper, and set its numbers beside ours."""

    name: str
    """Which: see the list below."""

    scale: ScaleName = "world"
    """`world` needs nothing, `small` a backbone and files, `paper` the paper's models, sets and a 48 GB GPU."""

    out: str = "reproduction"
    """The root for runs, evaluations and results; experiments that share it share their runs."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of the training runs."""

    backbones: list[str] = field(default_factory=list)
    """Backbones by the scale's names. Default: its first; world: instruct, base; paper: phi-2, mistral-base,
    mistral-instruct."""

    sets: list[str] = field(default_factory=list)
    """Of Helpful, Harmless, CA, BS, AHP those that take part. Default: all; figure6 uses the first."""

    backbone: str | None = None
    """small: the folder of the causal language model to start from."""

    data_folder: str | None = None
    """small: the folder of NAME-train, NAME-validation and NAME-test (.jsonl or .jsonl.gz)."""

    rewardbench: str | None = None
    """table3: RewardBench's pairs, for the external half."""

    judge: str | None = None
    """figure4, table4, table11: outside the world the reward model that judges, as ArmoRM does in Figure 9."""

    steps: int | None = None
    """Training steps of each run instead of the scale's (world 240, small 600, paper 3200)."""

    learning_rate: float | None = None
    """The learning rate of every method instead of the scale's (world 5e-4, small 5e-5, paper: Appendix A)."""

    max_length: int | None = None
    """The most tokens of a prompt with a response instead of the scale's (world 256, otherwise 512)."""

    early_stopping: int = 0
    """Stop a run after so many evaluations without a better one; 0 never stops. Appendix B calls for it."""

    dry_run: bool = False
    """Show the runs, the commands that do the same and what is there, and run nothing."""

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            known = "; ".join(f"{name} ({each.summary})" for name, each in EXPERIMENTS.items())
            raise ConfigError(f"name: {self.name!r} is no experiment here. There are {known}.")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")
        for name in ("seeds", "backbones", "sets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {', '.join(map(str, values))} names one twice.")
        if self.scale != "small":
            for name in ("backbone", "data_folder"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name} has no effect at scale {self.scale}: leave it out, or use --scale small."
                    )
        if self.judge is not None and (self.name not in ("figure4", "table4", "table11") or self.scale == "world"):
            raise ConfigError(f"judge has no effect on {self.name} at scale {self.scale}: leave it out.")
        if self.rewardbench is not None and self.name != "table3":
            raise ConfigError("rewardbench has no effect but on table3: leave it out.")


def parser() -> ArgumentParser:
    """The command's options."""
    made = command_parser(ReproduceConfig, positional="name", lists=("seeds", "backbones", "sets"), flags=("dry_run",))
    made.epilog = "names: " + "; ".join(f"{name}: {each.summary}" for name, each in EXPERIMENTS.items())
    return made


def run(args: Namespace) -> None:
    """Train and evaluate what is missing, and write the results; or show the plan."""
    config = options_of(ReproduceConfig, parser(), args)
    console = Console()
    job = _job(config)
    experiment = EXPERIMENTS[config.name]
    plan = experiment.plan(job)
    if config.dry_run:
        for line in described(job, plan):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    execute(job, plan, lambda line: Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True))
    _write(job, config.name, experiment, console)


def _write(job: Job, name: str, experiment: Experiment, console: Console) -> None:
    folder = job.root / name
    page = write_findings(experiment.find(job), folder)
    console.print((folder / "table.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Numbers, table, figures and a page: {page}", highlight=False, soft_wrap=True)


def _job(config: ReproduceConfig) -> Job:
    scale = _scale(config)
    names = [scale.backbone(name).name for name in config.backbones] or [scale.backbone().name]
    return Job(
        scale=scale,
        backbones=tuple(names),
        sets=in_paper_order(config.sets or SETS),
        seeds=tuple(config.seeds),
        out=Path(config.out),
        rewardbench=config.rewardbench,
        judge=config.judge,
    )


def _scale(config: ReproduceConfig) -> Scale:
    overrides = Overrides(
        steps=config.steps,
        learning_rate=config.learning_rate,
        max_length=config.max_length,
        early_stopping=config.early_stopping,
    )
    if config.scale == "small":
        return small_scale(overrides, backbone=config.backbone, data_folder=config.data_folder)
    return world_scale(overrides) if config.scale == "world" else paper_scale(overrides)
