"""What `hafrm.json` says of a run's folder: how its model was trained and scores, and whether its files are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from hafrm import atomic
from hafrm.encoding import Overlong
from hafrm.errors import DamagedError, ModelError

__all__ = [
    "RUN_FILE",
    "Head",
    "RunInfo",
    "checksums",
    "read_manifest",
    "require_checksums",
    "require_finished",
    "require_undamaged",
]

RUN_FILE = "hafrm.json"
_FORMAT = 1
_ADDED_LATER = {"reward_loss", "base_digest", "dtype", "sha256"}

Head = Literal["reward", "policy", "combined"]
"""Which scores a model gives: its reward head, its implicit DPO reward, or the sum of both."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What `hafrm.json` records: how a model was trained and how it scores."""

    method: str
    base_model: str
    """The model that training started from: the reference policy of the implicit reward."""
    reward_weight: float
    policy_ratio: float
    policy_loss: str
    beta: float
    max_length: int
    overlong: Overlong
    pad_token: str
    scored_position: Literal["last_token"] = "last_token"
    """The token whose state gives the reward: the conversation's last, as stock classifiers have it."""
    reward_loss: str = "bradley_terry"
    """How reward differences were judged, which says what a difference means."""
    base_digest: str = ""
    """`weights_digest` of the model at the start, in the run's dtype; empty where neither a reference nor adapters
    stand on it."""
    dtype: str = ""
    """The dtype that training loaded the weights in, such as `bfloat16`; empty in older runs."""
    lora: dict[str, Any] | None = None
    combined_weight: float | None = None
    """w of the combined score r + w * beta * log-ratio, fitted on validation pairs; None if it was not fitted."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files that were saved with it, by their paths in the folder; older runs have none."""
    versions: dict[str, str] = field(
        default_factory=lambda: {name: version(name) for name in ("hafrm", "torch", "transformers", "peft")}
    )

    @property
    def default_head(self) -> Head:
        """The head that was trained to score."""
        return "reward" if self.reward_weight else "policy"

    def save(self, folder: Path) -> None:
        """Write `hafrm.json` into a folder."""
        atomic.write_json(folder / RUN_FILE, {"format": _FORMAT} | asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunInfo:
        """Read a run's `hafrm.json`.

        Raises:
            ModelError: the file is missing or not what a run writes.
        """
        path = folder / RUN_FILE
        require_finished(folder)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}, and this hafrm reads {_FORMAT}")
            names = [f.name for f in fields(cls) if f.name in values or f.name not in _ADDED_LATER]
            return cls(**{name: values[name] for name in names})
        except FileNotFoundError:
            raise ModelError(f"{folder} is not a run of hafrm: it has no {RUN_FILE}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} can't be read ({error}). It is damaged or of another version.") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """A run's manifest; empty where there is none that reads."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def require_finished(folder: Path) -> None:
    """Refuse the folder of a run that has not come to its end: its weights are in its checkpoints alone.

    Raises:
        ModelError: names the newest checkpoint.
    """
    if (folder / RUN_FILE).is_file() or read_manifest(folder).get("status") != "running":
        return
    steps = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob(f"checkpoint-*/{RUN_FILE}")]
    newest = max((int(step) for step in steps if step.isdecimal()), default=None)
    remedy = f"Use its newest checkpoint, {folder / f'checkpoint-{newest}'}, or" if newest is not None else "To end it,"
    raise ModelError(f"{folder} holds an unfinished run. {remedy} run the same training command again.")


def require_undamaged(folder: Path) -> None:
    """Refuse a run's folder, or a checkpoint's, whose files are not those that were saved. Reads them all.

    Raises:
        DamagedError: names the file.
    """
    remedy = "Restore it from a copy, or use another checkpoint"
    require_checksums(folder, RunInfo.load(folder).sha256, kept_in=RUN_FILE, remedy=remedy)


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder and in the folders within, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _file_digest(path) for path in files}


def require_checksums(folder: Path, sha256: Mapping[str, str], *, kept_in: str, remedy: str) -> None:
    """Refuse a folder whose files are not those that were saved. Reads them all.

    Args:
        folder: The folder.
        sha256: What `checksums` gave when it was saved.
        kept_in: The file of the folder that holds them.
        remedy: What to do about a damaged file, as a clause.

    Raises:
        DamagedError: names the file.
    """
    for name, digest in sha256.items():
        path = folder / name
        if not path.is_file():
            problem = "is missing"
        elif _file_digest(path) != digest:
            problem = "is not what was saved: its checksum differs"
        else:
            continue
        raise DamagedError(
            f"{path} {problem}. {remedy}; if it was changed on purpose, take its line out of `sha256` in "
            f"{folder / kept_in}."
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
