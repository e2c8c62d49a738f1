"""From raw scores to `results.json`: accuracies with intervals beside random and length-only, and comparisons."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hafrm.evaluation.scoring import PairScore
from hafrm.stats import (
    accuracy,
    bootstrap_interval,
    expected_calibration_error,
    hits,
    mcnemar_test,
    paired_bootstrap,
)

__all__ = ["summarise"]

Floats = NDArray[np.float64]


def summarise(scores: Sequence[PairScore]) -> dict[str, Any]:
    """Compute `results.json` from raw scores.

    Returns:
        `{"models": {MODEL: {"data": {NAME: {...}}}}, "comparisons": [...]}`. Accuracy is the share of pairs whose
        better response is scored higher, a tie counting one half; `ci95` resamples whole prompt groups;
        `length_accuracy` is that of picking the longer response, `random_accuracy` that of a coin, on the same pairs.
    """
    table: dict[tuple[str, str], list[PairScore]] = defaultdict(list)
    for score in scores:
        table[score.model, score.data].append(score)
    models: dict[str, Any] = {}
    for (model, data), rows in table.items():
        models.setdefault(model, {"data": {}})["data"][data] = _summary(rows)
    comparisons = [
        comparison
        for data in dict.fromkeys(score.data for score in scores)
        for a, b in combinations([model for model in models if (model, data) in table], 2)
        if (comparison := _comparison(data, a, table[a, data], b, table[b, data]))
    ]
    return {"models": models, "comparisons": comparisons}


def _summary(rows: Sequence[PairScore]) -> dict[str, Any]:
    scored = [row for row in rows if row.margin is not None]
    reasons = dict(Counter(row.unscored for row in rows if row.unscored))
    if not scored:
        return {"n": 0, "unscored": len(rows), "unscored_reasons": reasons}
    margins, groups = _margins(scored), [row.group for row in scored]
    lengths = np.array([row.length_chosen - row.length_rejected for row in scored], dtype=np.float64)
    found = accuracy(margins)
    interval = bootstrap_interval(hits(margins), groups)
    return {
        "n": found.n,
        "unscored": len(rows) - len(scored),
        "unscored_reasons": reasons,
        "groups": len(set(groups)),
        "accuracy": found.value,
        "ci95": [interval.low, interval.high],
        "ties": found.ties,
        "length_accuracy": accuracy(lengths).value,
        "random_accuracy": 0.5,
        "ece": expected_calibration_error(_sigmoid(margins)),
        "mean_margin": float(margins.mean()),
        "mean_reward_chosen": float(np.mean([row.reward_chosen for row in scored])),
        "mean_reward_rejected": float(np.mean([row.reward_rejected for row in scored])),
    }


def _comparison(
    data: str, a: str, rows_a: Sequence[PairScore], b: str, rows_b: Sequence[PairScore]
) -> dict[str, Any] | None:
    """Two models on the pairs that both scored; None where there are none."""
    scored_b = {row.id: row for row in rows_b if row.margin is not None}
    both = [(row, scored_b[row.id]) for row in rows_a if row.margin is not None and row.id in scored_b]
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
        "ci95": [paired.interval.low, paired.interval.high],
        "p_bootstrap": paired.p_value,
        "p_mcnemar": mcnemar_test(margins_a > 0, margins_b > 0),
    }


def _margins(rows: Sequence[PairScore]) -> Floats:
    return np.array([row.margin for row in rows], dtype=np.float64)


def _sigmoid(margins: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(margins / 2)))
