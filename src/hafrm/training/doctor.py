"""Signs that a run does not learn, found in its metrics: each with the likely cause and the option to try.

`Watch` takes the lines of `metrics.jsonl` one by one, while a run trains or afterwards (`hafrm doctor`). Nothing here
loads torch. Accuracies are tested against chance by the number of pairs behind them; looks at a run become rarer as it
goes on, so that a healthy run is not called ill because it was looked at often.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hafrm.errors import ModelError
from hafrm.models.runinfo import read_manifest
from hafrm.training.arguments import pairs_per_step
from hafrm.training.metrics import METRICS_FILE, read_metrics

Row = Mapping[str, Any]

_FIRST_LOOK = 400
"""Pairs before the first look at a run; the next ones are at twice as many each."""
_SETTLED = 1600
"""Pairs after which accuracy should be above chance; earlier only at the end of a short run."""
_CLEARLY = 4.0
"""Standard errors from chance that count as clear; 2 count as a sign."""
_LN_2 = math.log(2)


@dataclass(frozen=True)
class Finding:
    """A sign that a run does not learn."""

    check: str
    step: int
    text: str
    """What was seen, the likely cause, and the option to try, in one line."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Circumstances:
    """What the metrics don't say about their run."""

    pairs_per_step: int
    eval_pairs: int = 0
    bradley_terry: bool = True
    """Whether the reward loss is Bradley-Terry's, which is ln 2 for equal rewards."""


@dataclass(frozen=True)
class _Stretch:
    """The later half of the pairs seen so far: what a run has come to."""

    rows: Sequence[Row]
    pairs: int
    step: int
    settled: bool
    """Whether a run that learns would be above chance by now."""

    def mean(self, name: str) -> float | None:
        """Return a metric's mean over the rows that have it; None if there are none."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return statistics.fmean(values) if values else None

    def median(self, name: str) -> float | None:
        """Return a metric's median over the rows that have it."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return statistics.median(values) if values else None


class Watch:
    """Watches a run's metrics and reports each sign once.

    Args:
        circumstances: What the metrics don't say.

    Example:
        >>> watch = Watch(Circumstances(pairs_per_step=16))
        >>> found = [finding for row in rows for finding in watch.add(row)] + watch.finish()
    """

    def __init__(self, circumstances: Circumstances) -> None:
        self.circumstances = circumstances
        self.found: dict[str, Finding] = {}
        self._rows: list[Row] = []
        self._evaluations: list[Row] = []
        self._pairs = 0
        self._next_look = _FIRST_LOOK

    def add(self, row: Row) -> list[Finding]:
        """Take the next line of metrics and return the signs that are new with it."""
        if "eval_loss" in row:
            self._evaluations.append(row)
            return self._new(_evaluation_checks(self._evaluations, self._rows, self.circumstances))
        if "loss" not in row:
            return []
        steps = row["step"] - (self._rows[-1]["step"] if self._rows else 0)
        self._pairs += max(1, steps) * self.circumstances.pairs_per_step
        self._rows.append(row)
        if self._pairs < self._next_look:
            return []
        self._next_look *= 2
        return self._look()

    def finish(self) -> list[Finding]:
        """Look once more at the end of the run, if it was long enough to tell anything."""
        return self._look(at_end=True) if self._pairs >= _FIRST_LOOK else []

    def _look(self, *, at_end: bool = False) -> list[Finding]:
        half = len(self._rows) // 2
        pairs = self._pairs - self._pairs * half // len(self._rows)
        settled = at_end or self._pairs >= _SETTLED
        late = _Stretch(self._rows[half:], pairs, self._rows[-1]["step"], settled)
        return self._new(found for check in _CHECKS if (found := check(self._rows, late, self.circumstances)))

    def _new(self, findings: Iterator[Finding]) -> list[Finding]:
        new = [finding for finding in findings if finding.check not in self.found]
        self.found |= {finding.check: finding for finding in new}
        return new


def examine(folder: Path) -> list[Finding]:
    """Find the signs in the metrics of a run, finished or not.

    Raises:
        ModelError: the folder has no metrics or no manifest of a training run.
    """
    path = folder / METRICS_FILE
    manifest = read_manifest(folder)
    if not path.is_file() or not manifest:
        raise ModelError(f"{folder} has no {METRICS_FILE} and manifest of a training run. Give the folder of a run.")
    watch = Watch(circumstances_of(manifest))
    for row in read_metrics(path):
        watch.add(row)
    watch.finish()
    return list(watch.found.values())


def circumstances_of(manifest: Mapping[str, Any]) -> Circumstances:
    """Return what a run's manifest says about its metrics."""
    effective = manifest.get("effective") or {}
    loss = manifest["config"].get("loss") or {}
    return Circumstances(
        pairs_per_step=pairs_per_step(effective, int(effective.get("world_size", 1))),
        eval_pairs=int((manifest["data"].get("eval") or {}).get("pairs", 0)),
        bradley_terry=loss.get("reward_loss", "bradley_terry") == "bradley_terry",
    )


def _above_chance(accuracy: float, pairs: int) -> float:
    """Return an accuracy's distance from chance in standard errors."""
    return (accuracy - 0.5) * 2 * math.sqrt(pairs)


def _chance(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    accuracy = late.mean("rewards/accuracies")
    if accuracy is None or not late.settled or not -_CLEARLY < _above_chance(accuracy, late.pairs) < 2:
        return None
    rate = max((row.get("learning_rate") or 0.0 for row in rows), default=0.0)
    return Finding(
        "chance",
        late.step,
        f"accuracy is {accuracy:.3f} over the last {late.pairs:,} pairs, not above chance: the labels may be random "
        f"(`hafrm data check`), or the learning rate, at most {rate:.3g}, does not fit: try training.learning_rate 10 "
        "times higher, or lower if the loss is above 0.7",
    )


def _constant(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    losses = [row["loss/reward"] for row in late.rows if row.get("loss/reward") is not None]
    if not run.bradley_terry or not losses or statistics.fmean(abs(loss - _LN_2) for loss in losses) > 0.01:
        return None
    return Finding(
        "constant rewards",
        late.step,
        "the reward loss stays at ln 2 (0.693), as if all rewards were equal: the reward head hardly moves. Raise "
        "training.learning_rate, train longer, or leave out head_init zero",
    )


def _diverged(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    loss = late.mean("loss/reward")
    if not run.bradley_terry or loss is None or loss < 1.0:
        return None
    return Finding(
        "diverged",
        late.step,
        f"the reward loss is {loss:.3g}, far above the 0.693 of equal rewards: steps overshoot. Lower "
        "training.learning_rate (by 10 or more), or add training.warmup_steps",
    )


def _drift(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    ends = late.mean("rewards/chosen"), late.mean("rewards/rejected")
    if late.mean("loss/reward") is None or ends[0] is None or ends[1] is None:
        return None
    level, margin = (ends[0] + ends[1]) / 2, abs(ends[0] - ends[1])
    first = ((rows[0].get("rewards/chosen") or 0.0) + (rows[0].get("rewards/rejected") or 0.0)) / 2
    if abs(level) < 5 * max(margin, 1.0) or abs(level - first) < 3 * max(margin, 1.0):
        return None
    return Finding(
        "drift",
        late.step,
        f"rewards of both responses have moved to about {level:.1f}, with {margin:.2f} between them: only differences "
        "are trained, so the level is free to drift. Set loss.centering 0.01",
    )


def _vanished(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    norm, accuracy = late.median("grad_norm"), late.mean("rewards/accuracies")
    if norm is None or norm > 1e-5 or (accuracy or 0.0) > 0.9:
        return None
    return Finding(
        "vanishing gradients",
        late.step,
        f"the gradient norm is {norm:.1e} although pairs are ranked wrongly: rewards are saturated or the trained "
        "weights don't reach the loss. Lower training.learning_rate, and check lora.targets and head_init",
    )


def _exploded(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    norms = [row["grad_norm"] for row in rows[: max(5, len(rows) // 10)] if row.get("grad_norm") is not None]
    norm = late.median("grad_norm")
    if not norms or norm is None or norm < 30 or norm < 10 * statistics.median(norms):
        return None
    return Finding(
        "exploding gradients",
        late.step,
        f"the gradient norm grew from {statistics.median(norms):.3g} to {norm:.3g}: training is unstable. Lower "
        "training.learning_rate, add training.warmup_steps, or lower training.max_grad_norm",
    )


def _flipped(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    accuracy = late.mean("rewards/accuracies")
    if accuracy is None or _above_chance(accuracy, late.pairs) > -_CLEARLY:
        return None
    return Finding(
        "flipped labels",
        late.step,
        f"accuracy is {accuracy:.3f} over the last {late.pairs:,} pairs, clearly below chance: `chosen` and `rejected` "
        "may be swapped. Look at some pairs: `hafrm data show`",
    )


def _length(rows: Sequence[Row], late: _Stretch, run: Circumstances) -> Finding | None:
    longer, agreement = late.mean("length/accuracies"), late.mean("length/agreement")
    accuracy = late.mean("rewards/accuracies")
    if longer is None or agreement is None or accuracy is None:
        return None
    rule = max(longer, 1 - longer)
    followed = agreement if longer >= 0.5 else 1 - agreement
    word = "longer" if longer >= 0.5 else "shorter"
    if followed >= max(0.8, accuracy) and _above_chance(followed, late.pairs) > _CLEARLY:
        what = f"the model prefers the {word} response in {followed:.0%} of the pairs, and the labels in {rule:.0%}"
    elif rule >= 0.8 and _above_chance(rule, late.pairs) > _CLEARLY:
        what = f"the {word} response is the better one in {rule:.0%} of the pairs"
    else:
        return None
    return Finding(
        "length",
        late.step,
        f"{what}: length alone may decide. Balance the lengths of the training pairs, and compare with `the longer "
        "response` of `hafrm evaluate`",
    )


_Check = Callable[[Sequence[Row], _Stretch, Circumstances], Finding | None]

_CHECKS: tuple[_Check, ...] = (_chance, _constant, _diverged, _drift, _vanished, _exploded, _flipped, _length)


def _evaluation_checks(evaluations: Sequence[Row], rows: Sequence[Row], run: Circumstances) -> Iterator[Finding]:
    last = evaluations[-1]
    accuracy = last.get("eval_rewards/accuracies")
    if accuracy is not None and run.eval_pairs and rows and _above_chance(accuracy, run.eval_pairs) < -_CLEARLY:
        yield Finding(
            "flipped labels",
            last["step"],
            f"validation accuracy is {accuracy:.3f} on {run.eval_pairs:,} pairs, clearly below chance: `chosen` and "
            "`rejected` are swapped in the training or in the validation pairs. Compare both: `hafrm data show`",
        )
    losses = [row["eval_loss"] for row in evaluations if row.get("eval_loss") is not None]
    best = min(range(len(losses)), key=losses.__getitem__) if losses else 0
    worse = losses[best:]
    if len(worse) < 4 or worse != sorted(worse) or worse[-1] < 1.05 * worse[0] or len(losses) < len(evaluations):
        return
    turn = evaluations[best]["step"]
    before, after = (
        [row["loss"] for row in rows if row.get("loss") is not None and (row["step"] > turn) is late]
        for late in (False, True)
    )
    if before and after and statistics.fmean(after) < statistics.fmean(before[-len(after) :]):
        yield Finding(
            "overfitting",
            last["step"],
            f"validation loss rose from {worse[0]:.3g} (step {turn}) to {worse[-1]:.3g} while training loss fell: the "
            "run learns its pairs by heart. Set early_stopping 3, fewer steps (training.max_steps) or a lower "
            "training.learning_rate, or add pairs",
        )
