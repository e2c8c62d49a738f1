"""The pairs that runs read: whole sets, parts of them, and even mixtures, with fingerprints to detect changes.

Parts and mixtures of local files are written to separate files. The paper samples "evenly" from its sets (section
4.1.2) and does not say how many pairs; we take as many from each as the smallest has.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from hafrm import atomic
from hafrm.data import fingerprint, load_pairs, local_path
from hafrm.evaluation.scoring import PairScore
from hafrm.pairs import PreferencePair
from hafrm.paper.scales import Job, Scale

TrainingSplit = Literal["train", "validation"]
TRAINING_SPLITS: tuple[TrainingSplit, ...] = get_args(TrainingSplit)

_Version = tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Specification of a file with pairs sampled from one source, always with the same seed."""

    source: str
    """Data name to sample from."""
    split: TrainingSplit
    beside: tuple[str, ...]
    """All sources that contribute equally many pairs, including `source`."""
    cap: int | None = None
    """Maximum number of pairs."""
    share: int = 1
    """Keep 1/share of the pairs."""
    flipped: int = 0
    """Percentage of the pairs whose responses are swapped; a smaller percentage swaps a subset of the same pairs."""

    @property
    def can_change(self) -> bool:
        """Whether the pairs may change: local files can be edited, hub data sets are never fetched to check."""
        return all(local_path(name) is not None or name.startswith("world/") for name in self.beside)

    def pairs(self) -> list[PreferencePair]:
        """Return the sampled pairs in the source's order. A smaller sample is always a subset of a larger one."""
        size = min(len(pairs_of(name, self.split)) for name in self.beside)
        size = max(1, min(size, self.cap or size) // self.share)
        found = pairs_of(self.source, self.split)
        kept = [found[place] for place in sorted(np.random.default_rng(0).permutation(len(found))[:size])]
        wrong = np.random.default_rng(1).permutation(size)[: round(size * self.flipped / 100)]
        for place in wrong:
            kept[place] = replace(kept[place], chosen=kept[place].rejected, rejected=kept[place].chosen)
        return kept

    def digest(self) -> str:
        """Return the fingerprint of the pairs that would be sampled now."""
        return _digest_of_drawn(self, tuple(map(_version, self.beside)))


@dataclass(frozen=True)
class RunData:
    """The pairs of one run."""

    job: Job
    sets: tuple[str, ...]
    """Paper names of the training sets; several are sampled evenly."""
    share: int = 1
    """Train on 1/share of the pairs."""
    flipped: int = 0
    """Percent of the training pairs whose labels are flipped."""

    @property
    def _is_cut(self) -> bool:
        """Whether the run trains on its own file with part of its set's pairs."""
        changed = self.share > 1 or self.flipped > 0 or self.job.scale.cap is not None
        return len(self.sets) == 1 and changed

    @property
    def _cut_file(self) -> Path:
        flipped = f"-flipped{self.flipped}" if self.flipped else ""
        return self.job.root / "cuts" / f"{self.sets[0]}-1of{self.share}{self.job.scale.cap_suffix}{flipped}.jsonl"

    def _mixture_files(self, split: str) -> dict[str, Path]:
        folder = self.job.root / "mixtures" / f"{'+'.join(self.sets)}{self.job.scale.cap_suffix}"
        return {name: folder / f"{name}-{split}.jsonl" for name in self.sets}

    def names(self, split: TrainingSplit) -> list[str]:
        """Return the data names of the pairs: one whole set, its part, or an even share of each of several."""
        scale = self.job.scale
        if split == "train" and self._is_cut:
            return [str(self._cut_file)]
        if len(self.sets) == 1:
            return [getattr(scale.sets[self.sets[0]], split)]
        if scale.mixed is None:
            return [str(path) for path in self._mixture_files(split).values()]
        size = scale.mixed[split]
        if split == "train" and scale.cap is not None:
            size = min(size, scale.cap)
        return [f"{getattr(scale.sets[name], split)}[:{size}]" for name in self.sets]

    def drawn(self) -> dict[str, Drawn]:
        """Return the files to write for the run, by name."""
        scale = self.job.scale
        if self._is_cut:
            source = scale.sets[self.sets[0]].train
            cut = Drawn(source=source, split="train", beside=(source,), cap=scale.cap, share=self.share)
            return {str(self._cut_file): replace(cut, flipped=self.flipped)}
        if len(self.sets) == 1 or scale.mixed is not None:
            return {}
        found = {}
        for split in TRAINING_SPLITS:
            sources = {name: getattr(scale.sets[name], split) for name in self.sets}
            cap = scale.cap if split == "train" else None
            for name, path in self._mixture_files(split).items():
                beside = tuple(sources.values())
                found[str(path)] = Drawn(source=sources[name], split=split, beside=beside, cap=cap)
        return found

    def write(self) -> None:
        """Write the files of a mixture or of part of a set, if they are missing or their source has changed."""
        for name, drawn in self.drawn().items():
            path = Path(name)
            if path.exists() and (not drawn.can_change or digest_of(name, drawn.split) == drawn.digest()):
                continue
            with atomic.new_file(path) as file:
                file.writelines(atomic.json_line(pair.as_row()) for pair in drawn.pairs())

    def digests(self) -> dict[str, str | None]:
        """Return the fingerprints of the pairs as they would be read or sampled now, by data name.

        None is used for sets of the world and the hub, which are identified by name only.
        """
        drawn = self.drawn()
        found: dict[str, str | None] = {}
        for split in TRAINING_SPLITS:
            for name in self.names(split):
                if name in drawn:
                    found[name] = drawn[name].digest() if drawn[name].can_change else None
                else:
                    found[name] = None if local_path(name) is None else digest_of(name, split)
        return found


def unseen(scale: Scale, trained_on: Sequence[str], scores: Sequence[PairScore]) -> list[PairScore]:
    """Return the scores of pairs whose prompt is in no training or validation pair of a run's sets.

    Each set's own splits are disjoint, but sets from one source share prompts, so a model that is tested on another
    set, or trained on a mixture, may have seen a test prompt. Overlap is checked against whole sets, so that runs on
    parts of them are tested on the same pairs.

    Args:
        scale: Locations of the sets.
        trained_on: Paper names of the run's sets.
        scores: A run's scores on test pairs.
    """
    sources = [(getattr(scale.sets[name], split), split) for name in trained_on for split in TRAINING_SPLITS]
    seen = {pair.group for name, split in sources for pair in pairs_of(name, split)}
    return [score for score in scores if score.group not in seen]


def pairs_of(name: str, split: str) -> tuple[PreferencePair, ...]:
    """Return the pairs of a data name's split; cached until its file changes."""
    return _pairs(name, split, _version(name))


def digest_of(name: str, split: str) -> str:
    """Return the fingerprint of a data name's pairs."""
    return _digest_of_pairs(name, split, _version(name))


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
def _digest_of_pairs(name: str, split: str, version: _Version) -> str:
    return fingerprint(_pairs(name, split, version))


@functools.lru_cache(maxsize=256)
def _digest_of_drawn(drawn: Drawn, versions: tuple[_Version, ...]) -> str:
    return fingerprint(drawn.pairs())
