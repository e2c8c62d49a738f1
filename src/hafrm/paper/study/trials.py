"""The study's trials: each is a training run and the scorings that need it.

A part of the study compares rows (methods, losses, ratios, heads, shares of the data) over columns (training or test
sets). `cells` defines which trial produces which cell, for both plan and results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hafrm.evaluation.run import EvaluateConfig
from hafrm.models.runinfo import Head
from hafrm.paper.figure6 import RATIOS, ratio_run
from hafrm.paper.plans import ALL_METHODS, Job
from hafrm.paper.runs import Run
from hafrm.paper.scales import Scale
from hafrm.paper.study.options import PARTS, PartName
from hafrm.paper.table3 import others_of

SHARES = (16, 8, 4, 2, 1)
"""Points of the data-size curve: train on 1/share of the pairs."""

_POLICY_LOSSES = ("ipo", "simpo", "sft")
_PRIORS = ("probit", "cauchy", "hinge")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """One run's scores on one test set."""

    run: Run
    tested_on: str
    """Paper name of the test set."""
    head: Head | None = None
    """Head to score with; None: the one trained to score."""

    def folder(self, scale: Scale, out: Path) -> Path:
        """Return the folder of the scores. It mirrors the run's folder, so that each rate has its own."""
        run = self.run.folder(scale, out).relative_to(out / scale.name / "runs")
        head = "" if self.head is None else f"-{self.head}"
        return out / scale.name / "study" / "scores" / run / f"{self.tested_on}{head}"

    def config(self, scale: Scale, out: Path) -> EvaluateConfig:
        """Return the evaluation's options."""
        return EvaluateConfig(
            models=[str(self.run.folder(scale, out))],
            data=[scale.sets[self.tested_on].test],
            out=str(self.folder(scale, out)),
            head=self.head,
            token_log_ratios=0,  # not used in the study
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a part: a scoring with its row and column."""

    row: str
    column: str
    scoring: Scoring


def stage_order(job: Job) -> Iterator[tuple[PartName, str]]:
    """Yield parts and backbones in the order in which they run, breadth first.

    The first backbone's single sets come first, then parts that need few more runs, then other backbones' single sets.
    """
    first, *others = job.backbones
    early = [part for part in ("table2", "ood", "heads", "mixed") if part in job.study.parts]
    late = [part for part in PARTS if part in job.study.parts and part not in early]
    yield from ((part, first) for part in early)
    yield from (("table2", backbone) for backbone in others if "table2" in early)
    yield from ((part, first) for part in late)
    yield from ((part, backbone) for backbone in others for part in (*early, *late) if part != "table2")


def choosing_job(job: Job) -> Job:
    """Return the job with only the seeds that choose learning rates."""
    return replace(job, seeds=job.seeds[: job.study.rate_seeds])


def cells(job: Job, part: PartName, backbone: str) -> Iterator[Cell]:
    """Yield the cells of a part on one backbone; all sets of a seed precede the next seed."""
    for seed in job.seeds:
        yield from _OF_PART[part](job, backbone, seed)


def trials(job: Job, part: PartName, backbone: str) -> dict[Run, tuple[Scoring, ...]]:
    """Return the runs of a part, each with its scorings."""
    found: dict[Run, dict[Scoring, None]] = {}
    for cell in cells(job, part, backbone):
        found.setdefault(cell.scoring.run, {})[cell.scoring] = None
    return {run: tuple(scorings) for run, scorings in found.items()}


def _single_sets(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    for name in job.sets:
        for method in ALL_METHODS:
            run = Run(backbone=backbone, sets=(name,), method=method, seed=seed)
            yield Cell(row=method, column=name, scoring=Scoring(run=run, tested_on=name))


def _out_of_domain(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    for cell in _single_sets(job, backbone, seed):
        for other in others_of(cell.column):
            if other in job.sets:
                yield replace(cell, column=f"{cell.column}→{other}", scoring=replace(cell.scoring, tested_on=other))


def _heads(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    for name in job.sets:
        run = Run(backbone=backbone, sets=(name,), method="haf", seed=seed)
        heads: tuple[tuple[str, Head | None], ...] = (
            ("reward head", None),
            ("policy head", "policy"),
            ("both heads", "combined"),
        )
        for row, head in heads:
            yield Cell(row=row, column=name, scoring=Scoring(run=run, tested_on=name, head=head))


def _mixed(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    if len(job.sets) < 2:
        return
    for method in ALL_METHODS:
        run = Run(backbone=backbone, sets=job.sets, method=method, seed=seed)
        for name in job.sets:
            yield Cell(row=method, column=name, scoring=Scoring(run=run, tested_on=name))


def _with_losses(job: Job, backbone: str, seed: int, losses: tuple[str, ...], plain: str) -> Iterator[Cell]:
    """Yield cells for the baseline, HAF with its usual losses, and HAF with each alternative loss."""
    for name in job.sets:
        common = {"backbone": backbone, "sets": (name,), "seed": seed}
        runs = {
            "none": Run(method="baseline", **common),  # type: ignore[arg-type]
            plain: Run(method="haf", **common),  # type: ignore[arg-type]
            **{loss: Run(method="haf", loss=loss, **common) for loss in losses},  # type: ignore[arg-type]
        }
        for row, run in runs.items():
            yield Cell(row=row, column=name, scoring=Scoring(run=run, tested_on=name))


def _losses(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    yield from _with_losses(job, backbone, seed, _POLICY_LOSSES, "dpo")


def _priors(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    yield from (cell for cell in _with_losses(job, backbone, seed, _PRIORS, "bradley_terry") if cell.row != "none")


def _ratios(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    for name in job.sets:
        for ratio in RATIOS:
            run = ratio_run(ratio, (name,), seed, backbone=backbone)
            yield Cell(row=f"{ratio:g}", column=name, scoring=Scoring(run=run, tested_on=name))


def _sizes(job: Job, backbone: str, seed: int) -> Iterator[Cell]:
    for name in job.sets:
        for share in SHARES:
            for method in ALL_METHODS:
                run = Run(backbone=backbone, sets=(name,), method=method, seed=seed, share=share)
                yield Cell(row=f"{method} 1/{share}", column=name, scoring=Scoring(run=run, tested_on=name))


_OF_PART = {
    "table2": _single_sets,
    "ood": _out_of_domain,
    "heads": _heads,
    "mixed": _mixed,
    "losses": _losses,
    "ratios": _ratios,
    "sizes": _sizes,
    "priors": _priors,
}
