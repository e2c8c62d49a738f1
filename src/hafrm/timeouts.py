"""Time limits for third-party Python code, such as chat templates, in any thread.

A watcher thread checks all limits and raises an error in threads that exceed theirs. The interpreter delivers the
error between two bytecode instructions; a single long call into C code is not interrupted.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PERIOD = 0.25
"""Seconds between checks of the limits."""

_deadlines: dict[int, float] = {}
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class TimedOutError(Exception):
    """Code exceeded its time limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimedOutError in the block once the time limit is exceeded; limits must not be nested."""
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
    if _watcher is None or not _watcher.is_alive():  # a forked process has no watcher
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
    """Give the interpreter a chance to raise a pending error inside the block."""
    for _ in range(2):  # pending errors are raised at the end of a loop iteration
        pass
