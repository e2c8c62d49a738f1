"""`hafrm reproduce`: reproduce a table or figure of the paper, at a scale that fits the machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.cli.parser import Parser
from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeOptions
from hafrm.options import check, limits
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.numbers import SETS
from hafrm.paper.presets import paper_scale, small_scale, world_scale
from hafrm.paper.scales import MAIN_PAGE, Job, Overrides, Scale, ScaleName, in_paper_order

if not TYPE_CHECKING:  # jsonargparse runs the block of a plain `if TYPE_CHECKING`, which would load torch
    pass
else:
    from hafrm.report.findings import Findings

_TRAINED = {"trains": True}
_SMALL = {"scales": ("small",)}
_STUDY = {"experiments": ("study",)}
_POLICIES = ("figure5", "ppo", "dense", "bounds")
_JUDGED = {
    "experiments": ("figure4", "figure8", "figure9", "table4", "table11", "pessimism", "generators", *_POLICIES),
    "scales": ("small", "paper"),
}
"""What an option applies to: experiments, scales, and whether only experiments that train something."""


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Reproduce a table or figure of the paper, and compare its numbers to ours."""

    name: str
    """The table, figure or study: see the list below."""

    scale: ScaleName = "world"
    """`world` needs nothing, `small` a backbone and files, `paper` the paper's models, sets and a GPU; --dry_run says
    how much GPU memory.
    """

    out: str = "reproduction"
    """The root folder for runs, evaluations and results; experiments in the same folder share their runs."""

    seeds: list[int] = field(default_factory=lambda: [0], metadata=_TRAINED | limits(least=0, below=2**32))
    """Seeds of the training runs."""

    backbones: list[str] = field(default_factory=list)
    """Backbones by the scale's names. Default: its first; for study, all. world: instruct, base; paper: phi-2,
    mistral-base, mistral-instruct.
    """

    sets: list[str] = field(default_factory=list)
    """Data sets to use: Helpful, Harmless, CA, BS, AHP; study trains in the given order. Default: all; claims, figure2,
    figure6, gradients, ppo and the studies beyond the paper use a single one, by default Helpful.
    """

    backbone: list[str] = field(default_factory=list, metadata=_SMALL)
    """small: folders of causal language models to start from; each is called by its folder's name, with adapters
    NAME-lora.
    """

    data_folder: str | None = field(default=None, metadata={"scales": ("small", "paper")})
    """small: the folder of NAME-train, NAME-validation and NAME-test (.jsonl or .jsonl.gz). paper: a folder with a copy
    of each set, in a folder of its name (`hafrm data list`); default: they are downloaded.
    """

    precision: Literal["fp16", "bf16"] = field(default="fp16", metadata=_TRAINED | {"scales": ("paper",)})
    """paper: precision of products (Table 5: fp16); trained weights are float32 in either case."""

    rewardbench: str | None = field(default=None, metadata={"experiments": ("table3",)})
    """table3: RewardBench's pairs, for the external half of the table."""

    judge: JudgeOptions | None = field(default=None, metadata=_JUDGED)
    """The judge of best-of-N and of policies outside the world: an endpoint (the paper's is gpt-4-turbo-2024-04-09) or
    a reward model (ArmoRM in Figure 9); for ppo, the reward model to train with.
    """

    trust_remote_code: bool = field(default=False, metadata=_JUDGED)
    """Run Python code that comes with the judge. Such code can do anything that you can, so leave this off."""

    steps: int | None = field(default=None, metadata=_TRAINED)
    """Training steps of each run, in place of the scale's (world 240, small 600, paper 3200)."""

    ppo_steps: int | None = field(default=None, metadata={"experiments": _POLICIES} | limits(least=1))
    """figure5, ppo, dense, bounds: steps of PPO, in place of the scale's (world 90, small 200, paper 6250)."""

    learning_rate: float | None = field(default=None, metadata=_TRAINED)
    """Learning rate of every method, in place of the scale's (world 5e-4, small 5e-5, paper: Appendix A)."""

    max_length: int | None = None
    """Maximum tokens of a prompt with a response, in place of the scale's (world 256, otherwise 512)."""

    early_stopping: int = field(default=0, metadata=_TRAINED)
    """Stop a run after this many evaluations without improvement; 0 never stops. The paper uses it (Appendix B)."""

    pairs: int | None = field(default=None, metadata=_TRAINED)
    """Maximum training pairs of a set. Default: all."""

    validation_pairs: int | None = field(default=None, metadata={"trains": True, "scales": ("small",)})
    """small: maximum validation pairs of a set. Default: all."""

    test_pairs: int | None = field(default=None, metadata=_SMALL)
    """small: maximum test pairs of a set. Default: all."""

    learning_rates: list[float] = field(default_factory=list, metadata=_STUDY | limits(above=0))
    """study: the learning rates to try for each method."""

    rate_seeds: int = field(default=1, metadata=_STUDY | limits(least=1))
    """study: how many seeds to choose the learning rates with (the first ones); use more if rates are close."""

    rate_sets: list[str] = field(default_factory=list, metadata=_STUDY)
    """study: the sets used to choose the learning rates. Default: all of sets."""

    parts: list[str] = field(default_factory=list, metadata=_STUDY)
    """study: the parts to run, of table2, ood, starts, sft, transfer, heads, mixed, losses, ratios, sizes, noise,
    priors, trl. Default: all, in this order.
    """

    hours: float | None = field(default=None, metadata=_STUDY | limits(above=0))
    """study: time limit; runs that would end later are not started, and the same command continues with them."""

    keep: str | None = field(default=None, metadata=_STUDY)
    """study: a folder, such as one in a repository, for its journal, scores and results. What is recorded there is not
    trained again, on any machine; models are deleted once their scores are recorded.
    """

    recompute: str | None = field(default=None, metadata=_STUDY)
    """study: a folder that --keep wrote, to compute all tables from again; it needs no models and no data."""

    retry: bool = field(default=False, metadata=_STUDY)
    """study: try failed runs again."""

    publish: str | None = field(default=None, metadata=_STUDY)
    """study: a checkout to write the study's page in docs/results, numbers, figures and the README's table to."""

    page: str = field(default=MAIN_PAGE, metadata=_STUDY)
    """study: the page's name: `study`, whose table the README shows, or `study-` and a topic."""

    dry_run: bool = False
    """Show the runs, the equivalent commands and what already exists, and run nothing."""

    def __post_init__(self) -> None:
        check(self)
        if self.name not in EXPERIMENTS:
            known = "; ".join(f"{name} ({each.summary})" for name, each in EXPERIMENTS.items())
            raise ConfigError(f"name: {self.name!r} is not an experiment. There are {known}.")
        if unread := [name for each in fields(self) if (name := self._unread(each))]:
            raise ConfigError(f"{'; '.join(unread)}. Leave it out.")
        self._check_values()
        self._check_together()

    def _unread(self, option: Field[Any]) -> str:
        """Describe why an option that is given has no effect on this experiment at this scale; empty if it has."""
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if getattr(self, option.name) == default:
            return ""
        experiments, scales = (option.metadata.get(name) for name in ("experiments", "scales"))
        if experiments and self.name not in experiments:
            return f"{option.name} has no effect on {self.name}, only on {', '.join(experiments)}"
        if scales and self.scale not in scales:
            return f"{option.name} has no effect at scale {self.scale}, only at {', '.join(scales)}"
        if "trains" in option.metadata and not EXPERIMENTS[self.name].trains:
            return f"{option.name} has no effect on {self.name}, which trains nothing"
        return ""

    def _check_values(self) -> None:
        """Raise if a value is out of the scale's range, unknown, or given twice."""
        self.overrides()
        self._known_parts()
        if not re.fullmatch(rf"{MAIN_PAGE}(-[a-z0-9]+)*", self.page):
            raise ConfigError(f"page: {self.page!r} is neither {MAIN_PAGE} nor {MAIN_PAGE}- and lower-case words.")
        for option in fields(self):
            values = getattr(self, option.name)
            if isinstance(values, list) and len(set(values)) < len(values):
                raise ConfigError(f"{option.name}: {', '.join(map(str, values))} contains a value twice.")

    def _known_parts(self) -> Collection[str]:
        """Return the parts of the study to run, empty for other experiments; raise for an unknown part."""
        if self.name != "study":
            return ()
        from hafrm.paper.plans import PARTS

        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ConfigError(f"parts: {', '.join(unknown)} is none of {', '.join(PARTS)}.")
        return self.parts or PARTS

    def _check_together(self) -> None:
        """Raise for options that don't go together."""
        for name in EXPERIMENTS[self.name].one:
            if len(getattr(self, name)) > 1:
                raise ConfigError(f"{name}: {self.name} uses only one: give a single value.")
        if self.learning_rate is not None and self.learning_rates:
            raise ConfigError("learning_rate has no effect with learning_rates: leave one out.")
        if self.rate_seeds > 1 and len(self.learning_rates) < 2:
            raise ConfigError("rate_seeds needs two learning_rates or more.")
        if self.rate_seeds > max(1, len(self.seeds)):
            raise ConfigError(f"rate_seeds is {self.rate_seeds}, of {len(self.seeds)} seeds.")
        if unknown := [name for name in self.rate_sets if name not in (self.sets or SETS)]:
            raise ConfigError(f"rate_sets: {', '.join(unknown)} is not among the study's sets.")
        if self.rate_sets and len(self.learning_rates) < 2:
            raise ConfigError("rate_sets needs two learning_rates or more.")
        if self.recompute is not None:
            self._require_alone("recompute", {"name", "out", "recompute", "publish", "page"})
        if self.page != MAIN_PAGE and self.publish is None:
            raise ConfigError("page has no effect without publish: give --publish CHECKOUT, or leave it out.")

    def _require_alone(self, option: str, beside: Collection[str]) -> None:
        """Raise if an option is given that has no effect with another."""
        plain = ReproduceConfig(name=self.name)
        for name in (each.name for each in fields(self) if each.name not in beside):
            if getattr(self, name) != getattr(plain, name):
                raise ConfigError(f"{name} has no effect with {option}: leave it out.")

    def overrides(self) -> Overrides:
        """Return the options that override the scale's."""
        return Overrides(**{option.name: getattr(self, option.name) for option in fields(Overrides)})

    def job(self) -> Job:
        """Return the request of these options; raise ConfigError if the scale has no such backbone, set or file."""
        if self.recompute is not None:
            from hafrm.paper.record import recorded_job

            return recorded_job(Path(self.recompute))
        scale = self._scale()
        default = list(scale.backbones) if self.name == "study" else [scale.backbone().name]
        return Job(
            scale=scale,
            backbones=tuple([scale.backbone(name).name for name in self.backbones] or default),
            sets=in_paper_order(self.sets or SETS, sort=self.name != "study"),
            seeds=tuple(self.seeds),
            out=Path(self.out),
            rewardbench=self.rewardbench,
            judge=self.judge,
            trust_remote_code=self.trust_remote_code,
            ppo_steps=self.ppo_steps,
            rates=tuple(self.learning_rates),
            rate_seeds=self.rate_seeds,
            rate_sets=tuple(self.rate_sets),
            keep=None if self.keep is None else Path(self.keep),
            parts=tuple(self._known_parts()),
            hours=self.hours,
            retry=self.retry,
        )

    def _scale(self) -> Scale:
        if self.scale == "small":
            return small_scale(self.overrides(), backbones=self.backbone, data_folder=self.data_folder)
        if self.scale == "world":
            return world_scale(self.overrides())
        return paper_scale(self.overrides(), data_folder=self.data_folder)


@cache
def parser() -> Parser:
    """Build the command's parser."""
    lists = ("seeds", "backbones", "sets", "backbone", "learning_rates", "rate_sets", "parts")
    flags = ("retry", "dry_run", "trust_remote_code")
    made = command_parser(ReproduceConfig, positional="name", lists=lists, flags=flags)
    made.epilog = "names: " + "; ".join(f"{name}: {each.summary}" for name, each in EXPERIMENTS.items())
    return made


def run(args: Namespace) -> None:
    """Run the missing trainings and evaluations, and write the results; or show the plan."""
    config = options_of(ReproduceConfig, parser(), args)
    from hafrm.outputs import require_results
    from hafrm.paper.publishing import require_checkout

    wide = None if sys.stdout.isatty() else 160  # tables of many columns: a file has no width
    shown = Console(highlight=False, soft_wrap=True, width=wide)
    said = Console(stderr=True, highlight=False, soft_wrap=True)
    if config.publish is not None:
        require_checkout(Path(config.publish), config.page)  # fail before hours of training
    job, experiment = config.job(), EXPERIMENTS[config.name]
    plan = experiment.plan(job)
    for model in config.backbone:
        if not Path(model).is_dir():
            said.print(f"{model} is not a folder here, so it is taken for a model of the hub.", markup=False)
    if config.dry_run:
        for line in experiment.describe(job, plan):
            shown.print(line, markup=False)
        return
    folder = job.study if config.name == "study" else job.root / config.name
    written, known = ("results.json", "index.html", "table.md"), ("title", "relations", "notes")
    require_results(folder, config, written, "results.json", known, by="hafrm reproduce")
    if config.recompute is None:
        experiment.execute(job, plan, lambda line: said.print(line, markup=False))
    findings = experiment.find(job)
    if config.name != "study" and (plan.scorings or findings.values):
        from hafrm.paper.measures import write_record

        write_record(job, plan.scorings, findings.values, folder)
    _write(findings, folder, config, shown)


def _write(findings: Findings, folder: Path, config: ReproduceConfig, shown: Console) -> None:
    from hafrm.cli.printing import print_findings, say
    from hafrm.paper.publishing import publish
    from hafrm.report.findings import write_findings

    page = write_findings(findings, folder)
    print_findings(findings, shown)
    say(shown, f"Numbers, table, figures and a page: {page}")
    if config.publish is not None:
        for path in publish(dict(findings.results), Path(config.publish), config.page):
            say(shown, f"published: {path}")
