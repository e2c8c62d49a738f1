"""`hafrm demo`: end-to-end demo on built-in simulated data, in minutes on a laptop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape

from hafrm.cli.options import options_of, parser_of
from hafrm.data import DataOptions
from hafrm.evaluation.options import EvaluateConfig
from hafrm.models.options import Method
from hafrm.models.runinfo import RunInfo
from hafrm.options import check, option
from hafrm.progress import ProgressLine, time_left
from hafrm.training.config import TrainConfig

_INTRO = (
    "A simulated world of questions, lists, rewritings, refusals and small talk. Annotators prefer answers by hidden "
    "values, with noise. Three reward models start from one small pretrained Llama and see the same pairs of all five "
    "sets: HAF (both losses), the baseline (reward loss alone) and DPO (policy loss alone). The test prompts are new."
)

EVALUATION = "evaluation"
"""The folder of the scores and the page in the demo's folder."""

_PRETRAINING_STEPS = {"base_steps": 240, "instruct_steps": 240}
"""About half as many as for `hafrm reproduce --scale world`, to save time."""

_METHODS: tuple[Method, ...] = ("haf", "baseline", "dpo")
_TEST_PAIRS = 300
"""Test pairs of each set."""

_PRETRAINING_S, _STEP_S, _SCORING_S = 60.0, 0.35, 36.0
"""Seconds on two idle cores: of pretraining, of a training step, and of scoring."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train HAF, the baseline and DPO on built-in simulated data, and compare them."""

    out: str = "demo"
    """The folder for runs, scores and the page."""

    steps: int = option(120, least=1)
    """Training steps of each method, with 16 pairs per step."""

    seed: int = option(0, least=0, below=2**32)
    """Seed of the training runs."""

    def __post_init__(self) -> None:
        check(self)


parser = parser_of(DemoConfig)


def run(args: Namespace) -> None:
    """Run the demo; stages that an interrupted demo has finished are not repeated."""
    config = options_of(DemoConfig, parser(), args)
    console, stages = Console(highlight=False, soft_wrap=True), _stages(config)
    left = sum(stage.seconds for stage in stages)
    console.print(f"About {_minutes(left)} on two idle cores. Stop it whenever you like: the same command resumes.")
    slowdown = 1.0
    for number, stage in enumerate(stages, 1):
        console.print(f"[bold]{number}/{len(stages)} {stage.title}[/bold]")
        start = time.monotonic()
        stage.work()
        took, left = time.monotonic() - start, left - stage.seconds
        if stage.seconds:
            slowdown = took / stage.seconds
        then = f"; about {_minutes(left * slowdown)} left" if left > 0 else ""
        console.print(f"   {took:.0f} s{then}")
    _say_next(console, Path(config.out))


@dataclass(frozen=True)
class _Stage:
    title: str
    work: Callable[[], object]
    seconds: float
    """Expected time on two idle cores; 0 if an earlier demo has completed this stage."""


def _stages(config: DemoConfig) -> list[_Stage]:
    """Return the stages of the demo; raise ConfigError if the folder contains a demo with other options."""
    from hafrm.cli.evaluate import run_evaluation
    from hafrm.paper.world import WORLD_SETS
    from hafrm.paper.world.backbone import BackboneRecipe, backbone_folder, world_backbone
    from hafrm.report.training import train_with_page
    from hafrm.training.manifest import is_finished

    recipe = BackboneRecipe(**_PRETRAINING_STEPS)
    out, backbone = Path(config.out), backbone_folder("instruct", recipe=recipe)
    runs = [_training(config, str(backbone), method, out / method) for method in _METHODS]
    for each in runs:
        _require_same_demo(each)
    sets = [f"world/{name}[:{_TEST_PAIRS}]" for name in WORLD_SETS]
    evaluation = EvaluateConfig(models=[each.out for each in runs], data=sets, out=str(out / EVALUATION))
    title = "Pretraining a small Llama on the world's language, once: later demos reuse it"
    stages = [
        _Stage(
            title,
            partial(_pretrain, partial(world_backbone, "instruct", recipe=recipe)),
            0 if backbone.exists() else _PRETRAINING_S,
        )
    ]
    for each in runs:
        title, seconds = f"Training {each.method} on pairs of all five sets", _STEP_S * config.steps
        finished = is_finished(Path(each.out))
        work: Callable[[], object] = (lambda: None) if finished else partial(train_with_page, each)
        stages.append(_Stage(title, work, 0 if finished else seconds))
    scoring = partial(run_evaluation, evaluation, Console(), _INTRO)
    return [*stages, _Stage("Scoring new prompts of every set", scoring, _SCORING_S)]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(10, round(seconds, -1)):.0f} seconds"


def _pretrain(make: Callable[..., Path]) -> None:
    """Pretrain the world's backbone, if it is not in the cache, with a line of progress."""
    began: dict[str, tuple[float, int]] = {}
    with ProgressLine("drawing the world's text") as line:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            start, first = began.setdefault(stage, (time.monotonic(), step))
            left = time_left(start, step - first, steps - step)
            line.show(f"{stage} model: step {step} of {steps}, loss {loss:.2f}{left}")

        make(progress=progress)


def _require_same_demo(config: TrainConfig) -> None:
    """Raise if a run belongs to a demo with other options, rather than present it."""
    from hafrm.training.manifest import changed_options, read_manifest, refuse_other_options

    manifest = read_manifest(Path(config.out))
    if manifest is not None:
        refuse_other_options(changed_options(manifest, config), Path(config.out))


def _training(config: DemoConfig, backbone: str, method: Method, folder: Path) -> TrainConfig:
    from hafrm.paper.presets import MIXED_PAIRS, WORLD_MAX_LENGTH, world_training
    from hafrm.paper.world import WORLD_SETS

    return TrainConfig(
        model=backbone,
        data=[f"world/{name}[:{MIXED_PAIRS['train']}]" for name in WORLD_SETS],
        eval_data=[f"world/{name}[:{MIXED_PAIRS['validation']}]" for name in WORLD_SETS],
        method=method,
        out=str(folder),
        data_options=DataOptions(max_length=WORLD_MAX_LENGTH),
        training={**world_training(config.steps), "seed": config.seed},
    )


def _say_next(console: Console, out: Path) -> None:
    """Print what to do next, and at the very end the verdict and the page."""
    from hafrm.report.loading import read_evaluation
    from hafrm.report.page import PAGE_FILE
    from hafrm.report.verdict import verdicts

    weight, shown = RunInfo.load(out / "haf").combined_weight, escape(str(out))
    combined = (
        f"HAF's two heads together (log-ratio weight {weight:.2f}, fitted on validation pairs): "
        f"hafrm evaluate {shown}/haf --head combined --data world/helpful --out {shown}/combined\n"
        if weight is not None
        else ""
    )
    console.print(
        f"\nThe models: {shown}/haf, {shown}/baseline, {shown}/dpo. They load in transformers without custom code.\n"
        f"{combined}\n"
        "Your own data: files of JSON lines with prompt, chosen and rejected, whose prompts differ. Then\n"
        "  hafrm data check TRAIN --against VALID TEST\n"
        "  hafrm train --model MODEL --data TRAIN --eval_data VALID --out runs/mine\n"
        "  hafrm evaluate runs/mine --data TEST --out eval/mine\n"
        "  hafrm export runs/mine\n"
    )
    for line in verdicts(read_evaluation(out / EVALUATION)):
        console.print(f"[bold]{escape(line)}[/bold]")
    console.print(
        "This is one seed of one small model: another seed or processor can move each accuracy by a few points.\n"
        f"The page with every pair: {escape(str(out / EVALUATION / PAGE_FILE))}"
    )
