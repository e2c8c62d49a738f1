"""Write the page of a training run, `training.html` in its folder: its curves and signs that it does not learn.

The page is rewritten while the run trains, and reloads itself; it needs no server, so it also works on a shared disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from rich.console import Console

from hafrm import atomic
from hafrm.models.runinfo import read_manifest
from hafrm.report.cards import Card, run_facts, train_command
from hafrm.report.charts import Point
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.html import asset, render
from hafrm.report.wording import count, moment, percent
from hafrm.training.doctor import FIRST_LOOK, examine
from hafrm.training.metrics import METRICS_FILE, read_metrics
from hafrm.training.owned import PAGE_FILE

if TYPE_CHECKING:
    from hafrm.training.config import TrainConfig
    from hafrm.training.run import TrainResult

_RELOAD_S = 10
_MOST_POINTS = 30
"""Points of a curve; each is the mean of equally many lines of metrics."""

_Lines = tuple[tuple[str, str, str], ...]
"""Curves: the metric, its name in the legend, and its style."""

_LOSSES: _Lines = (
    ("loss", "total", "zero"),
    ("loss/reward", "reward", "haf"),
    ("loss/policy", "policy", "dpo"),
    ("eval_loss", "validation", "baseline dash1"),
)


def _by_head(metric: str) -> _Lines:
    """Return the curves of a metric that both heads have."""
    return (
        (f"rewards/{metric}", "training", "haf"),
        (f"policy/{metric}", "of the policy", "dpo"),
        (f"eval_rewards/{metric}", "validation", "baseline dash1"),
    )


_PANELS: tuple[tuple[str, float, _Lines], ...] = (
    ("Loss", 1, _LOSSES),
    ("Accuracy, %", 100, _by_head("accuracies")),
    ("Reward margin", 1, _by_head("margins")),
    ("Rewards", 1, (("rewards/chosen", "chosen", "haf"), ("rewards/rejected", "rejected", "baseline dash1"))),
    ("Gradient norm, before clipping", 1, (("grad_norm", "", "haf"),)),
    ("Learning rate", 1, (("learning_rate", "", "haf"),)),
    ("Tokens per second", 1, (("tokens_per_second", "", "haf"),)),
)
"""Titles, what the values are multiplied by, and the curves."""


def train_with_page(config: TrainConfig, **options: Any) -> TrainResult:
    """Train, with a page in the run's folder; see `hafrm.training.run.train` for the options and errors."""
    from accelerate import PartialState

    from hafrm.training.callbacks import LivePage
    from hafrm.training.run import train

    say = partial(Console(stderr=True).print, highlight=False, markup=False, soft_wrap=True)
    page = LivePage(lambda steps: write_training_page(Path(config.out), steps=steps), say)
    try:
        result = train(config, **options | {"callbacks": [*options.get("callbacks", ()), page]})
    except BaseException:
        if page.began:
            page.update()
        raise
    if PartialState().is_main_process:
        page.update()
    return result


def write_training_page(folder: Path, *, steps: int | None = None) -> Path:
    """Write the page of a run.

    Args:
        steps: How many steps the run will take, if it is training now: then the page reloads itself.

    Returns:
        The page's path.

    Raises:
        ModelError: the folder has no metrics or no manifest of a training run.
    """
    watch = examine(folder, ended=steps is None)
    manifest, rows = read_manifest(folder), list(read_metrics(folder / METRICS_FILE))
    name = "/".join(folder.absolute().parts[-2:])
    now = datetime.now(UTC)
    html = render(
        "training.html.j2",
        script=asset("training.js") if steps else None,
        title=f"Training of {name}",
        when=f"hafrm {version('hafrm')} training, started {moment(datetime.fromisoformat(manifest['started']))}",
        status=_status(manifest, rows, steps),
        written=now.isoformat(timespec="seconds"),
        written_words=f"{moment(now)}",
        reload=_RELOAD_S if steps else 0,
        figures=_figures(rows),
        latest=_latest(rows),
        found=list(watch.found.values()),
        seen=count(watch.pairs, "pair"),
        needed=0 if watch.pairs >= FIRST_LOOK else FIRST_LOOK,
        card=Card(name, str(folder), (("method", manifest["config"]["method"]), *run_facts(manifest))),
        base=manifest["config"]["model"],
        command=train_command(manifest),
        each=_chunk(sum("loss" in row for row in rows)),
    )
    atomic.write_text(folder / PAGE_FILE, html)
    return folder / PAGE_FILE


def _status(manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], steps: int | None) -> str:
    step = rows[-1]["step"] if rows else 0
    if manifest["status"] == "finished":
        return f"Finished after {manifest.get('steps', step):,} steps."
    if steps is None:
        return f"Stopped at step {step:,}. The same command resumes the run from its last checkpoint."
    return f"Running: step {step:,} of {steps:,}."


def _latest(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the figures at the top: the last points of the most telling curves."""
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        ("training accuracy, %", "rewards/accuracies", percent),
        ("validation accuracy, %", "eval_rewards/accuracies", percent),
        ("training loss", "loss", "{:.3f}".format),
        ("pairs per second", "pairs_per_second", "{:,.1f}".format),
    ]
    points = ((what, _points(rows, name), worded) for what, name, worded in shown)
    return [(what, worded(found[-1][1])) for what, found, worded in points if found]


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    figures = []
    for title, factor, lines in _PANELS:
        found = [(label, kind, _points(rows, name, factor)) for name, label, kind in lines]
        if title == "Loss" and not (found[1][2] and found[2][2]):
            found = [found[0], found[3]]  # a single loss equals the total
        curves = tuple(Curve(label, kind, tuple(points)) for label, kind, points in found if points)
        if curves:
            figures.append(curve_panels(title, [Panel(title, curves)]))
    return figures


def _points(rows: Sequence[Mapping[str, Any]], name: str, factor: float = 1) -> list[Point]:
    """Return a metric over the steps, as means of consecutive lines."""
    known = [(row["step"], factor * row[name]) for row in rows if row.get(name) is not None]
    chunks = [known[start : start + _chunk(len(known))] for start in range(0, len(known), _chunk(len(known)))]
    return [(float(np.mean([x for x, _ in each])), float(np.mean([y for _, y in each]))) for each in chunks]


def _chunk(lines: int) -> int:
    """Return how many lines of metrics make a point."""
    return max(1, -(-lines // _MOST_POINTS))
