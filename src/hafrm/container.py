"""Limits of the container or service that this process runs in, such as Docker's `--cpus` and `--memory`.

Linux keeps them in control groups, whose files differ between versions 1 and 2. A group's parents limit it too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def allowed_cores(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Return how many cores' time this process may use, rounded up; None without a limit.

    PyTorch counts the machine's cores, so in a container with 2 of 64 cores its 64 threads would wait for each other.
    """
    return _least(_folders(groups, own, "cpu"), _cores)


def free_memory(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Return how many more bytes this process may use, counting those of evictable caches; None without a limit."""
    return _least(_folders(groups, own, "memory"), _free)


def _folders(groups: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's groups and their parents; in a container, only the last of these may exist."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(",") or not controllers:  # the group of version 2 names none
                root = groups / controller if controllers else groups
                group = root / path.strip("/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _least(folders: Iterator[Path], read: Callable[[Path], int]) -> int | None:
    found = []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError):  # cpu.max and memory.max say "max" without a limit
            found.append(read(folder))
    return min(found, default=None)


def _cores(folder: Path) -> int:
    if (folder / "cpu.max").exists():
        quota, period = map(int, (folder / "cpu.max").read_text().split())
    else:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0:
        raise ValueError("no limit")
    return math.ceil(quota / period)


def _free(folder: Path) -> int:
    limit, used, cached = ("memory.max", "memory.current", "inactive_file")
    if not (folder / limit).exists():
        limit, used, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / limit).read_text()) - int((folder / used).read_text()) + int(stat[cached])
