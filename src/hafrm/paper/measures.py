"""Compute accuracies and paired differences from the raw scores of runs.

A pair's hit is 1 if the better response has the higher reward, one half for a tie, otherwise 0. With several seeds, a
pair's hit is the mean over seeds, so that intervals over pairs are for the seeds' mean. The spread over seeds is
reported separately, because an interval over the pairs of one run does not cover other seeds.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hafrm import atomic
from hafrm.errors import DataError
from hafrm.evaluation.scoring import SCORES_FILE, PairScore, read_scores
from hafrm.paper.plans import Cell, Scoring, compared_cells
from hafrm.paper.record import Record
from hafrm.paper.runs import Run
from hafrm.paper.samples import unseen
from hafrm.paper.scales import Job
from hafrm.report.findings import Relation, Rival
from hafrm.stats import (
    Floats,
    Interval,
    accuracy,
    bootstrap_interval,
    few_groups,
    hits,
    p_of_draws,
    paired_bootstrap,
    resampled_means,
)

AVERAGE = "Avg"
"""Column name of the mean over data sets, as in the paper's tables."""

RIVALS: tuple[Rival, ...] = ("baseline", "dpo")
"""Methods that HAF is compared with."""

Scores = dict[str, dict[str, dict[int, list[PairScore]]]]
"""Scores by column, row and seed."""

Row = Mapping[str, "Measured"]
Grid = Mapping[str, Row]
"""Measurements by column (a test set), then by row (a method)."""


@dataclass(frozen=True)
class Measured:
    """Accuracy of one row on one test set, or its mean over several sets."""

    accuracies: tuple[float, ...]
    """Share of correct pairs, per seed."""
    pair_hits: Mapping[str, float]
    """Hit by pair, averaged over seeds, for pairs that every seed scored. Empty for a mean over sets."""
    groups: Mapping[str, str]
    """Prompt group of each pair."""
    length_accuracy: float
    """Accuracy of picking the longer response."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Test pairs that are not counted, by reason, for the first seed."""

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


def as_json(found: Measured | Mapping[str, Any]) -> dict[str, Any]:
    """Return measurements, in dictionaries of any depth, in the format of `results.json`."""
    return found.as_dict() if isinstance(found, Measured) else {name: as_json(each) for name, each in found.items()}


def measure(job: Job, trained_on: tuple[str, ...], tested_on: tuple[str, ...], *, backbone: str) -> Grid:
    """Measure each method on each test set, from the comparisons of all seeds, without prompts that were trained on.

    Raises:
        DataError: a comparison is missing, or no pair was scored by all seeds.
    """
    scores, left_out = read_cells(job, compared_cells(job, trained_on, tested_on, backbone=backbone))
    return {
        column: {name: replace(each, left_out=left_out[column][name]) for name, each in row.items()}
        for column, row in grid_of(scores).items()
    }


def read_cells(job: Job, cells: Iterable[Cell]) -> tuple[Scores, dict[str, dict[str, Counter[str]]]]:
    """Read the scores of cells, without prompts that were trained on.

    Returns:
        The scores, and by column and row the number of pairs that an accuracy does not count, by reason, for the first
        seed.
    """
    read: dict[Path, list[PairScore]] = {}
    found: Scores = {}
    left_out: dict[str, dict[str, Counter[str]]] = {}
    for cell in cells:
        folder = cell.scoring.folder(job)
        if folder not in read:
            read[folder] = read_scores(folder / SCORES_FILE)
        scores = _of_run(job, cell.run, cell.tested_on, read[folder])
        fair = unseen(job.scale, cell.run.sets, scores)
        found.setdefault(cell.column, {}).setdefault(cell.row, {})[cell.run.seed] = fair
        reasons = Counter(score.unscored for score in fair if score.margin is None)
        reasons += Counter({"with a prompt that was trained on": len(scores) - len(fair)})
        left_out.setdefault(cell.column, {}).setdefault(cell.row, reasons)
    return found, left_out


def write_record(job: Job, scorings: Iterable[Scoring], values: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `record.jsonl`, without texts, so that anyone can recompute the results.

    Args:
        scorings: Finished evaluations, whose margins of all test pairs are written.
        values: Further lines.
        folder: The folder of the results. An older record in it is replaced.
    """
    with atomic.new_files(folder, last="record.jsonl") as temporary:
        record = Record(temporary)
        for scoring in scorings:
            rows = read_scores(scoring.folder(job) / SCORES_FILE)
            for run, name in product(scoring.runs, scoring.tested_on):
                scores = _of_run(job, run, name, rows)
                known_as = f"{run.folder(job).relative_to(job.root / 'runs')} on {name}"
                record.add_scores(known_as, name, scores, kept=unseen(job.scale, run.sets, scores))
        for line in values:
            record.add_values(line)


def _of_run(job: Job, run: Run, tested_on: str, rows: Iterable[PairScore]) -> list[PairScore]:
    """Return a run's scores of a test set, from an evaluation's."""
    model, data = str(run.folder(job)), job.scale.sets[tested_on].test
    return [row for row in rows if (row.model, row.data) == (model, data)]


def left_out_of(grids: Mapping[str, Grid]) -> dict[str, Mapping[str, int]]:
    """Return the test pairs that are not in HAF's accuracies, by test set with backbone, and by reason."""
    return {
        f"{column} ({backbone})": row["haf"].left_out
        for backbone, grid in grids.items()
        for column, row in grid.items()
    }


def grid_of(scores: Scores) -> dict[str, dict[str, Measured]]:
    """Measure each row of each column.

    Raises:
        DataError: no pair of a cell was scored by all seeds, or seeds were tested on different pairs.
    """
    return {
        column: {row: measured(list(seeds.values()), f"{column} by {row}") for row, seeds in rows.items()}
        for column, rows in scores.items()
    }


def scored_by_all(rows: Iterable[Mapping[int, Sequence[PairScore]]]) -> set[str]:
    """Return the pairs with a score in all seeds of all rows."""
    every = [{score.id for score in scores if score.margin is not None} for row in rows for scores in row.values()]
    return set.intersection(*every) if every else set()


def measured(seeds: Sequence[Sequence[PairScore]], what: str) -> Measured:
    """Measure one row on one test set, from the scores of each seed.

    Raises:
        DataError: no pair was scored by all seeds, or seeds were tested on different pairs.
    """
    _require_same_prompts(({row.id: row.group for row in rows} for rows in seeds), what)
    by_seed = [{row.id: row for row in rows if row.margin is not None} for rows in seeds]
    shared = [pair for pair in by_seed[0] if all(pair in rows for rows in by_seed)]
    if not shared:
        raise DataError(f"{what}: no pair was scored, so there is no accuracy. Look at the evaluation's scores.jsonl.")
    each = np.stack([hits([rows[pair].margin or 0.0 for pair in shared]) for rows in by_seed])
    rows = [by_seed[0][pair] for pair in shared]
    return Measured(
        accuracies=tuple(map(float, each.mean(axis=1))),
        pair_hits=dict(zip(shared, map(float, each.mean(axis=0)), strict=True)),
        groups={row.id: row.group for row in rows},
        length_accuracy=accuracy([row.length_chosen - row.length_rejected for row in rows]).value,
    )


def _require_same_prompts(scored: Iterable[Mapping[str, str]], what: str) -> None:
    """Raise if a pair has different prompts in different scores.

    Pairs are identified by their row, whose prompt changes if the file is edited between evaluations.

    Raises:
        DataError: a pair's prompt differs between scores.
    """
    groups: dict[str, str] = {}
    for found in scored:
        for pair, group in found.items():
            if groups.setdefault(pair, group) != group:
                raise DataError(
                    f"{what}: {pair} does not have the same prompt in all scores, so its file changed between them. "
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


_RESAMPLES = 20_000
"""Resamples of a comparison: with 2,000, Holm's correction turned a p-value of .005 into .03 to .06 by chance."""


@dataclass(frozen=True)
class Paired:
    """Two rows on one test set, on the pairs that both scored."""

    a: Measured
    b: Measured
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, a: Measured, b: Measured, what: str, seeds: Sequence[int] | None = None) -> Paired:
        """Pair two rows.

        Raises:
            DataError: the two were tested on different pairs.
        """
        _require_same_prompts((a.groups, b.groups), what)
        return cls(a, b, tuple(range(len(a.accuracies)) if seeds is None else seeds))

    @cached_property
    def pairs(self) -> list[str]:
        """Pairs that both scored."""
        return [pair for pair in self.a.pair_hits if pair in self.b.pair_hits]

    @property
    def differences(self) -> Floats:
        """Hit of `a` minus hit of `b`, for each pair."""
        return np.array([self.a.pair_hits[pair] - self.b.pair_hits[pair] for pair in self.pairs])

    @property
    def groups(self) -> list[str]:
        """Prompt group of each pair."""
        return [self.a.groups[pair] for pair in self.pairs]

    @property
    def has_few_prompts(self) -> bool:
        """Whether there are too few prompts for resampling."""
        return few_groups(self.groups)

    @property
    def units(self) -> list[str]:
        """Units to resample for a mean over columns: prompts, or single pairs if there are too few prompts."""
        return self.pairs if self.has_few_prompts else self.groups

    @property
    def by_seed(self) -> dict[int, float]:
        """Difference in accuracy by seed."""
        both = zip(self.a.accuracies, self.b.accuracies, strict=True)
        return dict(zip(self.seeds, (_points(ours - theirs) for ours, theirs in both), strict=True))

    def compared(self) -> dict[str, Any]:
        """Return the difference with its interval and p-value, in the format of the study's comparisons."""
        a, b = ([side.pair_hits[pair] for pair in self.pairs] for side in (self.a, self.b))
        test = paired_bootstrap(a, b, self.groups, resamples=_RESAMPLES)
        return {
            "difference": test.difference,
            "ci95": test.interval,
            "p": None if self.has_few_prompts else test.p_value,
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
            "n": len(a),
        }


def _points(difference: float) -> float:
    """Return a difference of shares without rounding errors, so that equal accuracies differ by 0."""
    return round(difference, 12)


def compared_by_prompt(ours: ArrayLike, theirs: ArrayLike, by_seed: Iterable[float]) -> dict[str, Any]:
    """Compare two ways by their values for each prompt, averaged over seeds.

    Args:
        ours: One way's values, [N].
        theirs: The other's, [N].
        by_seed: Difference of the means for each seed.

    Returns:
        `{"mean", "ci95", "by_seed"}`; the 95% interval is over prompts, and None for too few.
    """
    found = paired_bootstrap(ours, theirs, range(len(np.asarray(ours))))
    return {"mean": found.difference, "ci95": found.interval, "by_seed": list(by_seed)}


def mean_compared(columns: Sequence[Paired]) -> dict[str, Any]:
    """Average comparisons over columns, unweighted, with a p-value computed as for one column.

    Each test set's prompts are resampled separately. Columns with the same prompts (out of domain, a set is tested
    after training on several others) share their draws: their difficulty is correlated, and independent draws would
    make the interval too narrow. For a set with too few prompts, pairs are resampled; the interval then applies to
    those prompts only.
    """
    seeds: dict[frozenset[str], int] = {}
    draws = np.mean(
        [
            resampled_means(
                each.differences,
                each.units,
                resamples=_RESAMPLES,
                seed=seeds.setdefault(frozenset(each.units), len(seeds)),
            )
            for each in columns
        ],
        axis=0,
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    shared = set.intersection(*(set(each.seeds) for each in columns))
    return {
        "difference": _points(statistics.fmean(float(each.differences.mean()) for each in columns)),
        "ci95": [float(low), float(high)],
        "p": p_of_draws(draws),
        "by_seed": {
            str(seed): _points(statistics.fmean(each.by_seed[seed] for each in columns)) for seed in sorted(shared)
        },
        "n": sum(len(each.pairs) for each in columns),
    }


def relation(
    row: Row, over: Rival, *, backbone: str, trained_on: str, tested_on: str, paper: float | None = None
) -> Relation:
    """Compare HAF with another method on one test set, with the paired interval.

    Raises:
        DataError: the two were tested on different pairs.
    """
    found = Paired.of(row["haf"], row[over], f"{tested_on}, haf and {over}")
    compared = found.compared()
    return Relation(
        backbone=backbone,
        trained_on=trained_on,
        tested_on=tested_on,
        over=over,
        difference=compared["difference"],
        ci95=compared["ci95"],
        by_seed=tuple(found.by_seed.values()),
        paper=paper,
    )


def average_relation(
    relations: Sequence[Relation], *, tested_on: str = AVERAGE, paper: float | None = None
) -> Relation:
    """Average relations of one backbone and rival; the interval treats them as independent."""
    ends = [each.ci95 for each in relations if each.ci95 is not None]
    mean = _points(statistics.fmean(each.difference for each in relations))
    half = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in ends)) / len(relations)
    first, trained = relations[0], {each.trained_on for each in relations}
    return replace(
        first,
        trained_on=first.trained_on if len(trained) == 1 else "each set",
        tested_on=tested_on,
        difference=mean,
        ci95=(mean - half, mean + half) if len(ends) == len(relations) else None,
        by_seed=tuple(_points(statistics.fmean(of)) for of in zip(*(each.by_seed for each in relations), strict=True)),
        paper=paper,
    )


def relations(
    grids: Mapping[str, Grid],
    *,
    trained_on: str | None = None,
    place: str = "",
    average: str = AVERAGE,
    printed: Mapping[str, Mapping[tuple[Rival, str], float]] | None = None,
) -> list[Relation]:
    """Compare HAF with each rival on each set and on average.

    Args:
        grids: Measurements by backbone.
        trained_on: The training data; None: each set's own.
        place: Suffix of the names of the test sets.
        average: Name of the average.
        printed: The paper's differences by backbone, as shares, by rival and set or `AVERAGE`.
    """
    found: list[Relation] = []
    for (backbone, grid), over in product(grids.items(), RIVALS):
        paper = printed[backbone] if printed else {}
        each = [
            relation(
                row,
                over,
                backbone=backbone,
                trained_on=trained_on or name,
                tested_on=f"{name}{place}",
                paper=paper.get((over, name)),
            )
            for name, row in grid.items()
        ]
        found += [*each, average_relation(each, tested_on=f"{average}{place}", paper=paper.get((over, AVERAGE)))]
    return found
