"""Read and check an evaluation's folder, `results.json` and `scores.jsonl`, into typed values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hafrm.errors import DataError, UnreadableError
from hafrm.evaluation.scoring import RESULTS_FILE, SCORES_FILE, PairScore, read_scores

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's results on a data set, over the pairs that it scored. Accuracies are in [0, 1]."""

    accuracy: float
    ci95: Interval | None
    """None if the pairs have too few prompts for resampling them."""
    length_accuracy: float
    random_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model on one data set."""

    n: int
    """Number of scored pairs."""
    unscored: int
    """Number of pairs without a reward."""
    groups: int
    """Number of prompts of the scored pairs."""
    measured: Measured | None
    """None if no pair was scored."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the pairs of one data set that both scored; the difference is a's accuracy minus b's."""

    data: str
    a: str
    b: str
    n: int
    difference: float
    ci95: Interval | None
    """None if there are too few prompts."""
    p_bootstrap: float
    p_holm: float
    """`p_bootstrap`, corrected for all comparisons of the evaluation."""
    p_mcnemar: float

    @property
    def better(self) -> str | None:
        """Return the model that the interval of the difference favours; None if it contains 0 or there is none."""
        low, high = self.ci95 or (0.0, 0.0)
        return self.a if low > 0 else self.b if high < 0 else None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The contents of an evaluation's folder."""

    models: tuple[str, ...]
    data: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    """Cells by model and data set; combinations that were not evaluated are absent."""
    comparisons: tuple[Comparison, ...]
    scores: tuple[PairScore, ...]
    no_log_odds: frozenset[str] = frozenset()
    """The models whose margins are not log-odds: their results have no calibration error."""
    suites: Mapping[str, Any] = field(default_factory=dict)
    """The results of `summarise_suite`, by the suite's name; see `hafrm.report.tables`."""

    def on(self, data: str) -> dict[str, Cell]:
        """Return the models that were evaluated on a data set."""
        return {model: self.cells[model, data] for model in self.models if (model, data) in self.cells}

    def measured_on(self, data: str) -> dict[str, Measured]:
        """Return the models that scored a pair of a data set."""
        return {model: cell.measured for model, cell in self.on(data).items() if cell.measured}

    def fullest_on(self, data: str) -> Measured | None:
        """Return the results of the model that scored most pairs of a data set: its baselines are used for the data
        set.
        """
        return max(self.on(data).values(), key=lambda cell: cell.n).measured


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation.

    Args:
        folder: The folder to which `hafrm evaluate` wrote `results.json` and `scores.jsonl`.

    Raises:
        DataError: a file is missing or malformed, has a reward that is not a finite number, or the two files are of
            different evaluations.
    """
    results, scores = _read_json(folder / RESULTS_FILE), _read_finite_scores(folder / SCORES_FILE)
    try:
        cells = {
            (model, data): _cell(cell)
            for model, entry in results["models"].items()
            for data, cell in entry["data"].items()
        }
        no_log_odds = {
            model
            for model, entry in results["models"].items()
            if any(cell["n"] and cell["ece"] is None for cell in entry["data"].values())
        }
        rows = results["rows"]
        suites = dict(results.get("suites", {}))
        suite_models = [model for suite in suites.values() for model in suite["models"]]
        comparisons = tuple(_comparison(row) for row in results["comparisons"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / RESULTS_FILE} does not contain an evaluation's results ({type(error).__name__}: {error}). "
            "Evaluate again."
        ) from error
    strays = {(score.model, score.data) for score in scores} - set(cells)
    if strays:
        model, data = min(strays)
        raise DataError(
            f"{folder}: {SCORES_FILE} has scores of {model} on {data}, which {RESULTS_FILE} does not mention, "
            "so they are from different evaluations. Evaluate again."
        )
    if rows != len(scores):
        raise DataError(
            f"{folder}: {SCORES_FILE} has {len(scores)} scores, but {RESULTS_FILE} was computed from {rows}, so one is "
            "cut short or from another evaluation. Evaluate again."
        )
    return Evaluation(
        models=tuple(dict.fromkeys([*(model for model, _ in cells), *suite_models])),
        data=tuple(dict.fromkeys(data for _, data in cells)),
        cells=cells,
        comparisons=comparisons,
        scores=scores,
        no_log_odds=frozenset(no_log_odds),
        suites=suites,
    )


def _read_json(path: Path) -> Any:
    _require(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path} can't be read as JSON ({error}). Evaluate again.") from error


def _read_finite_scores(path: Path) -> tuple[PairScore, ...]:
    _require(path)
    scores = tuple(read_scores(path))
    for number, score in enumerate(scores, 1):
        for reward in (score.reward_chosen, score.reward_rejected):
            if reward is not None and not math.isfinite(reward):
                raise DataError(
                    f"{path}, line {number}: the reward {reward} of pair {score.id} is not finite. "
                    "Look for an overflow in the model (for example from half precision), and evaluate it again."
                )
    return scores


def _require(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing, so there is nothing to show. Write it with `hafrm evaluate`.")


def _cell(raw: Mapping[str, Any]) -> Cell:
    measured = None
    if raw["n"]:
        measured = Measured(
            accuracy=raw["accuracy"],
            ci95=_interval(raw["ci95"]),
            length_accuracy=raw["length_accuracy"],
            random_accuracy=raw["random_accuracy"],
        )
    return Cell(n=raw["n"], unscored=raw["unscored"], groups=raw["groups"] if measured else 0, measured=measured)


def _comparison(raw: Mapping[str, Any]) -> Comparison:
    values = {name: raw[name] for name in ("data", "a", "b", "n", "difference", "p_bootstrap", "p_holm", "p_mcnemar")}
    return Comparison(**values, ci95=_interval(raw["ci95"]))


def _interval(raw: Sequence[float] | None) -> Interval | None:
    return None if raw is None else (raw[0], raw[1])
