"""Signs that a run does not learn, found in its metrics: each with the likely cause and the option to try.

`Watch` takes the lines of `metrics.jsonl` one by one, while a run trains or afterwards (`hafrm doctor`). Nothing here
loads torch. Accuracies are tested against chance by the number of pairs behind them. The run is checked less and less
often, because every check is another chance of a false alarm.

To add a check, write a function that returns its text or None, and name it in `CHECKS`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hafrm.errors import ModelError
from hafrm.models.runinfo import read_manifest
from hafrm.training.arguments import pairs_per_step
from hafrm.training.metrics import METRICS_FILE, read_metrics

Row = Mapping[str, Any]

FIRST_LOOK = 400
"""Number of pairs before the first check of a run; each later check comes after twice as many."""
_SETTLED = 1600
"""Pairs after which accuracy should be above chance; earlier only at the end of a short run."""
_CLEARLY = 4.0
"""Standard errors from chance that count as clear in training; 2 count as a sign, 3 in validation."""
_LN_2 = math.log(2)


@dataclass(frozen=True)
class Finding:
    """A sign that a run does not learn."""

    check: str
    """Its name in `CHECKS`."""
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
    warmup_steps: int = 0
    bradley_terry: bool = True
    """Whether the reward loss is Bradley-Terry's, which is ln 2 for equal rewards."""
    dpo: bool = True
    """Whether the policy loss is DPO's, which begins at ln 2."""


@dataclass(frozen=True)
class Seen:
    """The part of a run that the checks see at one time."""

    run: Circumstances
    step: int
    rows: Sequence[Row]
    """The training lines so far."""
    evaluations: Sequence[Row]
    """The validation lines so far."""
    late: Sequence[Row] = ()
    """The training lines of the later half; none in a check right after a validation."""
    pairs: int = 0
    """The number of pairs behind the later half."""
    settled: bool = False
    """Whether a run that learns would be above chance by now."""

    def values(self, name: str) -> list[float]:
        """Return a metric's values in the later half."""
        return [row[name] for row in self.late if row.get(name) is not None]

    def mean(self, name: str) -> float | None:
        """Return a metric's mean over the later half; None without values."""
        return statistics.fmean(values) if (values := self.values(name)) else None

    def median(self, name: str) -> float | None:
        """Return a metric's median over the later half; None without values."""
        return statistics.median(values) if (values := self.values(name)) else None


class Watch:
    """Watches a run's metrics and reports each sign once.

    Example:
        >>> watch = Watch(Circumstances(pairs_per_step=16))
        >>> found = [finding for row in rows for finding in watch.add(row)] + watch.finish()
    """

    def __init__(self, circumstances: Circumstances) -> None:
        self.circumstances = circumstances
        self.found: dict[str, Finding] = {}
        """The signs so far, by the name of their check."""
        self._rows: list[Row] = []
        self._evaluations: list[Row] = []
        self.pairs = 0
        """The number of pairs trained on so far."""
        self._next_look = FIRST_LOOK

    def add(self, row: Row) -> list[Finding]:
        """Add the next line of metrics and return the new signs."""
        if "eval_loss" in row:
            self._evaluations.append(row)
            return self._new(Seen(self.circumstances, row["step"], self._rows, self._evaluations))
        if "loss" not in row:
            return []
        steps = row["step"] - (self._rows[-1]["step"] if self._rows else 0)
        self.pairs += max(1, steps) * self.circumstances.pairs_per_step
        self._rows.append(row)
        if self.pairs < self._next_look:
            return []
        self._next_look *= 2
        return self._look()

    def finish(self) -> list[Finding]:
        """Check once more at the end of the run."""
        return self._look(at_end=self.pairs >= FIRST_LOOK) if self._rows else []

    def _look(self, *, at_end: bool = False) -> list[Finding]:
        run, half = self.circumstances, len(self._rows) // 2
        pairs = self.pairs - self.pairs * half // len(self._rows)
        settled = at_end or self.pairs >= max(_SETTLED, 2 * run.warmup_steps * run.pairs_per_step)
        step, late = self._rows[-1]["step"], self._rows[half:]
        return self._new(Seen(run, step, self._rows, self._evaluations, late, pairs, settled))

    def _new(self, seen: Seen) -> list[Finding]:
        left = {name: check for name, check in CHECKS.items() if name not in self.found}
        new = {name: Finding(name, seen.step, text) for name, check in left.items() if (text := check(seen))}
        self.found |= new
        return list(new.values())


def examine(folder: Path, *, ended: bool = True) -> Watch:
    """Find the signs in the metrics of a run, finished or not: they are in the result's `found`, by name.

    Args:
        folder: The run's folder.
        ended: Whether to also apply the final check; if not, only the checks that run during training.

    Raises:
        ModelError: the folder has no metrics or no manifest of a training run.
    """
    path = folder / METRICS_FILE
    manifest = read_manifest(folder)
    if not path.is_file() or not manifest:
        raise ModelError(f"{folder} has no {METRICS_FILE} or no manifest of a training run. Give the folder of a run.")
    watch = Watch(circumstances_of(manifest))
    for row in read_metrics(path):
        watch.add(row)
    if ended:
        watch.finish()
    return watch


def circumstances_of(manifest: Mapping[str, Any]) -> Circumstances:
    """Return what a run's manifest says about its metrics."""
    effective = manifest.get("effective") or {}
    loss = manifest["config"].get("loss") or {}
    return Circumstances(
        pairs_per_step=pairs_per_step(effective, int(effective.get("world_size", 1))),
        eval_pairs=int((manifest["data"].get("eval") or {}).get("pairs", 0)),
        warmup_steps=int(effective.get("warmup_steps") or 0),
        bradley_terry=loss.get("reward_loss", "bradley_terry") == "bradley_terry",
        dpo=loss.get("policy_loss", "dpo") == "dpo",
    )


def _above_chance(accuracy: float, pairs: int) -> float:
    """Return an accuracy's distance from chance in standard errors."""
    return (accuracy - 0.5) * 2 * math.sqrt(pairs)


def _chance(seen: Seen) -> str | None:
    accuracy = seen.mean("rewards/accuracies")
    if accuracy is None or not seen.settled or not -_CLEARLY < _above_chance(accuracy, seen.pairs) < 2:
        return None
    rate = max((row.get("learning_rate") or 0.0 for row in seen.rows), default=0.0)
    return (
        f"accuracy is {accuracy:.3f} over the last {seen.pairs:,} pairs, not above chance: the labels may be random "
        f"(`hafrm data check`), or the learning rate, at most {rate:.3g}, does not fit: try training.learning_rate 10 "
        "times higher, or lower if the loss is above 0.7"
    )


def _constant(seen: Seen) -> str | None:
    losses = seen.values("loss/reward")
    if not seen.run.bradley_terry or not losses or 2 * seen.pairs < FIRST_LOOK:
        return None
    if statistics.fmean(abs(loss - _LN_2) for loss in losses) > 0.01:
        return None
    return (
        "the reward loss stays at ln 2 (0.693), as if all rewards were equal: the reward head hardly moves. Raise "
        "training.learning_rate, train longer, or leave out head_init zero"
    )


def _diverged(seen: Seen) -> str | None:
    """Find a loss far above ln 2 that has also risen; with margins, or a head that was kept, it may begin high."""
    kind = "reward" if seen.values("loss/reward") else "policy"
    loss, starts_at_ln_2 = seen.mean(f"loss/{kind}"), seen.run.bradley_terry if kind == "reward" else seen.run.dpo
    if not starts_at_ln_2 or loss is None or loss < 1.0:
        return None
    if loss <= (seen.rows[0].get(f"loss/{kind}") or 0.0):
        return None
    return (
        f"the {kind} loss is {loss:.3g}, far above the 0.693 of equal rewards: steps overshoot. Lower "
        "training.learning_rate (by 10 or more), or add training.warmup_steps"
    )


def _drift(seen: Seen) -> str | None:
    chosen, rejected = seen.mean("rewards/chosen"), seen.mean("rewards/rejected")
    if not seen.values("loss/reward") or chosen is None or rejected is None or _diverged(seen):
        return None
    level, margin = (chosen + rejected) / 2, abs(chosen - rejected)
    first = sum(seen.rows[0].get(f"rewards/{name}") or 0.0 for name in ("chosen", "rejected")) / 2
    if abs(level) < 5 * max(margin, 1.0) or abs(level - first) < 3 * max(margin, 1.0):
        return None
    return (
        f"rewards of both responses have moved to about {level:.1f}, with {margin:.2f} between them: only differences "
        "are trained, so the level is free to drift. Set loss.centering 0.01"
    )


def _vanished(seen: Seen) -> str | None:
    norm, accuracy = seen.median("grad_norm"), seen.mean("rewards/accuracies")
    if norm is None or norm > 1e-5 or (accuracy or 0.0) > 0.9:
        return None
    return (
        f"the gradient norm is {norm:.1e} although pairs are ranked wrongly: rewards are saturated or the trained "
        "weights don't reach the loss. Lower training.learning_rate, and check lora.targets and head_init"
    )


def _exploded(seen: Seen) -> str | None:
    early = seen.rows[: max(5, len(seen.rows) // 10)]
    norms = [row["grad_norm"] for row in early if row.get("grad_norm") is not None]
    norm = seen.median("grad_norm")
    if not norms or norm is None or norm < 30 or norm < 10 * statistics.median(norms):
        return None
    return (
        f"the gradient norm grew from {statistics.median(norms):.3g} to {norm:.3g}: training is unstable. Lower "
        "training.learning_rate, add training.warmup_steps, or lower training.max_grad_norm"
    )


def _flipped(seen: Seen) -> str | None:
    accuracy = seen.mean("rewards/accuracies")
    if accuracy is not None and _above_chance(accuracy, seen.pairs) < -_CLEARLY:
        return (
            f"accuracy is {accuracy:.3f} over the last {seen.pairs:,} pairs, clearly below chance: `chosen` and "
            "`rejected` may be swapped. Look at some pairs: `hafrm data show`"
        )
    held_out = seen.evaluations[-1].get("eval_rewards/accuracies") if seen.evaluations and seen.rows else None
    if held_out is not None and _above_chance(held_out, seen.run.eval_pairs) < -3:
        return (
            f"validation accuracy is {held_out:.3f} on {seen.run.eval_pairs:,} pairs, clearly below chance: `chosen` "
            "and `rejected` are swapped in the training or in the validation pairs. Compare both: `hafrm data show`"
        )
    return None


def _length(seen: Seen) -> str | None:
    longer, agreement = seen.mean("length/accuracies"), seen.mean("length/agreement")
    accuracy = seen.mean("rewards/accuracies")
    if longer is None or agreement is None or accuracy is None:
        return None
    rule = max(longer, 1 - longer)
    followed = agreement if longer >= 0.5 else 1 - agreement
    word = "longer" if longer >= 0.5 else "shorter"
    if followed >= max(0.8, accuracy) and _above_chance(followed, seen.pairs) > _CLEARLY:
        what = f"the model prefers the {word} response in {followed:.0%} of the pairs, and the labels in {rule:.0%}"
    elif rule >= 0.8 and _above_chance(rule, seen.pairs) > _CLEARLY:
        what = f"the {word} response is the better one in {rule:.0%} of the pairs"
    else:
        return None
    return (
        f"{what}: length alone may decide. Balance the lengths of the training pairs, and compare with `the longer "
        "response` of `hafrm evaluate`"
    )


def _overfitting(seen: Seen) -> str | None:
    losses = [row["eval_loss"] for row in seen.evaluations if row.get("eval_loss") is not None]
    if len(losses) < len(seen.evaluations) or not losses:
        return None
    best = min(range(len(losses)), key=losses.__getitem__)
    worse, turn = losses[best:], seen.evaluations[best]["step"]
    if len(worse) < 4 or worse != sorted(worse) or worse[-1] < 1.05 * worse[0]:
        return None
    trained = [row for row in seen.rows if row.get("loss") is not None]
    before = [row["loss"] for row in trained if row["step"] <= turn]
    after = [row["loss"] for row in trained if row["step"] > turn]
    if not before or not after or statistics.fmean(after) >= statistics.fmean(before[-len(after) :]):
        return None
    return (
        f"validation loss rose from {worse[0]:.3g} (step {turn}) to {worse[-1]:.3g} while training loss fell: the "
        "model memorizes the training pairs. Set early_stopping 3, fewer steps (training.max_steps) or a lower "
        "training.learning_rate, or add pairs"
    )


CHECKS: Mapping[str, Callable[[Seen], str | None]] = {
    "chance": _chance,
    "constant rewards": _constant,
    "diverged": _diverged,
    "drift": _drift,
    "vanishing gradients": _vanished,
    "exploding gradients": _exploded,
    "flipped labels": _flipped,
    "length": _length,
    "overfitting": _overfitting,
}
"""The checks by name; each returns what it found, the likely cause and the option to try, or None."""
