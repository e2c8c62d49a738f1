"""A line on standard error that says what a command is doing: redrawn in a terminal, else printed now and then."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

EVERY_S = 30.0
"""Seconds between printed lines without a terminal."""


class ProgressLine:
    """Shows what is being done while its block runs; without a terminal at most a line every half a minute.

    It begins with the text `first`, by default on standard error.

    Example:
        >>> with ProgressLine("loading") as line:
        ...     line.show("100 pairs done")
        ...     line.say("1 row was skipped")
    """

    def __init__(self, first: str, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._status = self.console.status(escape(first))
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def show(self, text: str) -> None:
        """Replace the line."""
        self._status.update(escape(text))
        if not self.console.is_terminal and time.monotonic() - self._printed >= EVERY_S:
            self._printed = time.monotonic()
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line that stays, verbatim: paths may contain what rich takes for markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def time_left(began: float, done: int, left: int) -> str:
    """Return ", 0:01:20 left" at the speed so far; empty at the end, or before there is a speed.

    Args:
        began: When the first of the done steps began, by `time.monotonic`.
        done: Number of steps since then.
        left: Number of steps that are left.
    """
    if done <= 0 or left <= 0:
        return ""
    return f", {timedelta(seconds=round((time.monotonic() - began) * left / done))} left"
