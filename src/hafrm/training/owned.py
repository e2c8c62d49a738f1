"""Determine which files in a run's folder the run wrote: `overwrite` deletes only those.

These are the files listed in `hafrm.json` (and in the `checksums.json` of exports and policies), and those that
training writes under fixed names: manifest, metrics, checkpoints and TensorBoard events.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from hafrm import atomic
from hafrm.errors import ConfigError, HafrmError
from hafrm.models.cards import CARD_FILE, CARD_MARK
from hafrm.models.listing import CHECKSUMS_FILE, listed, strangers
from hafrm.models.runinfo import RUN_FILE, RunInfo
from hafrm.training.callbacks import METRICS_FILE
from hafrm.training.manifest import MANIFEST_FILE

__all__ = ["remove_own", "require_no_strangers"]

_OF_A_RUN = re.compile(
    rf"{RUN_FILE}|{MANIFEST_FILE}|{METRICS_FILE}|{CHECKSUMS_FILE}|runs/(.*/)?events\.out\.tfevents\..*"
)
_WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
_OF_A_MODEL = re.compile(rf"{_WEIGHTS}|tokenizer(_config)?\.json|chat_template\.jinja|adapter/adapter_[a-z]+\.[a-z]+")
"""Files that a killed save leaves behind without a list."""
_OF_A_CHECKPOINT = re.compile(
    rf"{_OF_A_RUN.pattern}|{_OF_A_MODEL.pattern}|{_WEIGHTS}|trainer_state\.json|training_args\.bin|latest|README\.md"
    r"|(optimizer|scheduler|scaler|trainer|rng_state(_\d+)?)\.(pt|pth|bin)|(optimizer_0|global_step\d+)/.*"
    r"|zero_to_fp32\.py|adapter_(model\.safetensors|config\.json)"
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def remove_own(folder: Path, more: Collection[str] = ()) -> list[str]:
    """Delete what a run wrote in its folder.

    Args:
        folder: The folder.
        more: Further files that this kind of run writes there.

    Returns:
        The relative paths of the remaining files, which no run wrote.

    Raises:
        OSError: a file can't be deleted.
    """
    own = _own_files(folder) | {folder / name for name in more if (folder / name).is_file()}
    for path in sorted(own, key=lambda path: path.name == MANIFEST_FILE):  # last: identifies a run's folder
        path.unlink()
    for place in sorted({parent for path in own for parent in path.parents if parent.is_relative_to(folder)})[::-1]:
        if place != folder and not any(place.iterdir()):
            place.rmdir()
    return sorted(path.relative_to(folder).as_posix() for path in _files(folder))


def require_no_strangers(folder: Path) -> None:
    """Raise if the run's folder contains a file that no run wrote and that would be read with the run's model.

    Raises:
        ConfigError: names the file.
    """
    own = _own_files(folder)
    for name in strangers(folder):
        if folder / name not in own:
            raise ConfigError(
                f"{folder / name} was not written by a run, and would be read with its model: the run could not be "
                "loaded. Move it away, or choose another --out."
            )


def _own_files(folder: Path) -> set[Path]:
    """Return the files in a run's folder that a run, or an export of it, wrote."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    own = set(_written(folder, _OF_A_RUN))
    for checkpoint in checkpoints:
        own |= set(_written(checkpoint, _OF_A_CHECKPOINT))
    if checkpoints or (folder / RUN_FILE).is_file() or any(map(atomic.is_leftover, folder.iterdir())):
        own |= set(_written(folder, _OF_A_MODEL))
    for export in (folder / "export" / "reward", folder / "export" / "policy"):
        card = export / CARD_FILE
        if card.is_file() and CARD_MARK in card.read_text(encoding="utf-8", errors="replace"):
            own |= {card, *_written(export, re.compile(CHECKSUMS_FILE))}
    return own


def _written(place: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """Yield the files under a folder that its list names, that match the pattern, or that a killed writer left."""
    names: set[str] = set()
    with contextlib.suppress(HafrmError):
        names |= listed(place).keys()
    with contextlib.suppress(HafrmError):
        info = RunInfo.load(place)
        names |= info.sha256.keys() | info.training_sha256.keys()
    for path in _files(place):
        name = path.relative_to(place)
        if (
            name.as_posix() in names
            or pattern.fullmatch(name.as_posix())
            or any(atomic.is_leftover(Path(part)) for part in name.parts)
        ):
            yield path


def _files(folder: Path) -> Iterator[Path]:
    """Yield everything except folders; links to folders are included."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path
