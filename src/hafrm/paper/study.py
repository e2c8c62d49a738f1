"""The study: does hybrid alignment help? All comparisons on the given backbones, with several seeds and paired tests.

`collect` computes the study's numbers from raw scores: `results.json`, the source of every table, figure and sentence.
Missing results are omitted and listed: a cell uses the available seeds, a comparison the seeds that both sides have.
Intervals are over prompts, for the mean over seeds, and tests are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from hafrm.evaluation.scoring import PairScore
from hafrm.paper.measures import AVERAGE, Paired, Scores, grid_of, mean_compared, measured, scored_by_all
from hafrm.paper.numbers import SETS
from hafrm.paper.plans import FROZEN, PARTS, WORDS, cells
from hafrm.paper.record import journal_of, record_of
from hafrm.paper.references import reference_name
from hafrm.paper.scales import METHODS, Job
from hafrm.paper.stages import Todo, at_chosen_rates, choices, missing, stage_order, stages
from hafrm.stats import (
    FEWEST_GROUPS,
    accuracy,
    brier_score,
    expected_calibration_error,
    holm_correction,
    paired_bootstrap,
    stated_probability,
)

FORMAT = 3

ENOUGH = f"{AVERAGE} of {FEWEST_GROUPS} prompts or more"
"""Name of the mean over columns with enough test prompts, shown if some have too few."""

AVERAGES = (AVERAGE, ENOUGH)

_Seeds = Mapping[int, Sequence[PairScore]]


def collect(job: Job) -> dict[str, Any]:
    """Collect all available results.

    Returns:
        `{"format", "scale", "sets", "seeds", "steps", "cap", "max_length", "backbones", "rates", "rate_seeds", "parts",
        "comparisons", "certainty", "seen", "failures", "unfinished", "missing", "counts"}`.

        `parts` is {PART: {BACKBONE: {COLUMN: {ROW: {"accuracy", "by_seed", "spread", "ci95", "n", "prompts",
        "length_accuracy", "seeds", "unscored"}}}}}; the `difference` of a comparison is row `a` - row `b` on the pairs
        that both scored; `columns` are those of a mean. `certainty` is {BACKBONE: `certainties`}, in domain. `seen` is
        {PART: {COLUMN: [pairs excluded because their prompt was trained on, all pairs]}}.
    """
    journal, done = journal_of(job), _done(job)
    left = {name: entry for name, entry in journal.last().items() if name not in done}
    events = [entry.event for entry in journal.entries()]
    parts: dict[str, dict[str, Any]] = {}
    comparisons: list[dict[str, Any]] = []
    certainty: dict[str, Any] = {}
    seen: dict[str, dict[str, list[int]]] = {}
    for part, backbone in stage_order(job):
        scores, left_out = _scores(job, part, backbone)
        if left_out:
            seen.setdefault(part, {}).update(left_out)
        if scores:
            parts.setdefault(part, {})[backbone] = json_grid(scores)
            comparisons += compare_rows(part, backbone, scores)
            if part == "table2":  # its margins are log-odds in every row
                certainty[backbone] = certainties(scores)
    correct(comparisons)
    return {
        "format": FORMAT,
        "scale": job.scale.name,
        "sets": list(job.sets),
        "seeds": list(job.seeds),
        "steps": job.scale.training["max_steps"],
        "batch": job.scale.training.get("per_device_train_batch_size", 16),
        "cap": job.scale.cap,
        "max_length": job.scale.max_length,
        "backbones": {
            name: {"paper_name": backbone.paper_name, "lora_rank": backbone.lora.rank}
            for name, backbone in ((name, job.scale.backbone(name)) for name in job.backbones)
        },
        "rates": {name: _rates(job, name) for name in job.backbones},
        "rate_seeds": job.rate_seeds,
        "rate_sets": list(job.rate_sets or job.sets),
        "parts": parts,
        "comparisons": comparisons,
        "certainty": certainty,
        "seen": seen,
        "failures": [{"what": name, "reason": entry.reason} for name, entry in left.items() if entry.event == "failed"],
        "unfinished": [name for name, entry in left.items() if entry.event == "started"],
        "missing": list(missing(job)),
        "counts": {event: events.count(event) for event in ("started", "finished", "failed")},
    }


def _rates(job: Job, backbone: str) -> dict[str, Any]:
    """Return each method's candidate rates with their marks, and the choice."""
    if found := choices(job, backbone):
        return {
            method: {
                "marks": {f"{rate:g}": mark for rate, mark in choice.marks.items()},
                "failed": [f"{rate:g}" for rate in choice.failed],
                "rate": choice.rate,
            }
            for method, choice in found.items()
        }
    own = dict.fromkeys(METHODS, *job.rates) if job.rates else job.scale.backbone(backbone).learning_rates
    return {method: {"marks": {}, "failed": [], "rate": rate} for method, rate in own.items()}


def _done(job: Job) -> set[str]:
    """Return the journal names of what is finished, including work whose process was killed before logging it."""
    found: set[str] = set()
    for todo in (todo for stage in stages(job) for todo in stage.todos):
        if todo.recorded:
            found.add(todo.name)
        found.update(todo.scoring_name(each) for each in todo.scorings if each not in todo.unscored)
    return found


def _scores(job: Job, part: str, backbone: str) -> tuple[Scores, dict[str, list[int]]]:
    """Return a part's available raw scores, and by column [pairs excluded because they were trained on, all pairs]."""
    at = at_chosen_rates(job, backbone)
    if at is None:
        return {}, {}
    record = record_of(job)
    found: Scores = {}
    left_out: dict[str, list[int]] = {}
    for cell in cells(at, part, backbone):
        recorded = record.scores(Todo(at, cell.run).scores_name(cell.scoring))
        if recorded is None:
            continue
        scores, seen = recorded
        if seen:
            left_out[cell.column] = [seen, seen + len(scores)]
        if scores:
            found.setdefault(cell.column, {}).setdefault(cell.row, {})[cell.run.seed] = scores
    for name, rows in found.items() if part == "table2" else ():
        scored = scored_by_all(rows.values())
        for row in (WORDS, FROZEN):
            if (reference := record.scores(reference_name(job, row, backbone, name))) is not None:
                rows[row] = dict.fromkeys(job.seeds, _only(reference[0], scored))
    return {column: found[column] for column in sorted(found, key=_place)}, left_out


def _place(column: str) -> list[int]:
    """Return a column's place in the paper's order; `A→B` is a set's models on another set."""
    return [SETS.index(name) for name in column.split("→")]


def _only(scores: Sequence[PairScore], pairs: set[str]) -> list[PairScore]:
    return [score for score in scores if score.id in pairs]


def json_grid(scores: Scores) -> dict[str, dict[str, Any]]:
    """Measure each row of each column, with the seeds that it has and the number of pairs without a score."""
    return {
        column: {
            row: cell.as_dict() | {"seeds": list(scores[column][row]), "unscored": _unscored(scores[column][row])}
            for row, cell in rows.items()
        }
        for column, rows in grid_of(scores).items()
    }


def _unscored(seeds: _Seeds) -> int:
    """Count the test pairs that are not part of a cell's accuracy."""
    return len({score.id for scores in seeds.values() for score in scores} - scored_by_all([seeds]))


def compare_rows(part: str, backbone: str, scores: Scores) -> Iterator[dict[str, Any]]:
    """Yield a part's comparisons: each pair of rivals on each column, and their means."""
    for a, b in PARTS[part].rivals:
        paired = {column: found for column, rows in scores.items() if (found := pair_rows(rows, a, b)) is not None}
        named = {"part": part, "backbone": backbone, "a": a, "b": b}
        for column, found in paired.items():
            yield named | {"column": column} | found.compared()
        if len(paired) > 1:
            mean = mean_compared(list(paired.values())) | {"columns": list(paired)}
            if any(found.has_few_prompts for found in paired.values()):
                mean["p"] = None  # resampling the pairs of a few prompts ignores their dependence
            yield named | {"column": AVERAGE} | mean
        enough = {column: found for column, found in paired.items() if not found.has_few_prompts}
        if 1 < len(enough) < len(paired):
            yield named | {"column": ENOUGH, "columns": list(enough)} | mean_compared(list(enough.values()))


def _shared(ours: _Seeds, theirs: _Seeds) -> tuple[list[_Seeds], set[str]]:
    """Return both rows on the seeds that both have, and the pairs that all of these scored."""
    sides: list[_Seeds] = [{seed: row[seed] for seed in ours if seed in theirs} for row in (ours, theirs)]
    return sides, scored_by_all(sides)


def pair_rows(rows: Mapping[str, _Seeds], a: str, b: str) -> Paired | None:
    """Pair two rows on the seeds that both have and the pairs that all of them scored; None without such seeds."""
    sides, both = _shared(rows.get(a, {}), rows.get(b, {}))
    if not sides[0]:
        return None
    what = f"{a} and {b}"
    ours, theirs = (measured([_only(scores, both) for scores in side.values()], what) for side in sides)
    return Paired.of(ours, theirs, what, tuple(sides[0]))


def correct(comparisons: Sequence[dict[str, Any]]) -> None:
    """Apply Holm's correction to a part's single columns with a p-value; means over columns stay uncorrected."""
    for part in dict.fromkeys(each["part"] for each in comparisons):
        of_part = [each for each in comparisons if each["part"] == part and each["column"] not in AVERAGES]
        single = [each for each in of_part if each["p"] is not None]
        if single:
            for each, p in zip(single, holm_correction([each["p"] for each in single]), strict=True):
                each["p_holm"] = float(p)


def certainties(scores: Scores) -> dict[str, dict[str, Any]]:
    """Measure the calibration of each row of each column.

    A margin m of a Bradley-Terry model says that the chosen response is better with probability sigmoid(m). So the
    model is sigmoid(|m|) certain of its choice, on average as often as it is right if it is calibrated.

    Returns:
        {COLUMN: {ROW: {"right", "stated", "ece", "brier", "brier_by_seed", "over"}}}. `right` and `stated` are the
        accuracy and the mean certainty of the choices. All are means over seeds, of the pairs with a score. `over` is
        the Brier score minus the baseline's, on the pairs and seeds of both: {"difference", "ci95"}, or None.
    """
    return {
        column: {
            row: _certainty(seeds) | {"over": _compared(seeds, rows["baseline"]) if row != "baseline" else None}
            for row, seeds in rows.items()
        }
        for column, rows in scores.items()
        if "baseline" in rows
    }


def _certainty(seeds: _Seeds) -> dict[str, Any]:
    margins = [np.array(list(_margins(scores).values())) for scores in seeds.values()]
    stated = [stated_probability(each) for each in margins]
    briers = [brier_score(each) for each in stated]
    return {
        "right": fmean(accuracy(each).value for each in margins),
        "stated": fmean(float(np.maximum(each, 1 - each).mean()) for each in stated),
        "ece": fmean(map(expected_calibration_error, stated)),
        "brier": fmean(briers),
        "brier_by_seed": briers,
    }


def _compared(ours: _Seeds, theirs: _Seeds) -> dict[str, Any] | None:
    """Compare the Brier scores of two rows, with an interval over prompts of the seeds' mean."""
    sides, both = _shared(ours, theirs)
    if not both:
        return None
    groups = {score.id: score.group for scores in sides[0].values() for score in scores}
    pairs = sorted(both)
    margins = ([_margins(scores) for scores in side.values()] for side in sides)
    stated = ([stated_probability([each[pair] for pair in pairs]) for each in seeds] for seeds in margins)
    a, b = (np.mean([(1 - each) ** 2 for each in seeds], axis=0) for seeds in stated)
    test = paired_bootstrap(a, b, [groups[pair] for pair in pairs])
    return {"difference": test.difference, "ci95": test.interval}


def _margins(scores: Sequence[PairScore]) -> dict[str, float]:
    return {score.id: score.margin for score in scores if score.margin is not None}
