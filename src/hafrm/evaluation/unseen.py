"""Keeps evaluations honest: pairs that a model was trained on are no held-out pairs.

Splits of named sets that hafrm draws itself depend on a seed. A run's manifest says which it was trained with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hafrm.data import NAMED_SOURCES, SourceReport
from hafrm.errors import ConfigError
from hafrm.models.runinfo import RUN_FILE

__all__ = ["require_unseen"]

_MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class _Training:
    split_seed: int
    named: frozenset[str]
    """The named sets that were trained on."""


def require_unseen(model: str, reports: Iterable[SourceReport], split_seed: int) -> None:
    """Refuse held-out splits that were drawn with another seed than those that the model was trained on.

    Args:
        model: A model's name; only runs of hafrm say what they were trained on.
        reports: The accounts of the data that the model is to be evaluated on.
        split_seed: The seed of its splits.

    Raises:
        ConfigError: a split holds pairs that the model was trained on.
    """
    training = _training(Path(model))
    if training is None or training.split_seed == split_seed:
        return
    for report in reports:
        if _set_name(report.name) in training.named and _is_drawn(report):
            raise ConfigError(
                f"{model} was trained on {report.name} with data_options.split_seed {training.split_seed}; the "
                f"{report.split} split of seed {split_seed} holds pairs that it was trained on. "
                f"Use --data_options.split_seed {training.split_seed}."
            )


def _is_drawn(report: SourceReport) -> bool:
    """Whether a report is of held-out pairs that were drawn with a seed; a test split that the source brings is not."""
    source = NAMED_SOURCES.get(_set_name(report.name))
    if report.kind != "named" or source is None:
        return False
    return report.split == "validation" or (report.split == "test" and not source.has_test)


def _set_name(name: str) -> str:
    """NAME of the data names NAME, NAME@PATH, NAME#SPLIT and NAME@PATH#SPLIT."""
    return re.split("[@#]", name, maxsplit=1)[0]


def _training(folder: Path) -> _Training | None:
    """What the manifest of a run's folder, or above one of its checkpoints, says; None where there is none."""
    if not (folder / RUN_FILE).is_file():
        return None
    for path in (folder / _MANIFEST_FILE, folder.absolute().parent / _MANIFEST_FILE):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            sources = manifest["data"]["train"]["sources"]
            return _Training(
                split_seed=manifest["config"]["data_options"]["split_seed"],
                named=frozenset(_set_name(source["name"]) for source in sources if source["kind"] == "named"),
            )
        except (OSError, ValueError, KeyError, TypeError):  # none, or another program's
            continue
    return None
