"""Ensure that a model is not evaluated on held-out pairs that it was trained on.

A run's manifest records the fingerprints of its training pairs, the splits of named sets, and the seed of those that
hafrm draws. Two names of one source contain the same pairs, as do copies of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafrm.data import NAMED_SOURCES, NamedSource, SourceReport
from hafrm.errors import ConfigError
from hafrm.models.runinfo import MANIFEST_FILE, is_run
from hafrm.store import read_json


@dataclass(frozen=True)
class _Split:
    """A split of a named set."""

    name: str
    """The data name as given."""
    source: NamedSource
    split: str

    @property
    def brought(self) -> bool:
        """Return whether the source comes with this split; others are drawn from its training data, with a seed."""
        return self.split == "test" and self.source.has_test

    def shares_pairs(self, other: _Split, *, one_seed: bool) -> bool:
        """Return whether this split and another can share pairs; `one_seed` means that both are drawn with equal seeds.

        Names that select different pairs of one source get different draws, even with equal seeds.
        """
        if _data(self.source) != _data(other.source) or self.brought != other.brought:
            return False
        drawn_alike = one_seed and not self.brought and self.source.name == other.source.name
        return not drawn_alike or self.split == other.split


@dataclass(frozen=True)
class _Training:
    split_seed: int
    splits: tuple[_Split, ...]
    """The splits of named sets that were trained on."""
    digests: frozenset[str]
    """The fingerprints of all sources that were trained on."""


def require_unseen(
    model: str, reports: Iterable[SourceReport], split_seed: int, say: Callable[[str], None] = lambda line: None
) -> None:
    """Raise if a held-out split contains pairs that a model was trained on.

    Evaluating on a training split or file on purpose is allowed, but reported.

    Args:
        model: The model's name; only runs of hafrm record their training data.
        split_seed: The seed of its splits.
        say: Called with a line if the model was trained on all pairs of a source.

    Raises:
        ConfigError: a split contains pairs that the model was trained on.
    """
    training = _training(Path(model))
    if training is None:
        return
    for report in reports:
        trained_on = bool(report.sha256) and report.sha256 in training.digests
        if report.kind in ("named", "world") and report.split != "train":
            _require_held_out(model, report, training, split_seed, trained_on=trained_on)
        elif trained_on:
            say(
                f"{model} was trained on the pairs of {report.name}, so its results on them don't show how well it "
                "does on other pairs. Evaluate it on held-out pairs too."
            )


def _require_held_out(
    model: str, report: SourceReport, training: _Training, split_seed: int, *, trained_on: bool
) -> None:
    """Raise if one report's split contains pairs that the model was trained on."""
    elsewhere = "Evaluate it on data that it was not trained on."
    if trained_on:
        raise ConfigError(f"{model} was trained on the pairs of {report.name}, {report.split} split. {elsewhere}")
    held_out = _named_split(report.name, report.split)
    if held_out is None:
        return
    seed = training.split_seed
    one_seed = seed == split_seed
    shared = [split for split in training.splits if split.shares_pairs(held_out, one_seed=one_seed)]
    if not shared:
        return
    seed_helps = not any(split.shares_pairs(held_out, one_seed=True) for split in training.splits)
    drawn = "" if held_out.brought else f" with data_options.split_seed {seed}"
    of_seed = "" if held_out.brought else f" of seed {split_seed}"
    raise ConfigError(
        f"{model} was trained on {shared[0].name}, {shared[0].split} split,{drawn}; the {report.split} split{of_seed} "
        f"of {report.name} contains pairs that it was trained on. "
        f"{f'Use --data_options.split_seed {seed}.' if seed_helps else elsewhere}"
    )


def _named_split(name: str, split: str) -> _Split | None:
    """Parse a data name (NAME, NAME@PATH, NAME#SPLIT or NAME@PATH#SPLIT) into its split; None for unknown sets."""
    source = NAMED_SOURCES.get(re.split("[@#]", name, maxsplit=1)[0])
    return None if source is None else _Split(name, source, split)


def _data(source: NamedSource) -> tuple[str, Mapping[str, Any]]:
    """Return the origin of a source's rows, independent of its name and row selection."""
    return source.path, source.arguments


def _training(folder: Path) -> _Training | None:
    """Read the manifest of a run's folder, or of the run of a checkpoint; None if there is none."""
    if not is_run(folder):
        return None
    for path in (folder / MANIFEST_FILE, folder.absolute().parent / MANIFEST_FILE):
        try:
            manifest = read_json(path) or {}
            sources = manifest["data"]["train"]["sources"]
            named = [
                _named_split(each["name"], each.get("split") or "train") for each in sources if each["kind"] == "named"
            ]
            return _Training(
                split_seed=manifest["config"]["data_options"]["split_seed"],
                splits=tuple(split for split in named if split),
                digests=frozenset(each.get("sha256", "") for each in sources),
            )
        except (LookupError, TypeError, AttributeError):  # missing, or another program's
            continue
    return None
