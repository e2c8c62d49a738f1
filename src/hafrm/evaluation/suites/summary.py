"""Compute the results of a suite from raw scores: scores with intervals, baselines, and paired differences."""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, get_args

import numpy as np

from hafrm.evaluation.suites.items import Level, ListScore, Observation, Score, Stratum, Suite
from hafrm.stats import Floats, few_groups, p_of_draws, resampled_means

_RESAMPLES = 2000


@dataclass(frozen=True)
class _Means:
    """Means of all strata, as observed and in each resample, [R]."""

    observed: Mapping[Stratum, float]
    drawn: Mapping[Stratum, Floats] = field(default_factory=dict)
    few: frozenset[Stratum] = frozenset()
    """The strata with fewer prompts than `FEWEST_GROUPS`."""
    counts: Mapping[Stratum, int] = field(default_factory=dict)
    """The number of values per stratum."""

    def value(self, score: Score) -> float:
        return math.fsum(weight * self.observed[stratum] for stratum, weight in score.weights.items())

    def draws(self, score: Score) -> Floats:
        total: Floats = np.sum([weight * self.drawn[stratum] for stratum, weight in score.weights.items()], axis=0)
        return total

    def ci95(self, score: Score, draws: Floats) -> list[float] | None:
        """Return the central 95% of a score's draws; None if one of its strata has too few prompts."""
        if self.few & score.weights.keys():
            return None
        low, high = np.quantile(draws, [0.025, 0.975])
        return [float(low), float(high)]


def summarise_suite(
    suite: Suite, scores: Sequence[ListScore], words: Mapping[str, list[float]] | None = None
) -> dict[str, Any]:
    """Compute the part of `results.json` about one suite.

    Args:
        words: Rewards of a bag of words by the item's id; None or {} if there is none.

    Returns:
        `{"suite", "title", "licence", "citation", "missing", "models": {MODEL: ...},
        "baselines": {"words", "length", "random"},
        "comparisons": [{"score", "a", "b", "n", "difference", "ci95", "p_bootstrap"}]}`; `missing` names the subsets
        without items. A model has `n`, `unscored`, `unscored_reasons`, `missing`, and by level (`overall`, `sections`,
        `pooled`, `subsets`) `{NAME: {"value", "ci95"}}`. Items with an unscored response are left out. If a subset has
        no other items, the model's `missing` names it, and scores that include it are left out, because they would not
        be comparable with those of other models. Intervals resample prompts within each subset; `ci95` is null, and
        `p_bootstrap` 1, if a subset of a score has fewer than six prompts. The baselines are computed on the items of
        the first model; values without an expectation under random rewards are null.
    """
    by_model: dict[str, list[ListScore]] = defaultdict(list)
    for score in scores:
        by_model[score.model].append(score)
    items = next(iter(by_model.values()), [])
    counts = _counts(suite.chance(items))
    return {
        "suite": suite.name,
        "title": suite.title,
        "licence": suite.licence,
        "citation": suite.citation,
        "missing": suite.scores(counts)[1],
        "models": {model: model_summary(suite, rows) for model, rows in by_model.items()},
        "baselines": {
            **({"words": _values(suite, suite.observe([_rated(s, words[s.id]) for s in items]))} if words else {}),
            "length": _values(suite, suite.observe([_rated(s, s.lengths) for s in items])),
            "random": _values(suite, suite.chance(items)),
        },
        "comparisons": [
            comparison
            for a, b in combinations(by_model, 2)
            for comparison in _comparisons(suite, a, by_model[a], b, by_model[b])
        ],
    }


def _rated(score: ListScore, rewards: Sequence[float]) -> ListScore:
    return replace(score, rewards=list(map(float, rewards)))


def model_summary(suite: Suite, scores: Sequence[ListScore]) -> dict[str, Any]:
    """Return one model's scores on a suite; see `summarise_suite`."""
    scored = _scored(scores)
    found = suite.observe(scored)
    means = _means(found)
    absent = set(suite.scores(_counts(suite.chance(scores)))[1])
    summary: dict[str, Any] = {
        "n": len(scored),
        "unscored": len(scores) - len(scored),
        "unscored_reasons": dict(Counter(score.unscored for score in scores if score.unscored)),
        "missing": [name for name in suite.scores(means.counts)[1] if name not in absent],
        **{level: {} for level in get_args(Level)},
    }
    for score in _whole_scores(suite, scores, means):
        interval = means.ci95(score, means.draws(score))
        summary[score.level][score.name] = {"value": means.value(score), "ci95": interval}
    return summary


def _whole_scores(suite: Suite, scores: Sequence[ListScore], means: _Means) -> list[Score]:
    """Return all scores except those that include a subset without scored items."""
    counts = {stratum: means.counts.get(stratum, 0) for stratum in _counts(suite.chance(scores))}
    every = suite.scores(counts)[0] if counts else []
    return [score for score in every if score.weights.keys() <= means.observed.keys()]


def _scored(scores: Sequence[ListScore]) -> list[ListScore]:
    return [score for score in scores if None not in score.rewards]


def _counts(observations: Sequence[Observation]) -> Mapping[Stratum, int]:
    return Counter(observation.stratum for observation in observations)


def _by_stratum(observations: Sequence[Observation]) -> dict[Stratum, list[Observation]]:
    found: dict[Stratum, list[Observation]] = defaultdict(list)
    for observation in observations:
        found[observation.stratum].append(observation)
    return found


def _means(observations: Sequence[Observation]) -> _Means:
    """Compute the strata's means. Measures of one subset, and models on the same items, share resampled prompts."""
    observed, drawn, few = {}, {}, set()
    for stratum, rows in _by_stratum(observations).items():
        values = np.array([row.value for row in rows])
        groups = [row.group for row in rows]
        observed[stratum] = float(values.mean())
        drawn[stratum] = resampled_means(values, groups, resamples=_RESAMPLES, seed=zlib.crc32(stratum[0].encode()))
        if few_groups(groups):
            few.add(stratum)
    return _Means(observed, drawn, frozenset(few), _counts(observations))


def _values(suite: Suite, observations: Sequence[Observation]) -> dict[str, dict[str, float | None]]:
    """Return a baseline's scores by level and name; None if a stratum's mean is unknown."""
    observed = {name: float(np.mean([r.value for r in rows])) for name, rows in _by_stratum(observations).items()}
    values: dict[str, dict[str, float | None]] = {level: {} for level in get_args(Level)}
    for score in suite.scores(_counts(observations))[0] if observed else ():
        value = _Means(observed).value(score)
        values[score.level][score.name] = None if math.isnan(value) else value
    return values


def _comparisons(
    suite: Suite, a: str, rows_a: Sequence[ListScore], b: str, rows_b: Sequence[ListScore]
) -> list[dict[str, Any]]:
    """Compare two models on the items that both scored: the overall score and the sections."""
    ids = {row.id for row in _scored(rows_a)} & {row.id for row in _scored(rows_b)}
    if not ids:
        return []
    found = [suite.observe([row for row in rows if row.id in ids]) for rows in (rows_a, rows_b)]
    means_a, means_b = map(_means, found)
    results = []
    for score in _whole_scores(suite, rows_a, means_a):
        if score.level in ("pooled", "subsets"):
            continue
        draws = means_a.draws(score) - means_b.draws(score)
        interval = means_a.ci95(score, draws)
        results.append(
            {
                "score": score.name,
                "a": a,
                "b": b,
                "n": len(ids),
                "difference": means_a.value(score) - means_b.value(score),
                "ci95": interval,
                "p_bootstrap": p_of_draws(draws) if interval else 1.0,
            }
        )
    return results
