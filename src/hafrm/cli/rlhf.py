"""`hafrm rlhf`: train a policy against a reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from hafrm import atomic
from hafrm.cli.options import command_parser, options_of
from hafrm.cli.parser import Parser
from hafrm.rlhf.options import RlhfConfig
from hafrm.training.metrics import METRICS_FILE

_FIGURES: Mapping[str, Mapping[str, str]] = {
    "curves.svg": {
        "reward": "reward",
        "gold": "gold reward, only watched",
        "kl": "KL of a response, nats",
        "kl_per_token": "KL of a token, nats",
        "length": "tokens of a response",
        "ended": "share that came to its end",
        "entropy": "entropy of a token, nats",
    },
    "learning.svg": {
        "loss/policy": "policy loss",
        "loss/value": "value loss",
        "clip_fraction": "share of clipped tokens",
        "explained_variance": "explained variance of returns",
        "kl_coefficient": "price of a nat",
    },
}
"""The figures, with the titles of the metrics in metrics.jsonl that they show."""

_SHOWN = {"reward": "reward", "gold": "gold", "kl": "KL", "kl_per_token": "KL/token", "length": "length"}


def parser() -> Parser:
    """Build the command's parser."""
    return command_parser(RlhfConfig, positional="model", lists=("data",))


def run(args: Namespace) -> None:
    """Train, draw the curves, and print where the results are."""
    config = options_of(RlhfConfig, parser(), args, models=("model", "reward", "gold", "reference"), data=("data",))
    from hafrm.rlhf.run import rlhf

    errors = Console(stderr=True)
    with errors.status("preparing") as line:

        def progress(step: int, told: Mapping[str, float]) -> None:
            text = f"step {step}/{config.steps} " + " ".join(
                f"{label} {told[name]:.3g}" for name, label in _SHOWN.items() if name in told
            )
            line.update(text)
            if not errors.is_terminal and (step % 10 == 0 or step == config.steps):
                errors.print(text, highlight=False, soft_wrap=True)

        result = rlhf(
            config,
            progress=progress,
            say=lambda text: errors.print(text, markup=False, highlight=False, soft_wrap=True),
        )
    pictures = " and ".join(write_curves(result.folder))
    Console().print(
        f"The policy after {result.steps} steps is in {result.folder}, its curves in {METRICS_FILE}, {pictures}.",
        highlight=False,
        soft_wrap=True,
    )


def write_curves(folder: Path) -> list[str]:
    """Draw a run's curves into its folder.

    Returns:
        The names of the figures.
    """
    from hafrm.report.charts import standalone
    from hafrm.report.figures import Curve, Panel, curve_panels

    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    for name, titles in _FIGURES.items():
        panels = []
        for key, title in titles.items():
            points = tuple((float(row["step"]), float(row[key])) for row in rows if key in row)
            if points:
                panels.append(Panel(title, (Curve("each step", "haf", points),)))
        atomic.write_text(
            folder / name, standalone(curve_panels("What each step of the policy's training gave", panels))
        )
    return list(_FIGURES)
