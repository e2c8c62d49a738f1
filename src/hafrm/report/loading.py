"""Read and check an evaluation's folder, `results.json` and `scores.jsonl`, into typed values."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafrm.errors import DataError, UnreadableError
from hafrm.evaluation.results import Cell, Measured, Results
from hafrm.evaluation.scoring import RESULTS_FILE, SCORES_FILE, PairScore, read_scores


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The contents of an evaluation's folder."""

    results: Results
    scores: tuple[PairScore, ...]

    @property
    def models(self) -> list[str]:
        """The models, in order."""
        of_suites = [model for suite in self.results.suites.values() for model in suite["models"]]
        return list(dict.fromkeys([*(model for model, _ in self.results.cells), *of_suites]))

    @property
    def data(self) -> list[str]:
        """The data sets, in order."""
        return list(dict.fromkeys(data for _, data in self.results.cells))

    def on(self, data: str) -> dict[str, Cell]:
        """Return the models that were evaluated on a data set."""
        cells = self.results.cells
        return {model: cells[model, data] for model in self.models if (model, data) in cells}

    def measured_on(self, data: str) -> dict[str, Measured]:
        """Return the models that scored a pair of a data set."""
        return {model: cell.measured for model, cell in self.on(data).items() if cell.measured}

    def fullest_on(self, data: str) -> Measured | None:
        """Return the results of the model that scored most pairs of a data set, whose baselines are shown."""
        return max(self.on(data).values(), key=lambda cell: cell.n).measured

    def log_odds(self, model: str) -> bool:
        """Return whether a model's margins are log-odds; otherwise its results have no calibration error."""
        measured = [cell.measured for (name, _), cell in self.results.cells.items() if name == model]
        return all(each is None or each.ece is not None for each in measured)


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation from the folder to which `hafrm evaluate` wrote `results.json` and `scores.jsonl`.

    Raises:
        DataError: a file is missing or malformed, has a reward that is not a finite number, or the two files are of
            different evaluations.
    """
    values, scores = _read_json(folder / RESULTS_FILE), _read_finite_scores(folder / SCORES_FILE)
    try:
        found = Evaluation(results=Results.from_dict(values), scores=scores)
        cells, rows, _ = set(found.results.cells), found.results.rows, found.models  # reads the suites too
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / RESULTS_FILE} does not contain an evaluation's results ({type(error).__name__}: {error}). "
            "Evaluate again."
        ) from error
    strays = {(score.model, score.data) for score in scores} - cells
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
    return found


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
