"""Compute an experiment's accuracies and paired differences from the raw scores of its evaluations.

A pair's hit is 1 if the better response has the higher reward, one half for a tie, otherwise 0. With several seeds, a
pair's hit is the mean over seeds, so that intervals over pairs are for the seeds' mean. The spread over seeds is
reported separately, because an interval over the pairs of one run does not cover other seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hafrm.errors import DataError
from hafrm.evaluation.scoring import SCORES_FILE, PairScore, read_scores
from hafrm.paper.overlap import unseen
from hafrm.paper.plans import ALL_METHODS, Evaluation, Job
from hafrm.report.findings import Relation, Rival
from hafrm.stats import Interval, accuracy, bootstrap_interval, hits, paired_bootstrap
from hafrm.training.config import Method

__all__ = [
    "AVERAGE",
    "RIVALS",
    "Measured",
    "Relation",
    "SetTable",
    "as_json",
    "average_of",
    "average_relation",
    "measure",
    "measured",
    "relation",
    "require_same_prompts",
]

AVERAGE = "Avg"
"""Column name of the mean over data sets, as in the paper's tables."""

RIVALS: tuple[Rival, ...] = ("baseline", "dpo")
"""Methods that HAF is compared with."""


@dataclass(frozen=True)
class Measured:
    """Accuracy of one method on one test set, or its mean over several sets."""

    accuracies: tuple[float, ...]
    """Share of correct pairs, per seed."""
    pair_hits: Mapping[str, float]
    """Hit by pair, averaged over seeds, for pairs that every seed scored. Empty for a mean over sets."""
    groups: Mapping[str, str]
    """Prompt group of each pair."""
    length_accuracy: float
    """Accuracy of picking the longer response."""

    @property
    def accuracy(self) -> float:
        """Mean accuracy over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @cached_property
    def ci95(self) -> Interval | None:
        """Interval over prompts of the seeds' mean; None for a mean over sets or too few prompts."""
        if not self.pair_hits:
            return None
        return bootstrap_interval(list(self.pair_hits.values()), [self.groups[each] for each in self.pair_hits])

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict; accuracies are shares, not percent."""
        return {
            "accuracy": self.accuracy,
            "by_seed": list(self.accuracies),
            "spread": self.spread,
            "ci95": self.ci95,
            "n": len(self.pair_hits),
            "prompts": len(set(self.groups.values())),
            "length_accuracy": self.length_accuracy,
        }


SetTable = dict[str, dict[Method, Measured]]
"""Measurements by test set, then by method."""


def measure(job: Job, trained_on: tuple[str, ...], tested_on: tuple[str, ...], *, backbone: str) -> SetTable:
    """Measure each method on each test set, from the evaluations of all seeds.

    Args:
        job: The reproduction job.
        trained_on: Sets that the runs were trained on.
        tested_on: Sets of the evaluation, as named in its plan.
        backbone: Backbone of the runs.

    Raises:
        DataError: an evaluation is missing, or no pair was scored by all seeds.
    """
    tables: list[dict[tuple[str, str], list[PairScore]]] = []
    for seed in job.seeds:
        evaluation = Evaluation(backbone=backbone, trained_on=trained_on, tested_on=tested_on, seed=seed)
        tables.append(_cells(evaluation, job))
    return {
        name: {
            method: measured([table[method, name] for table in tables], f"{name} by {method}") for method in ALL_METHODS
        }
        for name in tested_on
    }


def as_json(table: SetTable) -> dict[str, dict[Method, dict[str, Any]]]:
    """Return measurements in the format of `results.json`."""
    return {name: {method: cell.as_dict() for method, cell in row.items()} for name, row in table.items()}


def _cells(evaluation: Evaluation, job: Job) -> dict[tuple[str, str], list[PairScore]]:
    """Read an evaluation's scores by method and paper set name, without prompts seen in training."""
    config = evaluation.config(job)
    methods = dict(zip(config.models, evaluation.runs(), strict=True))
    sets = dict(zip(config.data, evaluation.tested_on, strict=True))
    cells: dict[tuple[str, str], list[PairScore]] = {(m, s): [] for m in methods.values() for s in sets.values()}
    for score in unseen(job.scale, evaluation.trained_on, read_scores(Path(config.out) / SCORES_FILE)):
        cells[methods[score.model], sets[score.data]].append(score)
    return cells


def measured(seeds: Sequence[Sequence[PairScore]], what: str) -> Measured:
    """Measure one method on one test set, from the scores of each seed.

    Raises:
        DataError: no pair was scored by all seeds, or seeds were tested on different pairs.
    """
    require_same_prompts(({row.id: row.group for row in rows} for rows in seeds), what)
    by_seed = [{row.id: row for row in rows if row.margin is not None} for rows in seeds]
    margins = [{pair: row.margin or 0.0 for pair, row in rows.items()} for rows in by_seed]
    shared = [pair for pair in by_seed[0] if all(pair in rows for rows in by_seed)]
    if not shared:
        raise DataError(f"{what}: no pair was scored, so there is no accuracy. Look at the evaluation's scores.jsonl.")
    each = np.stack([hits([found[pair] for pair in shared]) for found in margins])
    rows = [by_seed[0][pair] for pair in shared]
    return Measured(
        accuracies=tuple(map(float, each.mean(axis=1))),
        pair_hits=dict(zip(shared, map(float, each.mean(axis=0)), strict=True)),
        groups={row.id: row.group for row in rows},
        length_accuracy=accuracy([row.length_chosen - row.length_rejected for row in rows]).value,
    )


def require_same_prompts(scored: Iterable[Mapping[str, str]], what: str) -> None:
    """Raise if a pair has different prompts in different scores.

    Pairs are identified by their row, whose prompt changes if the file is edited between evaluations.

    Args:
        scored: Prompt group by pair, one mapping for each set of scores compared.
        what: The measurement, named in the error message.

    Raises:
        DataError: a pair's prompt differs between scores.
    """
    groups: dict[str, str] = {}
    for found in scored:
        for pair, group in found.items():
            if groups.setdefault(pair, group) != group:
                raise DataError(
                    f"{what}: {pair} has not the same prompt in all scores, so its file was changed between them. "
                    "Delete the older scores, or choose another --out."
                )


def average_of(cells: Sequence[Measured]) -> Measured:
    """Average over data sets, unweighted as in the paper's tables, for each seed."""
    return Measured(
        accuracies=tuple(map(statistics.fmean, zip(*(cell.accuracies for cell in cells), strict=True))),
        pair_hits={},
        groups={},
        length_accuracy=statistics.fmean(cell.length_accuracy for cell in cells),
    )


def relation(
    row: Mapping[Method, Measured],
    over: Rival,
    *,
    backbone: str,
    trained_on: str,
    tested_on: str,
    paper: float | None = None,
) -> Relation:
    """Compare HAF with another method on one test set, with the paired interval.

    Raises:
        DataError: the two were tested on different pairs.
    """
    ours, theirs = row["haf"], row[over]
    require_same_prompts((ours.groups, theirs.groups), f"{tested_on}, haf and {over}")
    shared = [pair for pair in ours.pair_hits if pair in theirs.pair_hits]
    groups = [ours.groups[pair] for pair in shared]
    found = paired_bootstrap(
        [ours.pair_hits[pair] for pair in shared], [theirs.pair_hits[pair] for pair in shared], groups
    )
    return Relation(
        backbone=backbone,
        trained_on=trained_on,
        tested_on=tested_on,
        over=over,
        difference=found.difference,
        ci95=found.interval,
        by_seed=_differences(ours, theirs),
        paper=paper,
    )


def average_relation(
    relations: Sequence[Relation], *, tested_on: str = AVERAGE, paper: float | None = None
) -> Relation:
    """Average relations of one backbone and rival; the interval treats them as independent."""
    ends = [each.ci95 for each in relations]
    mean = statistics.fmean(each.difference for each in relations)
    half = None
    if all(end is not None for end in ends):
        halves = [(end[1] - end[0]) / 2 for end in ends if end is not None]
        half = math.sqrt(sum(value**2 for value in halves)) / len(halves)
    first = relations[0]
    trained = {each.trained_on for each in relations}
    return Relation(
        backbone=first.backbone,
        trained_on=first.trained_on if len(trained) == 1 else "each set",
        tested_on=tested_on,
        over=first.over,
        difference=mean,
        ci95=None if half is None else (mean - half, mean + half),
        by_seed=tuple(map(statistics.fmean, zip(*(each.by_seed for each in relations), strict=True))),
        paper=paper,
    )


def _differences(ours: Measured, theirs: Measured) -> tuple[float, ...]:
    return tuple(a - b for a, b in zip(ours.accuracies, theirs.accuracies, strict=True))
