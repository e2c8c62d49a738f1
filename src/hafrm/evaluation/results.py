"""Compute `results.json` from raw scores: accuracies with intervals, random and length-only baselines, comparisons."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hafrm.errors import ModelError
from hafrm.evaluation.scoring import PairScore
from hafrm.stats import (
    Floats,
    accuracy,
    accuracy_by_bin,
    bootstrap_interval,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    hits,
    holm_correction,
    mcnemar_test,
    paired_bootstrap,
    spearman,
    stated_probability,
)

_OF_LOG_ODDS = frozenset({"ece", "brier", "temperature", "ece_calibrated"})
"""Statistics that assume that sigmoid(margin) is the model's probability of its choice."""


def summarise(
    scores: Sequence[PairScore], calibration: Sequence[PairScore] = (), *, no_log_odds: Collection[str] = ()
) -> dict[str, Any]:
    """Compute `results.json` from raw scores.

    Args:
        scores: The scores of all models on all data sets.
        calibration: The models' scores on validation pairs, which set each model's temperature.
        no_log_odds: The models whose margins are not log-odds because their loss was not Bradley-Terry's.

    Returns:
        `{"rows": N, "models": {MODEL: {"data": {NAME: {...}}}}, "comparisons": [...]}`; N is the number of scores.
        Accuracy is the share of pairs whose better response is scored higher; a tie counts one half. `ci95` resamples
        whole prompt groups, and is null if there are fewer than six. `length_accuracy` is that of always picking the
        longer response, `random_accuracy` that of a coin, on the same pairs. `spearman_length` relates the rewards of
        all responses to their lengths in characters; its p-value treats them as independent. Each slice has a quarter
        of the pairs. With calibration scores, `temperature` is fitted to them (null if no finite one above 0 is best),
        and `ece_calibrated` is the `ece` of margins divided by it. These, `ece` and `brier` take sigmoid(margin) as the
        model's probability; they are null for models of `no_log_odds`. `p_holm` is `p_bootstrap` corrected for all
        comparisons here.
    """
    table = _cells(scores)
    temperatures = {model: _temperature(rows) for (model, _), rows in _cells(calibration).items()}
    models: dict[str, Any] = {}
    for (model, data), rows in table.items():
        summary = _summary(rows)
        if model in temperatures and summary["n"]:
            summary |= _calibrated(_margins(rows), temperatures[model])
        if model in no_log_odds:
            summary |= dict.fromkeys(_OF_LOG_ODDS & summary.keys())
        models.setdefault(model, {"data": {}})["data"][data] = summary
    comparisons = [
        comparison
        for data in dict.fromkeys(score.data for score in scores)
        for a, b in combinations([model for model in models if (model, data) in table], 2)
        if (comparison := _comparison(data, a, table[a, data], b, table[b, data]))
    ]
    if comparisons:
        corrected = holm_correction([comparison["p_bootstrap"] for comparison in comparisons])
        for comparison, p in zip(comparisons, corrected, strict=True):
            comparison["p_holm"] = float(p)
    return {"rows": len(scores), "models": models, "comparisons": comparisons}


def shortfalls(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each model and data set or suite in which some rows have no reward, with the reasons.

    Raises:
        ModelError: no row has a reward from any model.
    """
    cells = [(model, data, cell) for model, found in results["models"].items() for data, cell in found["data"].items()]
    for suite, found in results.get("suites", {}).items():
        cells += [(model, suite, cell) for model, cell in found["models"].items()]
    for model, data, cell in cells:
        if cell["unscored"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in cell["unscored_reasons"].items())
            yield f"{model} on {data}: {cell['unscored']} of {cell['n'] + cell['unscored']} rows unscored: {reasons}"
    if cells and not any(cell["n"] for _, _, cell in cells):
        raise ModelError(
            "No row has a reward. If rows are overlong, raise `--score.max_length` or set `--score.overlong truncate`."
        )


def uncalibrated(calibration: Sequence[PairScore]) -> Iterator[str]:
    """Yield one line for each model whose temperature can't be fitted to the calibration scores, with the reason."""
    for (model, _), rows in _cells(calibration).items():
        if _temperature(rows) is None:
            scored = len(_scored(rows))
            why = "the best one is 0 or infinite" if scored else "no pair has a reward"
            yield f"{model}: no temperature was fitted to {len(rows)} calibration pairs: {why}"


def _cells(scores: Sequence[PairScore]) -> dict[tuple[str, str], list[PairScore]]:
    table: dict[tuple[str, str], list[PairScore]] = defaultdict(list)
    for score in scores:
        table[score.model, score.data].append(score)
    return table


def _summary(rows: Sequence[PairScore]) -> dict[str, Any]:
    scored = _scored(rows)
    reasons = dict(Counter(row.unscored for row in rows if row.unscored))
    if not scored:
        return {"n": 0, "unscored": len(rows), "unscored_reasons": reasons}
    margins, groups = _margins(scored), [row.group for row in scored]
    lengths = np.array([row.length_chosen - row.length_rejected for row in scored], dtype=np.float64)
    stated = stated_probability(margins)
    found = accuracy(margins)
    return {
        "n": found.n,
        "unscored": len(rows) - len(scored),
        "unscored_reasons": reasons,
        "groups": len(set(groups)),
        "accuracy": found.value,
        "ci95": bootstrap_interval(hits(margins), groups),
        "ties": found.ties,
        "length_accuracy": accuracy(lengths).value,
        "random_accuracy": 0.5,
        "ece": expected_calibration_error(stated),
        "brier": brier_score(stated),
        "mean_margin": float(margins.mean()),
        "mean_reward_chosen": float(np.mean([row.reward_chosen for row in scored])),
        "mean_reward_rejected": float(np.mean([row.reward_rejected for row in scored])),
        "spearman_length": _length_correlation(scored),
        "accuracy_by_margin": _quarters(margins, np.abs(margins)),
        "accuracy_by_length_difference": _quarters(margins, lengths),
    }


def _length_correlation(rows: Sequence[PairScore]) -> dict[str, float] | None:
    """Correlate rewards with length; None if all rewards or all lengths are equal, or for a single pair."""
    rewards = [reward for row in rows for reward in (row.reward_chosen, row.reward_rejected)]
    lengths = [length for row in rows for length in (row.length_chosen, row.length_rejected)]
    if len(rows) < 2 or len(set(rewards)) == 1 or len(set(lengths)) == 1:
        return None
    found = spearman(np.array(rewards, dtype=np.float64), lengths)
    return {"value": found.value, "p_value": found.p_value}


def _quarters(margins: Floats, by: Floats) -> list[dict[str, float]]:
    """Return the accuracy in slices of about a quarter of the pairs; fewer slices if many values are equal."""
    return [
        {"low": each.low, "high": each.high, "n": each.accuracy.n, "accuracy": each.accuracy.value}
        for each in accuracy_by_bin(margins, by, quantiles=4)
        if each.accuracy
    ]


def _temperature(rows: Sequence[PairScore]) -> float | None:
    """Fit the temperature to calibration scores; None if no finite one above 0 is best, or no pair is scored."""
    scored = _scored(rows)
    found = fit_temperature(_margins(scored)) if scored else math.inf
    return found if 0 < found < math.inf else None


def _calibrated(margins: Floats, temperature: float | None) -> dict[str, float | None]:
    if temperature is None:
        return {"temperature": None}
    error = expected_calibration_error(stated_probability(margins / temperature))
    return {"temperature": temperature, "ece_calibrated": error}


def _comparison(
    data: str, a: str, rows_a: Sequence[PairScore], b: str, rows_b: Sequence[PairScore]
) -> dict[str, Any] | None:
    """Compare two models on the pairs that both scored; None if there are none."""
    scored_b = {row.id: row for row in _scored(rows_b)}
    both = [(row, scored_b[row.id]) for row in _scored(rows_a) if row.id in scored_b]
    if not both:
        return None
    margins_a, margins_b = _margins([x for x, _ in both]), _margins([y for _, y in both])
    paired = paired_bootstrap(hits(margins_a), hits(margins_b), [x.group for x, _ in both])
    return {
        "data": data,
        "a": a,
        "b": b,
        "n": len(both),
        "difference": paired.difference,
        "ci95": paired.interval,
        "p_bootstrap": paired.p_value,
        "p_mcnemar": _mcnemar(margins_a, margins_b),
    }


def _mcnemar(margins_a: Floats, margins_b: Floats) -> float:
    """Return the p-value of McNemar's test. Pairs on which a model ties are neither right nor wrong and don't count."""
    untied = (margins_a != 0) & (margins_b != 0)
    return mcnemar_test(margins_a[untied] > 0, margins_b[untied] > 0) if untied.any() else 1.0


def _scored(rows: Sequence[PairScore]) -> list[PairScore]:
    return [row for row in rows if row.margin is not None]


def _margins(rows: Sequence[PairScore]) -> Floats:
    return np.array([row.margin for row in _scored(rows)], dtype=np.float64)
