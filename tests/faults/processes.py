"""Run `hafrm ...` in processes that are forked from one with all imports, and end them in the middle of their work.

A process can kill itself before its n-th change to the file system (counted by an audit hook, whichever library makes
it), be killed by the kernel in the middle of a write that exceeds the allowed file size (in Python, Rust or C++), or be
killed by its parent after some time.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

PRELOADED = ["tests.faults.preload"]

_CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LEAST_LIMIT = 4096  # bytes, enough for the output of a command


@dataclass(frozen=True)
class Kill:
    """When a process dies: before a change to files, in a write past so many bytes of a file, or after some time."""

    change: int | None = None
    size: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Its exit status, or the signal that ended it as a negative number."""
    said: str
    changes: int = 0
    """Number of changes to files that it made; 0 if it was killed."""
    seconds: float = 0.0
    elsewhere: list[str] = field(default_factory=list)
    """Paths that it opened for writing, created or moved outside its own folder."""

    @property
    def killed(self) -> bool:
        return self.status < 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings of a process.

    Args:
        own: The folder that must contain all of the command's files.
        work: The subfolder in which changes count.
        log: The file for its output, next to which a report is written.
        environment: More environment variables.
        values: Values of modules, by their dotted names.
        faults: Called first in the process, to break something there.
    """

    own: Path
    work: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    faults: Sequence[Callable[[], None]] = ()


def hafrm(argv: Sequence[str], setting: Setting, kill: Kill | None = None) -> Ended:
    """Run a command to its end, or until it is killed."""
    kill = kill or Kill()
    process = start(argv, setting, kill)
    process.join(timeout=kill.seconds if kill.seconds is not None else 300)
    if process.exitcode is None:
        process.kill()
        process.join()
    return ended(process, setting)


def start(argv: Sequence[str], setting: Setting, kill: Kill = Kill()) -> Any:
    """Start a command."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the server preloads from there
    try:
        process = context.Process(target=_run, args=(list(argv), setting, kill), daemon=True)
        process.start()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return process


def ended(process: Any, setting: Setting) -> Ended:
    """Return how a process that has ended did so."""
    said = setting.log.read_text(errors="replace") if setting.log.exists() else ""
    report = json.loads(_report(setting).read_text()) if _report(setting).exists() else {}
    return Ended(process.exitcode, said, **report)


def draw_kills(undisturbed: Ended, sizes: Sequence[int], count: int, seed: str) -> list[Kill]:
    """Draw moments at which to kill a command: of each kind, a third.

    Args:
        undisturbed: A run that was not killed.
        sizes: The sizes of its files.
        count: How many moments.
        seed: The draw's seed.
    """
    random = Random(seed)
    longest = max(max(sizes), LEAST_LIMIT + 1)
    kinds: list[Callable[[], Kill]] = [
        lambda: Kill(change=random.randint(1, undisturbed.changes)),
        lambda: Kill(size=random.randint(LEAST_LIMIT, longest - 1)),
        lambda: Kill(seconds=random.uniform(0, undisturbed.seconds)),
    ]
    return [kinds[number % 3]() for number in range(count)]


def _report(setting: Setting) -> Path:
    return setting.log.with_suffix(".report")


def _run(argv: list[str], setting: Setting, kill: Kill) -> None:
    """The part that runs in the process."""
    start = time.monotonic()
    _report(setting).unlink(missing_ok=True)
    log = os.open(setting.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(setting.environment)
    for name, value in setting.values.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    for fault in setting.faults:
        fault()
    if kill.size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores the signal and would raise an error instead
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (kill.size, kill.size))
    counter = _Counter(setting, kill.change)
    sys.addaudithook(counter)
    from hafrm.cli import main

    status = main(argv)
    report = {"changes": counter.count, "seconds": time.monotonic() - start, "elsewhere": list(counter.elsewhere)}
    _report(setting).write_text(json.dumps(report))
    sys.stdout.flush()
    sys.exit(status)


class _Counter:
    """Counts changes under a folder, and dies before one of them."""

    def __init__(self, setting: Setting, last: int | None) -> None:
        self.folder, self.own, self.last = str(setting.work), (str(setting.own), "/dev/"), last
        self.count = 0
        self.elsewhere: set[str] = set()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _CHANGES or isinstance(args[0], int) or (event == "open" and not (args[2] or 0) & _WRITING):
            return
        path = os.fsdecode(args[0])
        if not path.startswith(self.own) and path.startswith("/"):  # a relative one is deleted by its folder's handle
            self.elsewhere.add(path)
        if path.startswith(self.folder) or not path.startswith("/"):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
