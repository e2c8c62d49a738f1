"""`hafrm reproduce`: reproduce a table or figure of the paper, at a scale that fits the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.errors import ConfigError
from hafrm.models.outputs import require_results
from hafrm.paper.numbers import SETS
from hafrm.paper.plans import Job
from hafrm.paper.registry import EXPERIMENTS, Experiment
from hafrm.paper.scales import (
    Overrides,
    Scale,
    ScaleName,
    in_paper_order,
    paper_scale,
    small_scale,
    world_scale,
)
from hafrm.paper.study.options import PARTS, StudyOptions
from hafrm.paper.study.publishing import MAIN_PAGE, publish, require_checkout
from hafrm.report.findings import write_findings


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Reproduce a table or figure of the paper, and compare its numbers to ours."""

    name: str
    """The table, figure or study: see the list below."""

    scale: ScaleName = "world"
    """`world` needs nothing, `small` a backbone and files, `paper` the paper's models, sets and a 48 GB GPU."""

    out: str = "reproduction"
    """The root folder for runs, evaluations and results; experiments in the same folder share their runs."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of the training runs."""

    backbones: list[str] = field(default_factory=list)
    """Backbones by the scale's names. Default: its first; for study, all. world: instruct, base; paper: phi-2,
    mistral-base, mistral-instruct.
    """

    sets: list[str] = field(default_factory=list)
    """Data sets to use: Helpful, Harmless, CA, BS, AHP. Default: all; claims, figure2, figure6 and ppo use a single
    one, by default Helpful.
    """

    backbone: list[str] = field(default_factory=list)
    """small: folders of causal language models to start from; each is called by its folder's name, with adapters
    NAME-lora.
    """

    data_folder: str | None = None
    """small: the folder of NAME-train, NAME-validation and NAME-test (.jsonl or .jsonl.gz)."""

    rewardbench: str | None = None
    """table3: RewardBench's pairs, for the external half of the table."""

    judge: str | None = None
    """figure4, table4, table11: the reward model that judges outside the world (ArmoRM in the paper's Figure 9)."""

    steps: int | None = None
    """Training steps of each run, in place of the scale's (world 240, small 600, paper 3200)."""

    learning_rate: float | None = None
    """Learning rate of every method, in place of the scale's (world 5e-4, small 5e-5, paper: Appendix A)."""

    max_length: int | None = None
    """Maximum tokens of a prompt with a response, in place of the scale's (world 256, otherwise 512)."""

    early_stopping: int = 0
    """Stop a run after this many evaluations without improvement; 0 never stops. The paper uses it (Appendix B)."""

    pairs: int | None = None
    """Maximum training pairs of a set. Default: all."""

    learning_rates: list[float] = field(default_factory=list)
    """study: the learning rates to try for each method."""

    rate_seeds: int = 1
    """study: number of seeds that select among the learning rates, the first ones; small differences need more."""

    parts: list[str] = field(default_factory=list)
    """study: the parts to run, of table2, ood, heads, mixed, losses, ratios, sizes, priors. Default: all, in this
    order.
    """

    hours: float | None = None
    """study: time limit; runs that would end later are not started, and the same command continues with them."""

    retry: bool = False
    """study: try failed runs again."""

    publish: str | None = None
    """study: a checkout to write the study's page in docs/results, numbers, figures and the README's table to."""

    page: str = MAIN_PAGE
    """study: the page's name: `study`, whose table the README shows, or `study-` and a topic."""

    dry_run: bool = False
    """Show the runs, the equivalent commands and what already exists, and run nothing."""

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            known = "; ".join(f"{name} ({each.summary})" for name, each in EXPERIMENTS.items())
            raise ConfigError(f"name: {self.name!r} is no experiment here. There are {known}.")
        self.overrides()  # refuses numbers that can't be
        if any(not 0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError(f"seeds must be from 0 to 2^32 - 1, got {', '.join(map(str, self.seeds))}")
        for name in ("seeds", "backbones", "sets", "backbone", "parts", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {', '.join(map(str, values))} names one twice.")
        if self.scale != "small":
            for name in ("backbone", "data_folder"):
                if getattr(self, name):
                    raise ConfigError(
                        f"{name} has no effect at scale {self.scale}: leave it out, or use --scale small."
                    )
        if self.judge is not None and (self.name not in ("figure4", "table4", "table11") or self.scale == "world"):
            raise ConfigError(f"judge has no effect on {self.name} at scale {self.scale}: leave it out.")
        if self.rewardbench is not None and self.name != "table3":
            raise ConfigError("rewardbench has no effect but on table3: leave it out.")
        study_only = {
            name: getattr(self, name) for name in ("parts", "learning_rates", "hours", "retry", "publish")
        } | {"rate_seeds": self.rate_seeds != 1}
        for name, is_given in study_only.items():
            if is_given and self.name != "study":
                raise ConfigError(f"{name} has no effect but on study: leave it out.")
        if self.rate_seeds > max(1, len(self.seeds)):
            raise ConfigError(f"rate_seeds is {self.rate_seeds}, of {len(self.seeds)} seeds.")
        self._require_used(EXPERIMENTS[self.name])
        if self.page != MAIN_PAGE and self.publish is None:
            raise ConfigError("page has no effect without publish: give --publish CHECKOUT, or leave it out.")
        if not re.fullmatch(rf"{MAIN_PAGE}(-[a-z0-9]+)*", self.page):
            raise ConfigError(
                f"page: {self.page!r} is neither {MAIN_PAGE} nor {MAIN_PAGE}- and words in small letters."
            )

    def _require_used(self, experiment: Experiment) -> None:
        """Raise for options that have no effect on this experiment.

        Raises:
            ConfigError: one is given.
        """
        given = {
            "seeds": self.seeds != [0],
            "steps": self.steps is not None,
            "learning_rate": self.learning_rate is not None,
            "early_stopping": self.early_stopping != 0,
            "pairs": self.pairs is not None,
        }
        if not experiment.trains and (unread := [name for name, is_given in given.items() if is_given]):
            raise ConfigError(
                f"{', '.join(unread)}: without effect on {self.name}, which trains nothing: leave it out."
            )
        for name in experiment.one:
            if len(getattr(self, name)) > 1:
                raise ConfigError(f"{name}: {self.name} reads one alone: name one.")
        if self.learning_rate is not None and self.learning_rates:
            raise ConfigError("learning_rate has no effect beside learning_rates: leave one out.")

    def overrides(self) -> Overrides:
        """Return the options that override the scale's."""
        return Overrides(
            steps=self.steps,
            learning_rate=self.learning_rate,
            max_length=self.max_length,
            early_stopping=self.early_stopping,
            cap=self.pairs,
        )


def parser() -> ArgumentParser:
    """Build the command's parser."""
    lists = ("seeds", "backbones", "sets", "backbone", "learning_rates", "parts")
    made = command_parser(ReproduceConfig, positional="name", lists=lists, flags=("retry", "dry_run"))
    made.epilog = "names: " + "; ".join(f"{name}: {each.summary}" for name, each in EXPERIMENTS.items())
    return made


def run(args: Namespace) -> None:
    """Train and evaluate what is missing, and write the results; or show the plan."""
    config = options_of(ReproduceConfig, parser(), args)
    console = Console()
    if config.publish is not None:
        require_checkout(Path(config.publish), config.page)  # fail before hours of training
    job = _job(config)
    experiment = EXPERIMENTS[config.name]
    plan = experiment.plan(job)
    told = Console(stderr=True)
    for model in config.backbone:
        if not Path(model).is_dir():
            told.print(
                f"{model} is no folder here, so it is taken for a model of the hub.", markup=False, soft_wrap=True
            )
    if config.dry_run:
        for line in experiment.describe(job, plan):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    written, known = ("results.json", "index.html", "table.md"), ("title", "relations", "notes")
    require_results(job.root / config.name, config, written, "results.json", known, by="hafrm reproduce")
    experiment.execute(job, plan, lambda line: told.print(line, markup=False, highlight=False, soft_wrap=True))
    _write(job, config, experiment, console)


def _write(job: Job, config: ReproduceConfig, experiment: Experiment, console: Console) -> None:
    folder = job.root / config.name
    findings = experiment.find(job)
    page = write_findings(findings, folder)
    console.print((folder / "table.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Numbers, table, figures and a page: {page}", highlight=False, soft_wrap=True)
    if config.publish is not None:
        for path in publish(dict(findings.results), Path(config.publish), config.page):
            console.print(f"published: {path}", highlight=False, soft_wrap=True)


def _job(config: ReproduceConfig) -> Job:
    scale = _scale(config)
    default = list(scale.backbones) if config.name == "study" else [scale.backbone().name]
    names = [scale.backbone(name).name for name in config.backbones] or default
    return Job(
        scale=scale,
        backbones=tuple(names),
        sets=in_paper_order(config.sets or SETS),
        seeds=tuple(config.seeds),
        out=Path(config.out),
        rewardbench=config.rewardbench,
        judge=config.judge,
        study=StudyOptions(
            rates=tuple(config.learning_rates),
            rate_seeds=config.rate_seeds,
            parts=tuple(config.parts or PARTS),  # type: ignore[arg-type]  # it refuses others
            hours=config.hours,
            retry=config.retry,
        ),
    )


def _scale(config: ReproduceConfig) -> Scale:
    overrides = config.overrides()
    if config.scale == "small":
        return small_scale(overrides, backbones=config.backbone, data_folder=config.data_folder)
    return world_scale(overrides) if config.scale == "world" else paper_scale(overrides)
