"""Compute `results.json` from raw scores: accuracies with intervals, baselines without a model, comparisons."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from hafrm.errors import ModelError
from hafrm.evaluation.scoring import PairScore
from hafrm.evaluation.words import FITTED_ON
from hafrm.stats import (
    Correlation,
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

Interval = tuple[float, float]

SIGNIFICANT = 0.05
"""The level of tests: differences whose p-value, corrected by Holm, is below it are called decided."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Accuracy on the pairs with a value from `low` to `high`."""

    low: float
    high: float
    n: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature that fits the calibration pairs best, and the calibration error of margins divided by it."""

    temperature: float | None
    """None if no positive finite temperature is best, or margins are not log-odds."""
    ece_calibrated: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's results on the pairs of a data set that have both rewards.

    Accuracy is the share of pairs whose better response has the higher reward; a tie counts one half.
    """

    groups: int
    """Number of prompts."""
    accuracy: float
    ci95: Interval | None
    """Interval of the accuracy from resampling whole prompt groups; None if there are fewer than six."""
    ties: int
    length_accuracy: float
    """Accuracy of picking the longer response, on the same pairs."""
    words_accuracy: float | None = None
    """Accuracy of a bag of words on the same pairs (see `hafrm.evaluation.words`); None if there are too few."""
    random_accuracy: float = 0.5
    """Accuracy of guessing."""
    ece: float | None
    """Expected calibration error of sigmoid(margin); None if margins are not log-odds."""
    brier: float | None
    """Brier score of sigmoid(margin); None if margins are not log-odds."""
    mean_margin: float
    mean_reward_chosen: float
    mean_reward_rejected: float
    spearman_length: Correlation | None
    """Correlation of all rewards with lengths in characters; its p-value treats responses as independent."""
    accuracy_by_margin: tuple[Slice, ...]
    """Accuracy by quarters of the absolute margin."""
    accuracy_by_length_difference: tuple[Slice, ...]
    """Accuracy by quarters of how much longer the better response is, in characters."""
    calibration: Calibration | None = None
    """None if there are no calibration pairs."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Results of one model on one data set."""

    n: int
    """Number of scored pairs."""
    unscored: int
    """Number of pairs without a reward."""
    unscored_reasons: Mapping[str, int]
    measured: Measured | None
    """None if no pair was scored."""

    def as_dict(self) -> dict[str, Any]:
        """Return the cell as in `results.json`: one flat object, without `calibration` if that is None."""
        counts = {"n": self.n, "unscored": self.unscored, "unscored_reasons": dict(self.unscored_reasons)}
        if self.measured is None:
            return counts
        values = asdict(self.measured)
        calibration = values.pop("calibration")
        return counts | values | (calibration or {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """Restore a cell from `as_dict`, also after a round trip through JSON."""
        rest = dict(values)
        counts = {name: rest.pop(name) for name in ("n", "unscored", "unscored_reasons")}
        if not counts["n"]:
            return cls(**counts, measured=None)
        calibration = {name: rest.pop(name) for name in ("temperature", "ece_calibrated") if name in rest}
        spearman = rest["spearman_length"]
        nested: dict[str, Any] = {
            "ci95": _interval(rest["ci95"]),
            "spearman_length": spearman and Correlation(**spearman),
            "accuracy_by_margin": tuple(Slice(**each) for each in rest["accuracy_by_margin"]),
            "accuracy_by_length_difference": tuple(Slice(**each) for each in rest["accuracy_by_length_difference"]),
            "calibration": Calibration(**calibration) if calibration else None,
        }
        return cls(**counts, measured=Measured(**(rest | nested)))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of two models on the pairs of one data set that both scored."""

    data: str
    a: str
    b: str
    n: int
    difference: float
    """Accuracy of a minus accuracy of b."""
    ci95: Interval | None
    """None if there are fewer than six prompt groups."""
    p_bootstrap: float
    p_mcnemar: float
    p_holm: float = math.nan
    """`p_bootstrap`, corrected for all comparisons of the evaluation."""

    @property
    def better(self) -> str | None:
        """Return the model that is ahead by the corrected test, at the 5% level; None if neither is."""
        if self.ci95 is None or not self.p_holm < SIGNIFICANT:
            return None
        return self.a if self.difference > 0 else self.b


@dataclass(kw_only=True)
class Results:
    """The results of an evaluation; `as_dict` is the content of `results.json`."""

    rows: int
    """Number of scores."""
    cells: dict[tuple[str, str], Cell]
    """Results by model and data set."""
    comparisons: list[Comparison]
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results of `summarise_suite`, by suite."""
    servers: dict[str, dict[str, str]] = field(default_factory=dict)
    """The model that each reward server reports, with a note on what is unknown about it."""
    sources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Reports of the sources of each data set and suite."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        models: dict[str, Any] = {}
        for (model, data), cell in self.cells.items():
            models.setdefault(model, {"data": {}})["data"][data] = cell.as_dict()
        for model, server in self.servers.items():
            models.setdefault(model, {"data": {}})["server"] = server
        comparisons = [asdict(comparison) for comparison in self.comparisons]
        found = {"rows": self.rows, "bag_of_words": FITTED_ON, "models": models, "comparisons": comparisons}
        return found | ({"suites": self.suites} if self.suites else {}) | {"sources": self.sources}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """Restore results from `as_dict`, also after a round trip through JSON.

        Raises:
            KeyError, TypeError, AttributeError: the values are not an evaluation's results.
        """
        models = values["models"].items()
        return cls(
            rows=values["rows"],
            cells={
                (model, data): Cell.from_dict(cell) for model, entry in models for data, cell in entry["data"].items()
            },
            comparisons=[Comparison(**(row | {"ci95": _interval(row["ci95"])})) for row in values["comparisons"]],
            suites=values.get("suites", {}),
            servers={model: entry["server"] for model, entry in models if "server" in entry},
            sources=values.get("sources", {}),
        )


def _interval(ends: Sequence[float] | None) -> Interval | None:
    return None if ends is None else (ends[0], ends[1])


def summarise(
    scores: Sequence[PairScore],
    calibration: Sequence[PairScore] = (),
    *,
    no_log_odds: Collection[str] = (),
    words: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Results:
    """Compute results from raw scores.

    Args:
        calibration: The models' scores on calibration pairs, to which each model's temperature is fitted.
        no_log_odds: The models whose margins are not log-odds, because their loss was not the Bradley-Terry loss.
        words: Rewards of a bag of words, by data set and the pair's id.
    """
    table = _cells(scores)
    temperatures = {model: _temperature(rows) for (model, _), rows in _cells(calibration).items()}
    cells: dict[tuple[str, str], Cell] = {}
    for (model, data), rows in table.items():
        cell = _cell(rows)
        if (measured := cell.measured) is not None:
            if model in temperatures:
                temperature = None if model in no_log_odds else temperatures[model]
                measured = replace(measured, calibration=_calibration(_margins(rows), temperature))
            if model in no_log_odds:
                measured = replace(measured, ece=None, brier=None)
            if of_words := (words or {}).get(data):
                measured = replace(measured, words_accuracy=_words_accuracy(rows, of_words))
        cells[model, data] = replace(cell, measured=measured)
    comparisons = [
        comparison
        for data in dict.fromkeys(score.data for score in scores)
        for a, b in combinations([model for model in dict.fromkeys(m for m, _ in cells) if (model, data) in table], 2)
        if (comparison := _comparison(data, a, table[a, data], b, table[b, data]))
    ]
    if comparisons:
        corrected = holm_correction([comparison.p_bootstrap for comparison in comparisons])
        comparisons = [replace(each, p_holm=float(p)) for each, p in zip(comparisons, corrected, strict=True)]
    return Results(rows=len(scores), cells=cells, comparisons=comparisons)


_REASONS = {"overlong": "over the length limit (--score.max_length, --score.overlong truncate)"}
"""Reasons for missing rewards in words."""


def shortfalls(results: Results) -> Iterator[str]:
    """Yield a line with the reasons for each model and data set, or suite, with rows that have no reward.

    Raises:
        ModelError: no row has a reward from any model.
    """
    cells = [(model, data, cell.as_dict()) for (model, data), cell in results.cells.items()]
    for suite, found in results.suites.items():
        cells += [(model, suite, cell) for model, cell in found["models"].items()]
    for model, data, cell in cells:
        if cell["unscored"]:
            counts = cell["unscored_reasons"].items()
            reasons = ", ".join(f"{count} {_REASONS.get(reason, reason)}" for reason, count in counts)
            yield f"{model} on {data}: {cell['unscored']} of {cell['n'] + cell['unscored']} rows unscored: {reasons}"
    if cells and not any(cell["n"] for _, _, cell in cells):
        raise ModelError(
            "No row has a reward. If rows are too long, raise `--score.max_length` or set `--score.overlong truncate`."
        )


def uncalibrated(calibration: Sequence[PairScore]) -> Iterator[str]:
    """Yield a line with the reason for each model whose temperature can't be fitted to the calibration scores."""
    for (model, _), rows in _cells(calibration).items():
        if _temperature(rows) is None:
            scored = len(_scored(rows))
            why = "the best one is 0 or infinite" if scored else "no pair has a reward"
            yield f"{model}: could not fit a temperature to {len(rows)} calibration pairs: {why}"


def _cells(scores: Sequence[PairScore]) -> dict[tuple[str, str], list[PairScore]]:
    table: dict[tuple[str, str], list[PairScore]] = defaultdict(list)
    for score in scores:
        table[score.model, score.data].append(score)
    return table


def _cell(rows: Sequence[PairScore]) -> Cell:
    scored = _scored(rows)
    reasons = dict(Counter(row.unscored for row in rows if row.unscored))
    measured = _measured(scored) if scored else None
    return Cell(n=len(scored), unscored=len(rows) - len(scored), unscored_reasons=reasons, measured=measured)


def _measured(scored: Sequence[PairScore]) -> Measured:
    margins, groups = _margins(scored), [row.group for row in scored]
    lengths = np.array([row.length_chosen - row.length_rejected for row in scored], dtype=np.float64)
    stated = stated_probability(margins)
    found = accuracy(margins)
    return Measured(
        groups=len(set(groups)),
        accuracy=found.value,
        ci95=bootstrap_interval(hits(margins), groups),
        ties=found.ties,
        length_accuracy=accuracy(lengths).value,
        ece=expected_calibration_error(stated),
        brier=brier_score(stated),
        mean_margin=float(margins.mean()),
        mean_reward_chosen=float(np.mean([row.reward_chosen for row in scored])),
        mean_reward_rejected=float(np.mean([row.reward_rejected for row in scored])),
        spearman_length=_length_correlation(scored),
        accuracy_by_margin=_quarters(margins, np.abs(margins)),
        accuracy_by_length_difference=_quarters(margins, lengths),
    )


def _words_accuracy(rows: Sequence[PairScore], words: Mapping[str, Sequence[float]]) -> float:
    rewards = [words[row.id] for row in _scored(rows)]
    return accuracy(np.array([chosen - rejected for chosen, rejected in rewards], dtype=np.float64)).value


def _length_correlation(rows: Sequence[PairScore]) -> Correlation | None:
    """Correlate rewards with length; None if all rewards or all lengths are equal, or there is a single pair."""
    rewards = [reward for row in rows for reward in (row.reward_chosen, row.reward_rejected)]
    lengths = [length for row in rows for length in (row.length_chosen, row.length_rejected)]
    if len(rows) < 2 or len(set(rewards)) == 1 or len(set(lengths)) == 1:
        return None
    return spearman(np.array(rewards, dtype=np.float64), lengths)


def _quarters(margins: Floats, by: Floats) -> tuple[Slice, ...]:
    """Return the accuracy on each quarter of the pairs; there are fewer slices if many values are equal."""
    return tuple(
        Slice(low=each.low, high=each.high, n=each.accuracy.n, accuracy=each.accuracy.value)
        for each in accuracy_by_bin(margins, by, quantiles=4)
        if each.accuracy
    )


def _temperature(rows: Sequence[PairScore]) -> float | None:
    """Fit the temperature to calibration scores; None if no positive finite one is best, or no pair is scored."""
    scored = _scored(rows)
    found = fit_temperature(_margins(scored)) if scored else math.inf
    return found if 0 < found < math.inf else None


def _calibration(margins: Floats, temperature: float | None) -> Calibration:
    if temperature is None:
        return Calibration(temperature=None)
    error = expected_calibration_error(stated_probability(margins / temperature))
    return Calibration(temperature=temperature, ece_calibrated=error)


def _comparison(
    data: str, a: str, rows_a: Sequence[PairScore], b: str, rows_b: Sequence[PairScore]
) -> Comparison | None:
    """Compare two models on the pairs that both scored; None if there are none."""
    scored_b = {row.id: row for row in _scored(rows_b)}
    both = [(row, scored_b[row.id]) for row in _scored(rows_a) if row.id in scored_b]
    if not both:
        return None
    margins_a, margins_b = _margins([x for x, _ in both]), _margins([y for _, y in both])
    paired = paired_bootstrap(hits(margins_a), hits(margins_b), [x.group for x, _ in both])
    return Comparison(
        data=data,
        a=a,
        b=b,
        n=len(both),
        difference=paired.difference,
        ci95=paired.interval,
        p_bootstrap=paired.p_value,
        p_mcnemar=_mcnemar(margins_a, margins_b),
    )


def _mcnemar(margins_a: Floats, margins_b: Floats) -> float:
    """Return the p-value of McNemar's test; pairs on which a model ties are neither right nor wrong and don't count."""
    untied = (margins_a != 0) & (margins_b != 0)
    return mcnemar_test(margins_a[untied] > 0, margins_b[untied] > 0) if untied.any() else 1.0


def _scored(rows: Sequence[PairScore]) -> list[PairScore]:
    return [row for row in rows if row.margin is not None]


def _margins(rows: Sequence[PairScore]) -> Floats:
    return np.array([row.margin for row in _scored(rows)], dtype=np.float64)
