"""Data names: their parts, and the rows of a source that they select.

A name may end in #SPLIT, in a slice such as [:1000], [100:200] or [:10%], and in a share such as *0.3, in this order:
`hub:OWNER/NAME#test[:1000]*0.5`. A path that exists is used as it is, whatever characters it ends in.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from hafrm.data.memory import MemoryData
from hafrm.data.registry import NAMED_SOURCES
from hafrm.data.simulated import is_simulated
from hafrm.errors import ConfigError

T = TypeVar("T")

_SPLIT = re.compile(r"(?P<name>[^#].*)#(?P<split>[\w-]*)")
_SLICE = re.compile(r"(?P<name>.+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")
_NO_SLICE = re.compile(r".+\[[^\[\]/]*:[^\[\]/]*\]")
"""What looks like a slice; in a pattern of files, brackets have no colon."""
_SHARE = re.compile(r"(?P<name>.+)\*(?P<share>\d*\.?\d+)")


@dataclass(frozen=True)
class Selection:
    """The rows of a source that a name selects."""

    start: str = ""
    """Number or percentage of rows to skip; negative to count from the end."""
    stop: str = ""
    """Number or percentage of rows at which to stop; empty for all."""
    share: float = 1.0
    """Share of these rows, drawn at random."""

    def __str__(self) -> str:
        return (f"[{self.start}:{self.stop}]" if self.start or self.stop else "") + (
            f"*{self.share}" if self.share != 1 else ""
        )

    def __bool__(self) -> bool:
        return bool(str(self))

    def of(self, rows: Iterable[T], count: Callable[[], int], seed: int) -> Iterator[T]:
        """Yield the selected rows, in order.

        Args:
            rows: All rows.
            count: Returns the number of rows; only called if the selection depends on it.
            seed: Seed for drawing a share, without replacement.
        """
        absolute = all(not edge or edge.isdecimal() for edge in (self.start, self.stop))
        if absolute and self.share == 1:
            start, stop = (min(int(edge), sys.maxsize) if edge else None for edge in (self.start, self.stop))
            return islice(rows, start, stop)
        return self._counted(rows, count(), seed)

    def _counted(self, rows: Iterable[T], count: int, seed: int) -> Iterator[T]:
        start, stop, _ = slice(_place(self.start, count), _place(self.stop, count)).indices(count)
        size = max(0, stop - start)
        drawn = set(random.Random(seed).sample(range(size), min(size, max(1, round(self.share * size)))))
        return (row for place, row in enumerate(islice(rows, start, max(start, stop))) if place in drawn)


def _place(edge: str, count: int) -> int | None:
    """Return an edge of a slice as a number of rows."""
    if edge.endswith("%"):
        return round(count * int(edge[:-1]) / 100)
    return int(edge) if edge else None


@dataclass(frozen=True)
class DataName:
    """The parts of a data name."""

    base: str
    """The source's name: a path, a pattern, a registry name, `world/SET` or a hub name."""
    split: str | None = None
    selection: Selection = Selection()

    @property
    def path(self) -> Path | None:
        """The path in the name, whether it exists or not; None for the world, the hub and data in memory."""
        return _path_in(self.base)


def parsed(name: str) -> DataName:
    """Split a data name into its parts.

    Raises:
        ConfigError: the split's name is missing, a slice can't be read, or a share is not above 0 and below 1.
    """
    if _is_whole(name):
        return DataName(name)
    base, selection = name, Selection()
    if found := _SHARE.fullmatch(base):
        base, selection = found["name"], Selection(share=_share(name, found["share"]))
    base, selection = _sliced(base, selection)
    if not _is_whole(base) and (found := _SPLIT.fullmatch(base)):
        if not found["split"]:
            raise ConfigError(
                f"{name}: the split's name is missing after #. Write NAME#SPLIT, such as hh-harmless#test."
            )
        base = found["name"]
        if not selection.start and not selection.stop:
            base, selection = _sliced(base, selection)
        return DataName(base, found["split"], selection)
    return DataName(base, None, selection)


def _sliced(base: str, selection: Selection) -> tuple[str, Selection]:
    found = None if _is_whole(base) else _SLICE.fullmatch(base)
    if found is None:
        if _NO_SLICE.fullmatch(base) and not _is_whole(base):
            raise ConfigError(
                f"{base}: the slice can't be read. Write [START:STOP] with whole numbers or percentages, such as "
                "[:1000], [100:200], [-50:] or [:10%]."
            )
        return base, selection
    return found["name"], replace(selection, start=found["start"] or "", stop=found["stop"] or "")


def _share(name: str, text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise ConfigError(
            f"{name}: the share after * must be above 0 and below 1. To repeat pairs, give the name several times."
        )
    return share


def _is_whole(name: str) -> bool:
    """Return whether a name has no further parts: data in memory, or an existing path."""
    path = _path_in(name)
    return isinstance(name, MemoryData) or (path is not None and exists(path))


def local_path(name: str) -> Path | None:
    """Return the file or folder that a data name reads; None for the world, the hub and data in memory."""
    path = parsed(name).path
    return path if path is not None and exists(path) else None


def _path_in(name: str) -> Path | None:
    if isinstance(name, MemoryData) or name.startswith("hub:") or is_simulated(name):
        return None
    source, _, location = name.partition("@")
    if source in NAMED_SOURCES:
        return Path(location) if location else None
    return Path(name)


def exists(path: Path) -> bool:
    """Return whether a path exists."""
    try:
        return path.exists()
    except (OSError, ValueError):  # for example, the name is too long
        return False
