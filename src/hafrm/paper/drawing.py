"""The pairs of data names, parts that are drawn of them, and fingerprints of both, which tell when they change."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hafrm.data import fingerprint, load_pairs, local_path
from hafrm.pairs import PreferencePair

__all__ = ["Drawn", "is_as_drawn", "pairs_of", "print_of_drawn", "print_of_pairs"]

_Version = tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a file of a run's own holds: pairs of one source, drawn with the same seed for all."""

    source: str
    """A data name."""
    split: Literal["train", "validation"]
    beside: tuple[str, ...]
    """The sources of which equally many are drawn, its own among them."""
    cap: int | None = None
    """The most pairs."""
    share: int = 1
    """Of these one in so many."""

    @property
    def can_change(self) -> bool:
        """Whether the source is files, which may be repaired. Sets of the hub are not fetched to look at them."""
        return all(local_path(name) is not None or name.startswith("world/") for name in self.beside)

    def pairs(self) -> list[PreferencePair]:
        """The pairs, in the source's order. A smaller part is always a part of a larger one."""
        size = min(len(pairs_of(name, self.split)) for name in self.beside)
        size = max(1, min(size, self.cap or size) // self.share)
        found = pairs_of(self.source, self.split)
        return [found[place] for place in sorted(np.random.default_rng(0).permutation(len(found))[:size])]


def is_as_drawn(path: Path, drawn: Drawn) -> bool:
    """Whether a file is there and holds what would be drawn today."""
    if not path.exists():
        return False
    return not drawn.can_change or fingerprint(pairs_of(str(path), drawn.split)) == print_of_drawn(drawn)


def pairs_of(name: str, split: str) -> tuple[PreferencePair, ...]:
    """The pairs of a data name's split, read once, and anew when its file has changed."""
    return _pairs(name, split, _version(name))


def print_of_pairs(name: str, split: str) -> str:
    """The fingerprint of a data name's pairs."""
    return _print_of_pairs(name, split, _version(name))


def print_of_drawn(drawn: Drawn) -> str:
    """The fingerprint of the pairs that would be drawn today."""
    return _print_of_drawn(drawn, tuple(map(_version, drawn.beside)))


def _version(name: str) -> _Version:
    """What changes when a file does; None for what is none."""
    path = local_path(name)
    if path is None:
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=32)
def _pairs(name: str, split: str, version: _Version) -> tuple[PreferencePair, ...]:
    return tuple(load_pairs(name, split=split).pairs)


@functools.lru_cache(maxsize=256)
def _print_of_pairs(name: str, split: str, version: _Version) -> str:
    return fingerprint(_pairs(name, split, version))


@functools.lru_cache(maxsize=256)
def _print_of_drawn(drawn: Drawn, versions: tuple[_Version, ...]) -> str:
    return fingerprint(drawn.pairs())
