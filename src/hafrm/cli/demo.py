"""`hafrm demo`: end-to-end demo on built-in simulated data, in minutes on a laptop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.cli.parser import Parser
from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.evaluation.options import EvaluateConfig
from hafrm.models.runinfo import RunInfo
from hafrm.training.config import Method, TrainConfig

_INTRO = (
    "A simulated world of questions, lists, rewritings, refusals and small talk. Annotators prefer answers by hidden "
    "values, with noise. Three reward models start from one small pretrained Llama and see the same pairs of all five "
    "sets: HAF (both losses), the baseline (reward loss alone) and DPO (policy loss alone). The test prompts are new."
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train HAF, the baseline and DPO on built-in simulated data, and compare them."""

    out: str = "demo"
    """The folder for runs, scores and the page."""

    steps: int = 240
    """Training steps of each method, with 16 pairs per step."""

    seed: int = 0
    """Seed of the training runs."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2^32 - 1, as numpy's seeds are, got {self.seed}")


def parser() -> Parser:
    """Build the command's parser."""
    return command_parser(DemoConfig)


def run(args: Namespace) -> None:
    """Run the demo; stages that an interrupted demo has finished are not repeated."""
    config = options_of(DemoConfig, parser(), args)
    from hafrm.cli.evaluate import run_evaluation
    from hafrm.paper.world import WORLD_SETS
    from hafrm.report.training import train_with_page
    from hafrm.training.manifest import is_finished

    console = Console()
    out = Path(config.out)
    with _timed(console, "1/3 A small Llama learns the world's language (once; then it is cached)"):
        backbone = _backbone()
    sets = [f"world/{name}" for name in WORLD_SETS]
    runs = [_training(config, str(backbone), method, out / method) for method in get_args(Method)]
    for each in runs:
        _require_same_demo(each)
    for each in runs:
        with _timed(console, f"2/3 Training {each.method} on pairs of all five sets"):
            if not is_finished(Path(each.out)):
                train_with_page(each)
    models = [each.out for each in runs]
    with _timed(console, "3/3 Scoring new prompts of every set"):
        page = run_evaluation(EvaluateConfig(models=models, data=sets, out=str(out / "evaluation")), console, _INTRO)
    _say_next(console, out, page)


def _backbone() -> Path:
    """Return the world's instruct backbone; pretrain it, with a line of progress, if it is not in the cache."""
    from hafrm.paper.world.backbone import world_backbone

    with Console(stderr=True).status("reading the world's text") as line:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            line.update(f"{stage}: step {step} of {steps}, loss {loss:.2f}")

        return world_backbone("instruct", progress=progress)


def _require_same_demo(config: TrainConfig) -> None:
    """Raise rather than present the run of a demo with other options."""
    from hafrm.training.manifest import changed_options, read_manifest, refuse_other_options

    manifest = read_manifest(Path(config.out))
    if manifest is not None:
        refuse_other_options(changed_options(manifest, config), Path(config.out))


def _training(config: DemoConfig, backbone: str, method: Method, folder: Path) -> TrainConfig:
    from hafrm.paper.scales import MIXED_PAIRS, WORLD_MAX_LENGTH, world_training
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


@contextmanager
def _timed(console: Console, what: str) -> Iterator[None]:
    console.print(f"[bold]{what}[/bold]", highlight=False)
    start = time.monotonic()
    yield
    console.print(f"   {time.monotonic() - start:.0f} s", highlight=False)


def _say_next(console: Console, out: Path, page: Path) -> None:
    weight = RunInfo.load(out / "haf").combined_weight
    combined = (
        f"HAF's two heads together (log-ratio weight {weight:.2f}, fitted on validation pairs): "
        f"hafrm evaluate {out}/haf --head combined --data world/helpful --out {out}/combined\n"
        if weight is not None
        else ""
    )
    console.print(
        f"\nThe page with every pair: {page}\n"
        f"The models: {out}/haf, {out}/baseline, {out}/dpo. They load in transformers with no custom code.\n"
        f"{combined}\n"
        "Your own data: files of JSON lines with prompt, chosen and rejected, whose prompts differ. Then\n"
        "  hafrm data check TRAIN --against VALID TEST\n"
        "  hafrm train --model MODEL --data TRAIN --eval_data VALID --out runs/mine\n"
        "  hafrm evaluate runs/mine --data TEST --out eval/mine\n"
        "  hafrm export runs/mine",
        highlight=False,
        soft_wrap=True,
    )
