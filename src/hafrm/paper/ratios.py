"""Figure 6: validation accuracy, margin and loss over training steps for several weights of the policy loss.

The paper names neither set nor backbone nor loss. We use the job's first set (by default Helpful) and the reward
loss, the only loss that is comparable across ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hafrm.errors import DataError
from hafrm.paper.plans import RATIOS, Plan, ratio_options
from hafrm.paper.runs import Run, seed_runs
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings, Table, ranked
from hafrm.training.metrics import METRICS_FILE, read_metrics

_METRICS = {
    "accuracy": "eval_rewards/accuracies",
    "margin": "eval_rewards/margins",
    "reward loss": "eval_loss/reward",
}
"""Panels and their fields in metrics.jsonl."""

_KINDS = dict(
    zip(
        RATIOS,
        ("negative", "zero", "positive dash3", "positive", "positive dash1", "positive dash2", "positive dash4"),
        strict=True,
    )
)

_Curves = Mapping[float, Mapping[str, Sequence[tuple[float, float]]]]
"""By ratio and metric: (step, value), averaged over seeds."""


def plan(job: Job) -> Plan:
    """Plan one run per ratio, backbone and seed."""
    runs = (_runs(job, backbone, ratio) for backbone in job.backbones for ratio in RATIOS)
    return Plan(tuple(run for each in runs for run in each))


def _runs(job: Job, backbone: str, ratio: float) -> list[Run]:
    return seed_runs(job, backbone, job.sets[:1], **ratio_options(ratio))


def find(job: Job) -> Findings:
    """Draw three panels per backbone, tabulate best and last values, and check the paper's statements."""
    curves: dict[str, _Curves] = {
        backbone: {ratio: _mean_curves([_read(r.folder(job)) for r in _runs(job, backbone, ratio)]) for ratio in RATIOS}
        for backbone in job.backbones
    }
    claims = {backbone: _claims(each) for backbone, each in curves.items()}
    shown = {backbone: {f"{ratio:g}": table for ratio, table in each.items()} for backbone, each in curves.items()}
    return build_findings(
        job,
        "figure6",
        results={"seeds": list(job.seeds), "set": job.sets[0], "curves": shown, "claims": claims},
        tables=[
            table
            for backbone, each in curves.items()
            for table in (_summary(backbone, each), _claims_table(backbone, claims[backbone]))
        ],
        figures={f"figure6-{backbone}": _figure(backbone, each) for backbone, each in curves.items()},
    )


def _read(folder: Path) -> dict[str, dict[float, float]]:
    """Return a run's validation metrics by step.

    Raises:
        DataError: the run logged no evaluations.
    """
    rows = [row for row in read_metrics(folder / METRICS_FILE) if _METRICS["accuracy"] in row]
    if not rows:
        raise DataError(f"{folder / METRICS_FILE} contains no evaluation. Train the run again with validation pairs.")
    return {name: {float(row["step"]): float(row[key]) for row in rows} for name, key in _METRICS.items()}


def _mean_curves(seeds: Sequence[Mapping[str, Mapping[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """Average over seeds at the steps that all seeds evaluated; early stopping may end some before others."""
    return {
        name: [
            (step, statistics.fmean(each[name][step] for each in seeds))
            for step in sorted(set.intersection(*(set(each[name]) for each in seeds)))
        ]
        for name in _METRICS
    }


def _summary(backbone: str, curves: _Curves) -> Table:
    best = {ratio: max(table["accuracy"], key=lambda point: point[1]) for ratio, table in curves.items()}
    marked = ranked([value for _, value in best.values()], [f"{100 * value:.1f}" for _, value in best.values()])
    rows = tuple(
        (
            f"{ratio:g}",
            cell,
            f"{best[ratio][0]:.0f}",
            f"{100 * table['accuracy'][-1][1]:.1f}",
            f"{table['margin'][-1][1]:.3f}",
            f"{table['reward loss'][-1][1]:.3f}",
            f"{min(value for _, value in table['reward loss']):.3f}",
        )
        for (ratio, table), cell in zip(curves.items(), marked, strict=True)
    )
    columns = ("policy ratio", "best accuracy, %", "at step", "last accuracy, %", "last margin", "last reward loss")
    return Table(f"Validation pairs, {backbone}", (*columns, "lowest reward loss"), rows)


def _claims(curves: _Curves) -> list[dict[str, Any]]:
    """Check each statement of Appendix B about the figure."""
    best = {ratio: max(value for _, value in table["accuracy"]) for ratio, table in curves.items()}
    losses = {ratio: table["reward loss"] for ratio, table in curves.items()}
    lowest = min(value for _, value in losses[0.0])
    reached = {ratio: _first_at(points, lowest) for ratio, points in losses.items()}
    sooner = reached[0.2] is not None and reached[0.2] < (reached[0.0] or 0)
    rises = {ratio: points[-1][1] - min(value for _, value in points) for ratio, points in losses.items()}
    checks = (
        (
            "0.1 of the policy loss raises the best accuracy of reward loss alone",
            best[0.1] > best[0.0],
            f"{100 * best[0.1]:.1f} against {100 * best[0.0]:.1f}",
        ),
        (
            "with policy loss (0.2) the lowest reward loss of reward loss alone is reached in fewer steps",
            sooner,
            f"step {_step(reached[0.2])} against {_step(reached[0.0])}",
        ),
        (
            "policy loss (0.2) overfits sooner: its reward loss rises more from its lowest point",
            rises[0.2] > rises[0.0],
            f"{rises[0.2]:.3f} against {rises[0.0]:.3f}",
        ),
        (
            "a negative ratio is worse than reward loss alone",
            best[-0.2] < best[0.0],
            f"{100 * best[-0.2]:.1f} against {100 * best[0.0]:.1f}",
        ),
    )
    return [{"claim": claim, "holds": holds, "numbers": shown} for claim, holds, shown in checks]


def _first_at(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return the first evaluated step at which a curve is at or below a level."""
    return next((step for step, value in points if value <= level), None)


def _step(step: float | None) -> str:
    return "none" if step is None else f"{step:.0f}"


def _claims_table(backbone: str, claims: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple((each["claim"], "yes" if each["holds"] else "no", each["numbers"]) for each in claims)
    return Table(f"What Appendix B says, {backbone}", ("claim", "so here", "numbers"), rows)


def _figure(backbone: str, curves: _Curves) -> Any:
    panels = [
        Panel(name, tuple(Curve(f"{ratio:g}", _KINDS[ratio], tuple(table[name])) for ratio, table in curves.items()))
        for name in _METRICS
    ]
    return curve_panels(f"Validation accuracy, margin and reward loss by policy ratio, {backbone}", panels)
