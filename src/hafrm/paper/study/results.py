"""Compute the study's numbers from raw scores: `results.json`, the source of every table, figure and sentence.

Missing results are omitted and listed: a cell uses the available seeds, a comparison the seeds that both sides have.
Intervals are over prompts, for the mean over seeds, and tests are paired. For the mean over columns, each test set's
prompts are resampled separately; columns with the same test set share their draws. The spread over seeds is reported
separately.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hafrm.evaluation.scoring import RESULTS_FILE, SCORES_FILE, PairScore, read_scores
from hafrm.paper.measures import AVERAGE, Measured, measured, require_same_prompts
from hafrm.paper.overlap import unseen
from hafrm.paper.plans import ALL_METHODS, Job
from hafrm.paper.study.options import PartName
from hafrm.paper.study.planning import journal_of, missing, stages
from hafrm.paper.study.rates import at_chosen_rates, chosen
from hafrm.paper.study.trials import SHARES, cells, stage_order
from hafrm.paper.study.work import WORDS, words_file
from hafrm.stats import FEWEST_GROUPS, Floats, few_groups, holm_correction, paired_bootstrap, resampled_means
from hafrm.training.manifest import is_finished

FORMAT = 3

ENOUGH = f"{AVERAGE} of {FEWEST_GROUPS} prompts or more"
"""Name of the mean over columns with enough test prompts, shown if some have too few."""

AVERAGES = (AVERAGE, ENOUGH)

_Scores = dict[str, dict[str, dict[int, list[PairScore]]]]
"""Scores by column, row and seed."""

RIVALS_OF: Mapping[PartName, tuple[tuple[str, str], ...]] = {
    "table2": (("haf", "baseline"), ("haf", "dpo"), *((method, WORDS) for method in ALL_METHODS)),
    "ood": (("haf", "baseline"), ("haf", "dpo")),
    "heads": (("both heads", "reward head"), ("policy head", "reward head")),
    "mixed": (("haf", "baseline"), ("haf", "dpo")),
    "losses": tuple((loss, "none") for loss in ("dpo", "ipo", "simpo", "sft")),
    "ratios": tuple((ratio, "0") for ratio in ("-0.2", "0.1", "0.2", "0.5", "1", "2")),
    "sizes": tuple((f"haf 1/{share}", f"{rival} 1/{share}") for share in SHARES for rival in ("baseline", "dpo")),
    "priors": tuple((prior, "bradley_terry") for prior in ("probit", "cauchy", "hinge")),
}
"""Rows of each part to compare, the first with the second."""


def collect(job: Job) -> dict[str, Any]:
    """Collect all available results.

    Returns:
        `{"format", "scale", "sets", "seeds", "steps", "cap", "max_length", "backbones", "rates", "rate_seeds", "parts",
        "comparisons", "seen", "failures", "unfinished", "missing", "counts"}`. `parts` is {PART: {BACKBONE: {COLUMN:
        {ROW: {"accuracy", "by_seed", "spread", "ci95", "n", "prompts", "length_accuracy", "seeds", "unscored"}}}}}; the
        `difference` of a comparison is row `a` - row `b` on the pairs that both scored; `columns` are those of a mean.
        `seen` is {PART: {COLUMN: [pairs excluded because their prompt was trained on, all pairs]}}.
    """
    journal = journal_of(job)
    done = _done(job)
    left = {name: entry for name, entry in journal.last().items() if name not in done}
    parts: dict[str, dict[str, Any]] = {}
    comparisons: list[dict[str, Any]] = []
    seen: dict[str, dict[str, list[int]]] = {}
    for part, backbone in stage_order(job):
        scores, left_out = _scores(job, part, backbone)
        if left_out:
            seen.setdefault(part, {}).update(left_out)
        if scores:
            parts.setdefault(part, {})[backbone] = _grid(scores)
            comparisons += _comparisons(part, backbone, scores)
    _correct(comparisons)
    events = [entry.event for entry in journal.entries()]
    return {
        "format": FORMAT,
        "scale": job.scale.name,
        "sets": list(job.sets),
        "seeds": list(job.seeds),
        "steps": job.scale.training["max_steps"],
        "batch": job.scale.training.get("per_device_train_batch_size", 16),
        "cap": job.scale.cap,
        "max_length": job.scale.max_length,
        "backbones": {name: _backbone(job, name) for name in job.backbones},
        "rates": {name: _rates(job, name) for name in job.backbones},
        "rate_seeds": job.study.rate_seeds,
        "parts": parts,
        "comparisons": comparisons,
        "seen": seen,
        "failures": [{"what": name, "reason": entry.reason} for name, entry in left.items() if entry.event == "failed"],
        "unfinished": [name for name, entry in left.items() if entry.event == "started"],
        "missing": list(missing(job)),
        "counts": {event: events.count(event) for event in ("started", "finished", "failed")},
    }


def _backbone(job: Job, name: str) -> dict[str, Any]:
    backbone = job.scale.backbone(name)
    return {"paper_name": backbone.paper_name, "lora_rank": backbone.lora.rank}


def _rates(job: Job, backbone: str) -> dict[str, Any]:
    """Return each method's candidate rates with their marks, and the choice."""
    if len(job.study.rates) < 2:
        own = (
            dict.fromkeys(ALL_METHODS, *job.study.rates)
            if job.study.rates
            else job.scale.backbone(backbone).learning_rates
        )
        return {method: {"marks": {}, "failed": [], "rate": rate} for method, rate in own.items()}
    return {
        method: {
            "marks": {f"{rate:g}": mark for rate, mark in choice.marks.items()},
            "failed": [f"{rate:g}" for rate in choice.failed],
            "rate": choice.rate if choice.complete else None,
        }
        for method, choice in chosen(job, backbone, journal_of(job).last()).items()
    }


def _done(job: Job) -> set[str]:
    """Return the journal names of what is finished, including work whose process was killed before logging it."""
    found: set[str] = set()
    for todo in (todo for stage in stages(job) for todo in stage.todos):
        if is_finished(todo.folder):
            found.add(todo.name)
        found.update(todo.scoring_name(each) for each in todo.scorings if each not in todo.unscored)
    return found


def _scores(job: Job, part: PartName, backbone: str) -> tuple[_Scores, dict[str, list[int]]]:
    """Return a part's available raw scores, and by column [pairs excluded because they were trained on, all pairs]."""
    at = at_chosen_rates(job, backbone, journal_of(job).last())
    found: _Scores = {}
    left_out: dict[str, list[int]] = {}
    if at is None:
        return found, left_out
    for cell in cells(at, part, backbone):
        folder = cell.scoring.folder(at.scale, at.out)
        if (folder / RESULTS_FILE).exists():
            scores = read_scores(folder / SCORES_FILE)
            kept = unseen(job.scale, cell.scoring.run.sets, scores)
            if len(kept) < len(scores):
                left_out[cell.column] = [len(scores) - len(kept), len(scores)]
            if kept:
                found.setdefault(cell.column, {}).setdefault(cell.row, {})[cell.scoring.run.seed] = kept
    if part == "table2":
        for name, rows in found.items():
            if words_file(job, name).exists():
                scored = _scored_by_all(seeds for seeds in rows.values())
                words = _only(read_scores(words_file(job, name)), scored)
                rows[WORDS] = dict.fromkeys(job.seeds, words)
    return found, left_out


def _scored_by_all(rows: Iterable[Mapping[int, Sequence[PairScore]]]) -> set[str]:
    """Return the pairs with a score in all seeds of all rows."""
    every = [{score.id for score in scores if score.margin is not None} for row in rows for scores in row.values()]
    return set.intersection(*every)


def _only(scores: Sequence[PairScore], pairs: set[str]) -> list[PairScore]:
    return [score for score in scores if score.id in pairs]


def _grid(scores: _Scores) -> dict[str, dict[str, Any]]:
    return {
        column: {
            row: measured(list(seeds.values()), f"{column}, {row}").as_dict()
            | {"seeds": list(seeds), "unscored": _unscored(seeds)}
            for row, seeds in rows.items()
        }
        for column, rows in scores.items()
    }


def _unscored(seeds: Mapping[int, Sequence[PairScore]]) -> int:
    """Count the test pairs that are not part of a cell's accuracy."""
    return len({score.id for scores in seeds.values() for score in scores} - _scored_by_all([seeds]))


@dataclass(frozen=True)
class _Paired:
    """Two rows on one column: the seeds that both have, on the pairs that all of them scored."""

    a: Measured
    b: Measured
    seeds: tuple[int, ...]

    @property
    def pairs(self) -> list[str]:
        return list(self.a.pair_hits)

    @property
    def differences(self) -> Floats:
        return np.array([self.a.pair_hits[pair] - self.b.pair_hits[pair] for pair in self.pairs])

    @property
    def groups(self) -> list[str]:
        return [self.a.groups[pair] for pair in self.pairs]

    @property
    def is_of_few_prompts(self) -> bool:
        """Whether there are too few prompts for resampling."""
        return few_groups(self.groups)

    @property
    def units(self) -> list[str]:
        """Units to resample for a mean over columns: prompts, or single pairs if there are too few prompts."""
        return self.pairs if self.is_of_few_prompts else self.groups

    @property
    def by_seed(self) -> dict[int, float]:
        both = zip(self.a.accuracies, self.b.accuracies, strict=True)
        return dict(zip(self.seeds, (ours - theirs for ours, theirs in both), strict=True))


def _comparisons(part: PartName, backbone: str, scores: _Scores) -> Iterator[dict[str, Any]]:
    for a, b in RIVALS_OF[part]:
        paired = {column: found for column, rows in scores.items() if (found := _paired(rows, a, b)) is not None}
        named = {"part": part, "backbone": backbone, "a": a, "b": b}
        for column, found in paired.items():
            yield named | {"column": column} | _on_one(found)
        if len(paired) > 1:
            mean = _on_all(list(paired.values())) | {"columns": list(paired)}
            if any(found.is_of_few_prompts for found in paired.values()):
                mean["p"] = None  # resampling the pairs of a few prompts ignores their dependence
            yield named | {"column": AVERAGE} | mean
        enough = {column: found for column, found in paired.items() if not found.is_of_few_prompts}
        if 1 < len(enough) < len(paired):
            yield named | {"column": ENOUGH, "columns": list(enough)} | _on_all(list(enough.values()))


def _paired(rows: Mapping[str, Mapping[int, list[PairScore]]], a: str, b: str) -> _Paired | None:
    seeds = tuple(seed for seed in rows.get(a, {}) if seed in rows.get(b, {}))
    if not seeds:
        return None
    sides = [{seed: rows[row][seed] for seed in seeds} for row in (a, b)]
    both = _scored_by_all(sides)
    ours, theirs = (measured([_only(scores, both) for scores in side.values()], f"{a} and {b}") for side in sides)
    require_same_prompts((ours.groups, theirs.groups), f"{a} and {b}")
    return _Paired(ours, theirs, seeds)


def _on_one(found: _Paired) -> dict[str, Any]:
    a, b = ([side.pair_hits[pair] for pair in found.pairs] for side in (found.a, found.b))
    test = paired_bootstrap(a, b, found.groups)
    return {
        "difference": test.difference,
        "ci95": test.interval,
        "p": None if found.is_of_few_prompts else test.p_value,
        "by_seed": {str(seed): value for seed, value in found.by_seed.items()},
        "n": len(a),
    }


def _on_all(columns: Sequence[_Paired]) -> dict[str, Any]:
    """Average over columns, unweighted, with a p-value computed as for one column.

    Each test set's prompts are resampled separately. Columns with the same prompts (out of domain, a set is tested
    after training on several others) share their draws: their difficulty is correlated, and independent draws would
    make the interval too narrow. For a set with too few prompts, pairs are resampled; the interval then applies to
    those prompts only.
    """
    seeds: dict[frozenset[str], int] = {}
    draws = np.mean(
        [
            resampled_means(each.differences, each.units, seed=seeds.setdefault(frozenset(each.units), len(seeds)))
            for each in columns
        ],
        axis=0,
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    shared = set.intersection(*(set(each.seeds) for each in columns))
    return {
        "difference": statistics.fmean(float(each.differences.mean()) for each in columns),
        "ci95": [float(low), float(high)],
        "p": min(1.0, float(2 * (rarer + 1) / (len(draws) + 1))),
        "by_seed": {str(seed): statistics.fmean(each.by_seed[seed] for each in columns) for seed in sorted(shared)},
        "n": sum(len(each.pairs) for each in columns),
    }


def _correct(comparisons: list[dict[str, Any]]) -> None:
    """Apply Holm's correction to a part's single columns with a p-value; means over columns stay uncorrected."""
    for part in dict.fromkeys(each["part"] for each in comparisons):
        of_part = [each for each in comparisons if each["part"] == part and each["column"] not in AVERAGES]
        single = [each for each in of_part if each["p"] is not None]
        for each, p in zip(single, holm_correction([each["p"] for each in single]), strict=True):
            each["p_holm"] = float(p)
