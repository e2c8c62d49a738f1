"""`hafrm rlhf`: train a policy against a reward model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from jsonargparse import Namespace

from hafrm import atomic
from hafrm.cli.options import options_of, parser_of
from hafrm.progress import ProgressLine, time_left
from hafrm.rlhf.options import RlhfConfig
from hafrm.training.metrics import METRICS_FILE, read_metrics

_FIGURES: Mapping[str, Mapping[str, str]] = {
    "curves.svg": {
        "reward": "reward",
        "gold": "gold reward, not trained on",
        "kl": "KL per response, nats",
        "kl_per_token": "KL per token, nats",
        "length": "tokens per response",
        "ended": "share of finished responses",
        "entropy": "entropy per token, nats",
    },
    "learning.svg": {
        "loss/policy": "policy loss",
        "loss/value": "value loss",
        "clip_fraction": "share of clipped tokens",
        "explained_variance": "explained variance of returns",
        "kl_coefficient": "KL coefficient",
    },
}
"""The figures, with the titles of the metrics in metrics.jsonl that they show."""

_SHOWN = {"reward": "reward", "gold": "gold", "kl": "KL", "kl_per_token": "KL/token", "length": "length"}


parser = parser_of(RlhfConfig, positional="model", lists=("data",))


def run(args: Namespace) -> None:
    """Train, draw the curves, and print where the results are."""
    config = options_of(RlhfConfig, parser(), args, models=("model", "reward", "gold", "reference"), data=("data",))
    from hafrm.rlhf.run import rlhf

    began, first = time.monotonic(), 0
    with ProgressLine("preparing") as line:

        def progress(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal began, first
            if not first:  # loading and a resumed run's earlier steps are not part of the speed
                began, first = time.monotonic(), step
            shown = " ".join(f"{label} {metrics[name]:.3g}" for name, label in _SHOWN.items() if name in metrics)
            left = time_left(began, step - first, config.steps - step)
            tell = line.say if step == config.steps else line.show
            tell(f"step {step}/{config.steps} {shown}{left}")

        result = rlhf(config, progress=progress, say=line.say)
    pictures = " and ".join(write_curves(result.folder))
    done = f"The policy after {result.steps} steps is in {result.folder}"
    print(f"{done}, its curves in {METRICS_FILE}, {pictures}.")  # noqa: T201


def write_curves(folder: Path) -> list[str]:
    """Draw a run's curves into its folder, and return the names of the figures."""
    from hafrm.report.charts import standalone
    from hafrm.report.figures import Curve, Panel, curve_panels

    rows = list(read_metrics(folder / METRICS_FILE))
    for name, titles in _FIGURES.items():
        panels = []
        for key, title in titles.items():
            points = tuple((float(row["step"]), float(row[key])) for row in rows if key in row)
            if points:
                panels.append(Panel(title, (Curve("each step", "haf", points),)))
        atomic.write_text(
            folder / name, standalone(curve_panels("Metrics of the policy at each training step", panels))
        )
    return list(_FIGURES)
