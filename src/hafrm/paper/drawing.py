"""Read the pairs of data names, sample parts of them, and fingerprint both to detect changes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hafrm.data import fingerprint, load_pairs, local_path
from hafrm.pairs import PreferencePair

_Version = tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Specification of a file with pairs sampled from one source, always with the same seed."""

    source: str
    """Data name to sample from."""
    split: Literal["train", "validation"]
    beside: tuple[str, ...]
    """All sources that contribute equally many pairs, including `source`."""
    cap: int | None = None
    """Maximum number of pairs."""
    share: int = 1
    """Keep 1/share of the pairs."""

    @property
    def can_change(self) -> bool:
        """Whether the pairs may change: local files can be edited, hub data sets are never fetched to check."""
        return all(local_path(name) is not None or name.startswith("world/") for name in self.beside)

    def pairs(self) -> list[PreferencePair]:
        """Return the sampled pairs in the source's order. A smaller sample is always a subset of a larger one."""
        size = min(len(pairs_of(name, self.split)) for name in self.beside)
        size = max(1, min(size, self.cap or size) // self.share)
        found = pairs_of(self.source, self.split)
        return [found[place] for place in sorted(np.random.default_rng(0).permutation(len(found))[:size])]


def is_as_drawn(path: Path, drawn: Drawn) -> bool:
    """Return whether the file exists and contains the pairs that would be sampled today."""
    if not path.exists():
        return False
    return not drawn.can_change or fingerprint(pairs_of(str(path), drawn.split)) == print_of_drawn(drawn)


def pairs_of(name: str, split: str) -> tuple[PreferencePair, ...]:
    """Return the pairs of a data name's split; cached until its file changes."""
    return _pairs(name, split, _version(name))


def print_of_pairs(name: str, split: str) -> str:
    """Return the fingerprint of a data name's pairs."""
    return _print_of_pairs(name, split, _version(name))


def print_of_drawn(drawn: Drawn) -> str:
    """Return the fingerprint of the pairs that would be sampled today."""
    return _print_of_drawn(drawn, tuple(map(_version, drawn.beside)))


def _version(name: str) -> _Version:
    """Return a file's modification time and size, or None for data that is not a local file."""
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
