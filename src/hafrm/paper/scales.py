"""What experiments run on: a job, and the scale with the backbones, pairs and training options that it uses.

`presets` has the three scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeOptions
from hafrm.models.options import LoraOptions, Method
from hafrm.options import check, option
from hafrm.paper.numbers import SETS

ScaleName = Literal["world", "small", "paper"]
Split = Literal["train", "validation", "test"]

MAIN_PAGE = "study"
"""Page of the study shown in the README."""

METHODS: tuple[Method, ...] = ("haf", "baseline", "dpo")
"""The methods in the order in which they are trained and compared."""


@dataclass(frozen=True, kw_only=True)
class SetFiles:
    """Data names of one set's three splits."""

    train: str
    validation: str
    test: str

    @classmethod
    def named(cls, name: str) -> SetFiles:
        """Return the splits of a data name that has all three."""
        return cls(train=name, validation=name, test=name)


@dataclass(frozen=True)
class Backbone:
    """A model to start from, and how to train it."""

    name: str
    """Name on the command line."""
    paper_name: str | None
    """Name of the paper's backbone whose numbers are shown for comparison; None if there is none."""
    model: Callable[[], str]
    """Return the folder or hub id; may train a small model first."""
    shown: str
    """Display name in plans, available without making the model."""
    lora: LoraOptions
    learning_rates: Mapping[str, float]
    """Rates by method, and by recipe (`Run.recipe`) if a study chooses a separate rate for it."""
    chat_template: str | None = None
    """Template file that replaces the model's own or a missing one."""
    dtype: Literal["auto", "float16", "bfloat16"] = "auto"
    """Dtype of the weights while training."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """User settings that override a scale's."""

    steps: int | None = option(None, least=1)
    learning_rate: float | None = option(None, above=0)
    max_length: int | None = option(None, least=1)
    early_stopping: int = option(0, least=0)
    pairs: int | None = option(None, least=1)
    validation_pairs: int | None = option(None, least=1)
    test_pairs: int | None = option(None, least=1)
    precision: Literal["fp16", "bf16"] = "fp16"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything about an experiment except its design: backbones, data and training options."""

    name: ScaleName
    backbones: Mapping[str, Backbone]
    sets: Mapping[str, SetFiles]
    """Files by the paper's set names."""
    training: Mapping[str, Any]
    """TrainingArguments fields shared by all runs, without learning rate and seed."""
    max_length: int
    early_stopping: int = 0
    mixed: Mapping[str, int] | None = None
    """Pairs per set in a mixture, by split, if data names can be sliced; None: an even sample is written to files."""
    cap: int | None = None
    """Maximum number of training pairs per set; None uses all."""
    tuned: bool = False
    """Whether learning rates are chosen among several, so that a run's folder includes its rate."""

    @property
    def cap_suffix(self) -> str:
        """Suffix that the cap adds to the names of files with pairs and of files derived from them."""
        return "" if self.cap is None else f"-of{self.cap}"

    def every(self, *, kept: bool = False) -> int:
        """Return the steps between evaluations; a run that keeps its checkpoints has at least four."""
        steps: int = self.training["max_steps"]
        every: int = self.training.get("eval_steps", max(20, math.ceil(steps / 40)))
        return min(every, math.ceil(steps / 4)) if kept else every

    def evaluations(self, *, kept: bool = False) -> int:
        """Return the number of evaluations of a run, the last at its end."""
        steps: int = self.training["max_steps"]
        return math.ceil(steps / self.every(kept=kept))

    def at_rates(self, backbone: str, rates: Mapping[str, float]) -> Scale:
        """Return this scale with the given learning rates for a backbone."""
        chosen = replace(self.backbone(backbone), learning_rates={**self.backbone(backbone).learning_rates, **rates})
        return replace(self, backbones={**self.backbones, backbone: chosen}, tuned=True)

    def backbone(self, name: str | None = None) -> Backbone:
        """Return a backbone by name; by default the first.

        Raises:
            ConfigError: the scale has no backbone of that name.
        """
        name = name or next(iter(self.backbones))
        if name not in self.backbones:
            known = ", ".join(self.backbones)
            raise ConfigError(f"backbones: the scale {self.name} has no {name}, only {known}.")
        return self.backbones[name]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request to reproduce something: the scale, which parts of it to run, and where."""

    scale: Scale
    backbones: tuple[str, ...]
    sets: tuple[str, ...]
    """Paper names of the sets to use."""
    seeds: tuple[int, ...]
    out: Path
    """Output root shared by experiments."""
    rewardbench: str | None = None
    """RewardBench's pairs, for the external half of Table 3."""
    judge: JudgeOptions | None = None
    """Judge of best-of-N and of policies at scales other than `world`."""
    trust_remote_code: bool = False
    """Whether to run code that comes with the judge."""
    ppo_steps: int | None = None
    """Steps of PPO, in place of the scale's."""
    rates: tuple[float, ...] = ()
    """Study: learning rates that each method tries; with fewer than two there is no choice."""
    rate_seeds: int = 1
    """Study: number of seeds, counted from the first, used to choose the learning rates."""
    rate_sets: tuple[str, ...] = ()
    """Study: sets used to choose the learning rates; by default all."""
    keep: Path | None = None
    """Study: its folder if it is not in `root`; then runs are deleted once their results are recorded there."""
    parts: tuple[str, ...] = ()
    """Study: names of the parts to run."""
    hours: float | None = None
    """Study: time limit; no run starts that would end later. None: no limit."""
    retry: bool = False
    """Study: whether to try failed runs again."""

    @property
    def root(self) -> Path:
        """Output folder of this scale."""
        return self.out / self.scale.name

    @property
    def study(self) -> Path:
        """Folder of the study's journal, record and results."""
        return self.keep or self.root / "study"

    @property
    def in_world(self) -> bool:
        """Whether the job runs in the simulated world, where the true reward is known."""
        return self.scale.name == "world"

    def model(self, backbone: str) -> str:
        """Return a backbone's folder or hub id; may train a small model first."""
        return self.scale.backbone(backbone).model()


def in_paper_order(names: Sequence[str], *, sort: bool = True) -> tuple[str, ...]:
    """Return the paper's data sets among `names`, in Table 2's order unless `sort` is false.

    Raises:
        ConfigError: a name is not one of the five, or `names` is empty.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        raise ConfigError(f"sets: {', '.join(unknown) or 'none'} is none of {', '.join(SETS)}.")
    return tuple(name for name in SETS if name in names) if sort else tuple(names)
