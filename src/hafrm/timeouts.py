"""A time limit for Python code of others, such as a chat template, in any thread.

One watching thread looks at all limits. It raises an error in a thread whose limit has passed, which the interpreter
delivers between two steps of Python code; a single long step of C code is not interrupted.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TimedOutError", "time_limit"]

_PERIOD = 0.25
"""Seconds between two looks at the limits."""

_deadlines: dict[int, float] = {}
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class TimedOutError(Exception):
    """The code under a time limit did not end in time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise an error in the code under this limit when its time is over; limits must not be nested.

    Raises:
        TimedOutError: the time is over.
    """
    thread = threading.get_ident()
    with _lock:
        _start_watching()
        _deadlines[thread] = time.monotonic() + seconds
    try:
        yield
    finally:
        with _lock:
            _deadlines.pop(thread, None)
        _deliver()


def _start_watching() -> None:
    global _watcher
    if _watcher is None or not _watcher.is_alive():  # a forked process has none
        _watcher = threading.Thread(target=_watch, name="hafrm-time-limits", daemon=True)
        _watcher.start()


def _watch() -> None:
    while True:
        time.sleep(_PERIOD)
        with _lock:
            now = time.monotonic()
            for thread in [thread for thread, deadline in _deadlines.items() if deadline < now]:
                del _deadlines[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimedOutError))


def _deliver() -> None:
    """Give the interpreter the chance to raise, before the limit's end, an error that was on its way."""
    for _ in range(2):  # it raises at the end of a loop's round
        pass
