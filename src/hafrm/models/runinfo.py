"""`hafrm.json`, the description of a run's folder: training, scoring, and checksums of its files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from hafrm import atomic
from hafrm.encoding import Overlong
from hafrm.errors import ConfigError, DamagedError, ModelError
from hafrm.models.listing import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    CARD_FILE,
    CARD_MARK,
    CHECKSUMS_FILE,
    require_checksums,
    require_listed,
    weight_files,
)
from hafrm.models.schema import description_problem, manifest_problem

RUN_FILE = "hafrm.json"
_FORMAT = 1
_ADDED_LATER = {"reward_loss", "base_digest", "dtype", "sha256", "training_sha256"}

Head = Literal["reward", "policy", "combined"]
"""Source of a model's score: its reward head, its implicit DPO reward, or the sum of both."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Content of `hafrm.json`: how a model was trained and how it scores."""

    method: str
    base_model: str
    """Model from which training started: the reference policy of the implicit reward."""
    reward_weight: float
    policy_ratio: float
    policy_loss: str
    beta: float
    max_length: int
    overlong: Overlong
    pad_token: str
    scored_position: Literal["last_token"] = "last_token"
    """Token whose state gives the reward: the conversation's last, as in stock classifiers."""
    reward_loss: str = "bradley_terry"
    """The reward loss, which defines the meaning of reward differences."""
    base_digest: str = ""
    """`weights_digest` of the model at the start, in the run's dtype; empty if neither a reference nor adapters depend
    on it.
    """
    dtype: str = ""
    """Dtype in which training loaded the weights, such as `bfloat16`; empty in older runs."""
    lora: dict[str, Any] | None = None
    combined_weight: float | None = None
    """w of the combined score r + w * beta * log-ratio, fitted on validation pairs; None if not fitted."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the model's files, by relative path. Other files in the folder are not part of the model."""
    training_sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files from which training resumes; only in completely written checkpoints."""
    versions: dict[str, str] = field(
        default_factory=lambda: {name: version(name) for name in ("hafrm", "torch", "transformers", "peft")}
    )

    @property
    def whole(self) -> bool:
        """Whether the folder contains all weights, not just adapters."""
        return bool(weight_files(self.sha256))

    @property
    def with_adapters(self) -> bool:
        """Whether the folder contains adapters."""
        return f"{ADAPTER_FOLDER}/{ADAPTER_FILE}" in self.sha256

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
            ModelError: the file is missing or was not written by a run.
        """
        path = folder / RUN_FILE
        require_finished(folder)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{folder} is not a run of hafrm: it has no {RUN_FILE}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} can't be read ({error}). It is damaged: restore it from a copy.") from error
        known = {each.name for each in fields(cls)}
        if problem := description_problem(values, fields=known, optional=_ADDED_LATER, format=_FORMAT):
            raise ModelError(f"{path}: {problem}. It is damaged or from another version: restore it from a copy.")
        return cls(**{name: value for name, value in values.items() if name != "format"})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a run's manifest; empty if it is missing, can't be read or lacks fields."""
    manifest = _manifest_values(folder)
    return {} if manifest_problem(manifest) else manifest


def _manifest_values(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's manifest, unchecked; empty if it is not a JSON object."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def require_finished(folder: Path) -> None:
    """Raise if a folder is that of an unfinished run, or of a run whose list of files is lost.

    The weights of an unfinished run are only in its checkpoints. Without its list, a run would be read as a stock
    model, perhaps with another limit of tokens, another template or another head.

    Raises:
        ModelError: names the newest checkpoint.
        DamagedError: names the list, and the file by which the folder is recognised.
    """
    if (folder / RUN_FILE).is_file():
        return
    if _manifest_values(folder).get("status") != "running":
        _require_list(folder)
        return
    steps = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob(f"checkpoint-*/{RUN_FILE}")]
    newest = max((int(step) for step in steps if step.isdecimal()), default=None)
    remedy = (
        f"Use its newest checkpoint, {folder / f'checkpoint-{newest}'}, or" if newest is not None else "To finish it,"
    )
    raise ModelError(f"{folder} contains an unfinished run. {remedy} run the same training command again.")


def _require_list(folder: Path) -> None:
    """Raise if a folder was written by hafrm but has neither a `hafrm.json` nor a `checksums.json`."""
    for name in (RUN_FILE, CHECKSUMS_FILE):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise DamagedError(f"{folder / name} can't be read as a file. {_REMEDY}.")
    if (folder / CHECKSUMS_FILE).is_file() or not (folder / "config.json").is_file():
        return
    if mark := _mark_of_ours(folder):
        name = CHECKSUMS_FILE if mark.name == CARD_FILE else RUN_FILE
        raise DamagedError(
            f"{folder / name} is missing, although {mark} says that hafrm wrote this folder. Restore it from a copy, "
            "or export the model again. If another program wrote the model afterwards, move the model to a folder "
            "without that file."
        )


def _mark_of_ours(folder: Path) -> Path | None:
    """Return a file that shows that hafrm wrote a model's folder; None if there is none.

    A final folder has a manifest, metrics, checkpoints and maybe adapters; a checkpoint is in such a folder; an export
    has a card.
    """
    for run in [folder, folder.absolute().parent] if folder.absolute().name.startswith("checkpoint-") else [folder]:
        if {"status", "config"} <= _manifest_values(run).keys():
            return run / "manifest.json"
    if '"loss/' in _opening(folder / "metrics.jsonl"):
        return folder / "metrics.jsonl"
    for path in (*folder.glob(f"checkpoint-*/{RUN_FILE}"), *folder.glob(f"{ADAPTER_FOLDER}/{CHECKSUMS_FILE}")):
        return path
    card = _opening(folder / CARD_FILE)
    tagged = "\n- hafrm\n" in card.partition("\n---")[0] + "\n"
    return folder / CARD_FILE if CARD_MARK in card or tagged else None


def _opening(path: Path) -> str:
    """Return the first 64 KiB of a text file; empty if there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


_REMEDY = "Restore it from a copy, or use another checkpoint"


def require_apart(out: Path) -> None:
    """Raise if the folder for a command's results is a model's own, or not a folder.

    Raises:
        ConfigError: gives the reason.
    """
    atomic.require_folder(out)
    for name in (RUN_FILE, "model.safetensors", "model.safetensors.index.json"):
        if (out / name).exists():
            raise ConfigError(f"out: {out} is a model's folder ({name}). Choose a separate folder for the results.")


def require_as_saved(model: str) -> None:
    """Raise unless a folder written by hafrm (run, export or policy checkpoint) matches its list of files.

    Args:
        model: Folder or hub id; models without such a list pass.

    Raises:
        DamagedError: names the file.
    """
    folder = Path(model)
    if (folder / RUN_FILE).is_file():
        require_undamaged(folder)
    else:
        require_finished(folder)
        require_listed(folder, remedy=_REMEDY)


def require_undamaged(folder: Path) -> RunInfo:
    """Raise unless the files of a run's folder or checkpoint are those that were saved. Reads all files.

    Returns:
        The folder's description.

    Raises:
        DamagedError: names the file.
        ModelError: `hafrm.json` was not written by a run.
    """
    info = RunInfo.load(folder)
    if "config.json" not in info.sha256 or not (info.whole or info.with_adapters):
        raise DamagedError(f"{folder / RUN_FILE}: `sha256` does not list the model's files. {_REMEDY}.")
    require_checksums(folder, info.sha256, kept_in=RUN_FILE, remedy=_REMEDY)
    return info
