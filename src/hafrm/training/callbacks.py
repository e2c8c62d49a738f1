"""Progress of a training run: a progress line for people and `metrics.jsonl` for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from hafrm.errors import HafrmError, first_line
from hafrm.progress import time_left
from hafrm.training.doctor import Circumstances, Finding, Watch
from hafrm.training.metrics import METRICS_FILE, add_metrics, keep_metrics, read_metrics

Logs = dict[str, float] | None

_PAGE_EVERY_S = 5.0
"""Minimum seconds between two writes of a page; one that takes long to write is written less often."""
_LINE_EVERY_S = 10.0
"""Minimum seconds between two progress lines without a terminal."""


def print_line(text: str, console: Console | None = None) -> None:
    """Print a line verbatim, by default on standard error: it may contain what rich takes for markup, such as paths."""
    (console or Console(stderr=True)).print(text, highlight=False, markup=False, soft_wrap=True)


class MetricsFile(TrainerCallback):
    """Appends every log line of training to `metrics.jsonl`, and reports each sign that the run does not learn, once.

    On resuming, it first drops the lines after the checkpoint. What is logged after the last step (duration, validation
    of the kept checkpoint) belongs to no step and is left out; the manifest records it. For the signs, see
    `hafrm.training.doctor`.
    """

    def __init__(self, folder: Path, circumstances: Circumstances, say: Callable[[str], None]) -> None:
        self.path, self.watch, self.say = folder / METRICS_FILE, Watch(circumstances), say
        self._training = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that will be repeated, and read those of earlier steps."""
        self._training = True
        if state.is_world_process_zero:
            keep_metrics(self.path, state.global_step)
            for row in read_metrics(self.path):
                self.watch.add(row)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        """Append one line, and report new signs."""
        if self._training and state.is_world_process_zero and logs and "train_runtime" not in logs:
            add_metrics(self.path, state.global_step, logs)
            self._report(self.watch.add({**logs, "step": state.global_step}))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check once more, and stop writing: what is logged after training belongs to no step."""
        self._training = False
        if state.is_world_process_zero:
            self._report(self.watch.finish())

    def _report(self, found: Sequence[Finding]) -> None:
        for each in found:
            self.say(f"warning: step {each.step}: {each.check}: {each.text}.")


class LivePage(TrainerCallback):
    """Rewrites a page of the run while it trains, rarely enough not to slow training down.

    If the page can't be written, training continues without it after a warning. `write` is given the number of steps of
    the run, or None once training has ended.
    """

    def __init__(self, write: Callable[[int | None], object], say: Callable[[str], None]) -> None:
        self.write, self.say = write, say
        self.began = False
        """Whether training began in this process, and this process writes the page."""
        self._given_up = False
        self._next = 0.0

    def update(self, steps: int | None = None) -> None:
        """Write the page now."""
        if self._given_up:
            return
        try:
            self.write(steps)
        except (OSError, HafrmError) as error:
            self._given_up = True
            self.say(f"warning: the run's page is no longer written: {first_line(error)}")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin."""
        self.began = state.is_world_process_zero

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the page if it is time."""
        now = time.monotonic()
        if self.began and now >= self._next:
            self.update(state.max_steps)
            taken = time.monotonic() - now
            self._next = now + max(_PAGE_EVERY_S, 100 * taken)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the page with the last step."""
        if self.began:
            self.update(state.max_steps)


def best_step(state: TrainerState) -> int | None:
    """Return the step of the best checkpoint so far, or None."""
    best = state.best_model_checkpoint
    return int(best.rsplit("-", 1)[1]) if best else None


class ConsoleProgress(TrainerCallback):
    """Shows a progress bar on a terminal, otherwise a plain line every few seconds; writes to standard error.

    If the best checkpoint is kept, the validation after training is labelled as that checkpoint's.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._last = 0.0
        self._began, self._first_step = 0.0, 0
        self._training = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        self._training = True
        self._began, self._first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero and self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        """Show the latest numbers."""
        if not state.is_world_process_zero or not logs:
            return
        evaluated = "eval_loss" in logs
        if not evaluated and "loss" not in logs:
            return
        text = _summary(logs, "eval_" if evaluated else "")
        if self._bar is not None and not evaluated:
            self._bar.update(self._task, completed=state.global_step, description=text)
        elif evaluated or time.monotonic() - self._last >= _LINE_EVERY_S or state.global_step == state.max_steps:
            self._last = time.monotonic()
            best = best_step(state) if args.load_best_model_at_end and not self._training else None
            label = "validation" if evaluated else "training"
            of = f"step {state.global_step}/{state.max_steps}" if best is None else f"best checkpoint (step {best})"
            self.say(f"{of} {label}: {text}{self._left(state)}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop the bar."""
        self._training = False
        self.close()

    def _left(self, state: TrainerState) -> str:
        """Return the time left at the speed so far; empty after training."""
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        return time_left(self._began, done, left) if self._training else ""

    def say(self, text: str) -> None:
        """Print a line verbatim."""
        print_line(text, self.console)

    def close(self) -> None:
        """Release the terminal, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _summary(logs: dict[str, float], prefix: str) -> str:
    shown = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    return " ".join(f"{label} {logs[prefix + name]:.3f}" for label, name in shown.items() if prefix + name in logs)
