"""A run's checkpoints, what it measured at each, and which of two runs' checkpoints are alike (Figure 2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from scipy import optimize

from hafrm.errors import DataError, ModelError

__all__ = ["MATCHINGS", "Checkpoint", "Match", "Matching", "match_checkpoints", "run_checkpoints"]

Matching = Literal["reward", "acc", "loss", "margin", "step"]
"""In what two checkpoints are alike (Appendix E.1): the oracle's reward of their responses, or, on the validation
pairs, the accuracy, loss or mean margin of their policy heads, or the number of steps."""

MATCHINGS: tuple[Matching, ...] = get_args(Matching)

_METRICS = {"acc": "eval_policy/accuracies", "loss": "eval_loss/policy", "margin": "eval_policy/margins"}
"""Of the policy head in both runs: the hybrid's total loss and reward margins are on another scale than DPO's."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run."""

    step: int
    folder: Path
    values: Mapping[str, float]
    """What two checkpoints can be alike in, by `Matching`; "reward" only once responses were scored."""


@dataclass(frozen=True)
class Match:
    """A checkpoint of the first run beside the one of the second that is like it."""

    by: Matching
    first: Checkpoint
    second: Checkpoint

    @property
    def gap(self) -> float:
        """By how much they differ in what they should be alike in."""
        return abs(self.first.values[self.by] - self.second.values[self.by])


def run_checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, in the order of their steps, with the validation metrics of the step.

    Raises:
        ModelError: the run kept no checkpoint, or none of them was evaluated with its policy head.
    """
    measured = _evaluations(run)
    found = []
    for folder in run.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        values = measured.get(int(number)) if number.isdecimal() else None
        if values is not None and all(name in values for name in _METRICS.values()):
            kept = {by: float(values[name]) for by, name in _METRICS.items()}
            found.append(Checkpoint(int(number), folder, kept | {"step": float(number)}))
    if not found:
        raise ModelError(
            f"{run} has no checkpoint with the validation metrics of a policy head. Train it with `--method haf` or "
            "`dpo`, validation pairs, and `--training.save_total_limit null`, so that all checkpoints are kept."
        )
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _evaluations(run: Path) -> dict[int, dict[str, Any]]:
    """The validation metrics by step."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line]
        return {int(row["step"]): row for row in rows if "eval_loss" in row}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{run / 'metrics.jsonl'} can't be read ({error}). Give the folder of a run.") from error


def match_checkpoints(first: Sequence[Checkpoint], second: Sequence[Checkpoint], by: Matching) -> list[Match]:
    """Pair checkpoints of two runs, each at most once, so that they differ the least in all.

    The paper does not say how near "similar" is: every checkpoint of the shorter list is matched, and `Match.gap` says
    how well.

    Raises:
        DataError: a checkpoint was not measured in what they should be alike in.
    """
    if any(by not in checkpoint.values for checkpoint in (*first, *second)):
        raise DataError(f"Some checkpoints have no value of {by!r} to be matched by.")
    gaps = [[abs(one.values[by] - other.values[by]) for other in second] for one in first]
    rows, columns = optimize.linear_sum_assignment(np.array(gaps))
    return [Match(by, first[row], second[column]) for row, column in zip(rows, columns, strict=True)]
