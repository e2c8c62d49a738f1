"""What losses beyond the paper's teach a reward model in the simulated world. Not in the paper.

Four comparisons of runs whose options differ in one respect: a consistency loss on prefixes, rankings by Plackett-Luce,
length control under labels that like length, and the origin of several heads, whose standard errors are compared with
true errors. Runs are tested by the labels of test pairs, and by whether they order them as the true rewards do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any, cast

import numpy as np
from scipy import special
from torch import Tensor

from hafrm.data.off_topic import with_off_topic
from hafrm.data.reports import SourceReport
from hafrm.errors import ConfigError
from hafrm.evaluation.probes import probe_scorer
from hafrm.evaluation.scoring import PairScore
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.scorers import HybridScorer, Scorer
from hafrm.packing import SequenceBatch
from hafrm.pairs import PreferencePair
from hafrm.paper.measures import Paired, Scores, as_json, grid_of, read_cells
from hafrm.paper.plans import Cell, Part, Plan, Scoring, others_of, plan_of
from hafrm.paper.record import values_line
from hafrm.paper.runs import Run
from hafrm.paper.samples import pairs_of
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings, cell_text, difference_cells
from hafrm.paper.world import PROFILES, oracle_reward
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import percent, points, with_interval
from hafrm.stats import bootstrap_interval, spearman

_ONE_TRAINED = "64 heads by Laplace"
"""The row of the calibration study whose runs train a single reward head."""

_BOTH_HEADS = "reward head and policy head"
"""A further row, from the same runs: how much their two heads differ."""

STUDIES: Mapping[str, Part] = {
    "consistency": Part(
        title="A consistency loss on prefixes (ICRM) beside HAF and beside SFT, its source's setting",
        where="With a consistency loss",
        rows={
            "haf": {"method": "haf"},
            "haf + consistency": {"method": "haf", "loss": "consistency"},
            "sft": {"method": "haf", "loss": "sft"},
            "sft + consistency": {"method": "haf", "loss": "sft-consistency"},
        },
        rivals=(("haf + consistency", "haf"), ("sft + consistency", "sft"), ("haf", "sft")),
    ),
    "rankings": Part(
        title="Rankings of four answers by Plackett-Luce and by all their pairs",
        where="From rankings",
        rows={
            "all pairs": {"method": "baseline", "rankings": True},
            "plackett_luce": {"method": "baseline", "loss": "plackett_luce", "rankings": True},
        },
        rivals=(("plackett_luce", "all pairs"),),
    ),
    "length": Part(
        title="Length control and off-topic pairs, trained on labels that like length",
        where="Against length",
        rows={
            "haf": {"method": "haf"},
            "haf, length control": {"method": "haf", "loss": "length_control"},
            "haf, off-topic pairs": {"method": "haf", "off_topic": 0.5},
        },
        rivals=(("haf, length control", "haf"), ("haf, off-topic pairs", "haf")),
    ),
    "calibration": Part(
        title="Stated and true errors of rewards",
        where="By origin of the heads",
        rows={
            "five bootstrapped heads": {"method": "haf", "loss": "heads"},
            _ONE_TRAINED: {"method": "haf", "loss": "laplace"},
        },
        rivals=(("five bootstrapped heads", _ONE_TRAINED),),
    ),
}
"""The comparisons by name; rows with the options of their runs."""

_VARIANTS = {"rankings": "-ranked", "length": "-longer"}
"""Studies that train on a variant of the set; see `hafrm.paper.world.sets`."""

_LEVELS = (0.5, 0.8, 0.95)
"""Levels of the intervals whose coverage is measured."""

_PROBED = 200
"""Test pairs of the length probe, and of the comparison with responses to other prompts."""


def _runs(job: Job, name: str) -> list[tuple[str, Run]]:
    """Return the rows with their runs, seed by seed."""
    sets = (f"{job.sets[0]}{_VARIANTS.get(name, '')}",)
    rows = [(seed, row) for seed in job.seeds for row in STUDIES[name].rows.items()]
    return [(row, Run(backbone=job.backbones[0], sets=sets, seed=seed, **options)) for seed, (row, options) in rows]


def _tested(job: Job) -> tuple[str, ...]:
    return (job.sets[0], *others_of(job.sets[0]))


def _cells(job: Job, name: str) -> Iterator[Cell]:
    for row, run in _runs(job, name):
        scoring = Scoring(runs=(run,), tested_on=_tested(job))
        for tested in scoring.tested_on:
            yield Cell(row=row, column=tested, run=run, tested_on=tested, scoring=scoring)


def plan(job: Job, name: str) -> Plan:
    """Plan the runs of a study for each seed, tested on their set and on the others of its category.

    Raises:
        ConfigError: the job is not in the world, whose labels or true rewards the study needs.
    """
    if not job.in_world and name != "consistency":
        raise ConfigError(f"scale: {name} needs labels or true rewards that only the scale world has.")
    return plan_of(_cells(job, name))


def find(job: Job, name: str) -> Findings:
    """Report accuracies by labels and by true rewards, differences between rows, and what the study adds."""
    part, (read, left_out) = STUDIES[name], read_cells(job, _cells(job, name))
    scores = dict(_with_true_order(job, read)) if job.in_world else read
    grid = grid_of(scores)
    differences = {
        column: {
            f"{a} - {b}": Paired.of(row[a], row[b], f"{column}, {a} and {b}", job.seeds).compared()
            for a, b in part.rivals
        }
        for column, row in grid.items()
    }
    rows = [(row, *(cell_text(each[row]) for each in grid.values())) for row in part.rows]
    found, tables, values = _MORE[name](job, scores) if name in _MORE else ({}, [], [])
    leads = [
        values_line("true", {"lead": true_leads(job.scale.sets[tested].test).values()}, on=tested)
        for tested in (_tested(job) if job.in_world else ())
    ]
    runs: dict[str, list[str]] = {}
    for row, run in _runs(job, name):
        runs.setdefault(row, []).append(str(run.folder(job).relative_to(job.root / "runs")))
    return build_findings(
        job,
        name,
        results={
            "seeds": list(job.seeds),
            "runs": runs,
            "accuracy": as_json(grid),
            "differences": differences,
            **found,
        },
        tables=[
            *tables,
            Table("Accuracy", ("accuracy, %", *grid), rows),
            _differences_table(differences),
        ],
        values=[*leads, *values],
        left_out={column: next(iter(rows.values())) for column, rows in left_out.items()},  # the same in every run
    )


def _differences_table(differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = [
        (f"{rows}, {column}", *difference_cells(each["difference"], each["ci95"], each["by_seed"].values(), points))
        for column, of_column in differences.items()
        for rows, each in of_column.items()
    ]
    return Table("Differences in points", ("rows", "difference, 95% interval", "by seed"), rows)


def _with_true_order(job: Job, scores: Scores) -> Iterator[tuple[str, dict[str, dict[int, list[PairScore]]]]]:
    """Yield each test set's scores by its labels, and by its true rewards."""
    for tested, rows in scores.items():
        leads = true_leads(job.scale.sets[tested].test)
        yield tested, rows
        yield (
            f"{tested}, true order",
            {
                row: {seed: [_in_true_order(score, leads) for score in each] for seed, each in seeds.items()}
                for row, seeds in rows.items()
            },
        )


@cache
def true_leads(data: str) -> Mapping[str, float]:
    """Return the true reward of the chosen response minus that of the rejected one, by test pair of a world's set."""
    name = data.removeprefix("world/")
    rewards = {pair.id: [oracle_reward(talk, name) for talk in pair.conversations] for pair in pairs_of(data, "test")}
    return {pair: chosen - rejected for pair, (chosen, rejected) in rewards.items()}


def _in_true_order(score: PairScore, leads: Mapping[str, float]) -> PairScore:
    """Swap the responses of a pair whose label is wrong."""
    if leads[score.id] > 0:
        return score
    return replace(
        score,
        reward_chosen=score.reward_rejected,
        reward_rejected=score.reward_chosen,
        length_chosen=score.length_rejected,
        length_rejected=score.length_chosen,
    )


def true_log_odds(data: str, lead: float) -> float:
    """Return the log-odds with which a set's annotators prefer a response whose true reward leads by `lead`."""
    return float(special.logit(PROFILES[data.removeprefix("world/")].annotator.preference(lead)))


_More = tuple[dict[str, Any], list[Table], list[dict[str, Any]]]
"""Further results, tables, and lines of the record."""


def _pays_for_length(job: Job, scores: Scores) -> _More:
    """Measure what rewards pay for length if quality is equal, the length probe, and rewards off topic."""
    trained = job.sets[0]
    data = job.scale.sets[trained].test
    pairs = pairs_of(data, "test")[:_PROBED]
    both = list(with_off_topic(iter(pairs), SourceReport(name=data, kind="world"), 1.0, seed=0))
    talks = [talk for pair in both[1::2] for talk in pair.conversations]
    found: dict[str, dict[str, list[float]]] = {}
    odds = [true_log_odds(data, lead) for lead in true_leads(data).values()]
    values = [values_line("true", {"log_odds": odds}, on=trained)]
    for row, run in _runs(job, "length"):
        of_row = found.setdefault(row, {"pays": [], "probe": [], "raised": [], "on_topic": []})
        of_row["pays"].append(_slope(scores[trained][row][run.seed], data))
        scorer = load_scorer(str(run.folder(job)), options=ScoreOptions().as_in_training())
        (probed,) = probe_scorer(scorer, pairs, row, ["length"])
        of_row["probe"].append(probed.relative)
        of_row["raised"].append(probed.raised)
        rewards = np.array(scorer.score(talks), dtype=float)
        of_row["on_topic"].append(float(np.mean(rewards[0::2] > rewards[1::2])))
        values.append(values_line(row, {"on_topic": rewards[0::2] - rewards[1::2]}, seed=run.seed))
    rows = tuple(
        (
            name,
            _over_seeds(each["pays"], "{:+.2f}".format),
            _over_seeds(each["probe"], "{:+.2f}".format),
            _over_seeds(each["raised"], percent),
            _over_seeds(each["on_topic"], percent),
        )
        for name, each in found.items()
    )
    log_odds = "log-odds per log of the ratio of characters"
    columns = ("", log_odds, "length probe: shift / gap", "raised, %", "above a response to another prompt, %")
    return {"length": found}, [Table("What a reward pays for length (by seed)", columns, rows)], values


def _slope(scores: Sequence[PairScore], data: str) -> float:
    """Regress reward differences on true log-odds and on the log of the ratio of lengths; return the latter's slope."""
    leads = true_leads(data)
    rows = [
        (score.margin, true_log_odds(data, leads[score.id]), np.log(score.length_chosen / score.length_rejected))
        for score in scores
        if score.margin is not None
    ]
    margins, *features = np.array(rows).T
    return float(np.linalg.lstsq(np.stack(features, axis=1), margins)[0][1])


def _over_seeds(values: Sequence[float], worded: Callable[[float], str]) -> str:
    return f"{worded(fmean(values))} ({', '.join(map(worded, values))})"


class _HeadScorer(HybridScorer):
    """Scores with every reward head: a list of rewards for each conversation."""

    def _score_batch(self, batch: SequenceBatch) -> Tensor:
        return cast(Tensor, self.model(batch, log_probs=False).of_heads)


def _coverage(job: Job, scores: Scores) -> _More:
    """Compare the stated errors of reward differences with their distance from the true log-odds."""
    data = job.scale.sets[job.sets[0]].test
    pairs, leads = pairs_of(data, "test"), true_leads(data)
    true = np.array([true_log_odds(data, leads[pair.id]) for pair in pairs])
    stated: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    values = [values_line("true", {"log_odds": true}, on=job.sets[0])]
    for row, run in _runs(job, "calibration"):
        ways = {row: _of_reward_heads} | ({_BOTH_HEADS: _of_both_heads} if row == _ONE_TRAINED else {})
        for name, way in ways.items():
            found_by = way(str(run.folder(job)), pairs)
            difference, error = found_by.mean(1), found_by.std(1, ddof=1)
            stated.setdefault(name, []).append((difference, error))
            of_heads = {"difference": difference, "error": error}
            values.append(values_line(name, of_heads, seed=run.seed, on=job.sets[0]))
    found = {name: coverage(seeds, true, [pair.group for pair in pairs]) for name, seeds in stated.items()}
    rows = tuple((name, *_coverage_cells(each)) for name, each in found.items())
    inside = (f"in the {level:.0%} interval, %" for level in _LEVELS)
    columns = ("", "stated error", "true error", *inside, "rank correlation (by seed)")
    table = Table("Errors of reward differences, root mean squares in log-odds", columns, rows)
    return {"errors": found}, [table], values


def coverage(seeds: Sequence[tuple[np.ndarray, np.ndarray]], true: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Compare estimates and their standard errors with the truth.

    Args:
        seeds: For each seed the estimates and their standard errors, [N] each.
        true: The true values, [N].
        groups: The prompt of each.

    Returns:
        `{"stated", "true", "covered": {LEVEL: {"share", "ci95"}}, "rank_correlation"}`: root mean squares of stated and
        true errors, the share of true values inside the normal interval of each level, and by seed how well the stated
        errors order the true ones.
    """
    errors = np.abs([estimate - true for estimate, _ in seeds])
    deviations = np.array([deviation for _, deviation in seeds])
    inside = {level: (errors <= special.ndtri((1 + level) / 2) * deviations).mean(0) for level in _LEVELS}
    return {
        "stated": float(np.sqrt(np.square(deviations).mean())),
        "true": float(np.sqrt(np.square(errors).mean())),
        "covered": {
            f"{level:g}": {"share": float(hits.mean()), "ci95": bootstrap_interval(hits, groups)}
            for level, hits in inside.items()
        },
        "rank_correlation": [spearman(*each).value for each in zip(deviations, errors, strict=True)],
    }


def _coverage_cells(found: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{found['stated']:.2f}", f"{found['true']:.2f}")
    for each in found["covered"].values():
        yield with_interval(each["share"], each["ci95"], percent)
    yield _over_seeds(found["rank_correlation"], "{:+.2f}".format)


def _of_reward_heads(run: str, pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Return each pair's reward difference by each of a run's reward heads, [N, K]."""
    scorer = cast(HybridScorer, load_scorer(run, options=ScoreOptions().as_in_training()))
    return _differences(_HeadScorer(scorer.model, scorer.encoder, scorer.layout, scorer.options), pairs)


def _of_both_heads(run: str, pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Return each pair's difference by the reward head and by the policy head, [N, 2], scaled to the same size."""
    options = ScoreOptions().as_in_training()
    reward, policy = (_differences(load_scorer(run, head=h, options=options), pairs) for h in ("reward", "policy"))
    return np.stack([reward, policy * np.sqrt(np.square(reward).mean() / np.square(policy).mean())], 1)


def _differences(scorer: Scorer, pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Return the first reward of each pair minus the second, [N], or by each head, [N, K]."""
    rewards = np.array(scorer.score([talk for pair in pairs for talk in pair.conversations]), dtype=float)
    differences: np.ndarray = rewards[0::2] - rewards[1::2]
    return differences


_MORE: Mapping[str, Callable[[Job, Scores], _More]] = {"length": _pays_for_length, "calibration": _coverage}
"""What a study measures besides accuracies."""
