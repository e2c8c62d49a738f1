"""Determine which files in a run's folder the run wrote: `overwrite` deletes only those.

A run's own files are those that its lists name (`hafrm.json`, and the `checksums.json` of exports and policies), if
hafrm writes files with such names, and those that training writes under fixed names: manifest, metrics, the training
state in listed checkpoints, events for TensorBoard.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from hafrm import atomic
from hafrm.errors import ConfigError, HafrmError
from hafrm.models.checksums import CARD_FILE, CARD_MARK, CHECKSUMS_FILE, MODEL_FILES, listed, strangers
from hafrm.models.runinfo import RUN_FILE, RunInfo
from hafrm.store import LOCK_FILE
from hafrm.training.manifest import MANIFEST_FILE
from hafrm.training.metrics import METRICS_FILE

PAGE_FILE = "training.html"

_OF_A_RUN = re.compile(rf"{MANIFEST_FILE}|{METRICS_FILE}|{PAGE_FILE}|runs/(.*/)?events\.out\.tfevents\..*")
_OF_A_CHECKPOINT = re.compile(
    r"trainer_state\.json|training_args\.bin|latest|README\.md|zero_to_fp32\.py"
    r"|(optimizer|scheduler|scaler|trainer|rng_state(_\d+)?)\.(pt|pth|bin)|(optimizer_0|global_step\d+)/.*"
    r"|runs/(.*/)?events\.out\.tfevents\..*"
)
"""Files of a checkpoint that its list does not name, since they are written before or after it."""
_OF_A_MODEL = re.compile(rf"{RUN_FILE}|{CHECKSUMS_FILE}|{MODEL_FILES.pattern}")
"""Files that a killed save may leave without a list."""
_SAVED = re.compile(rf"files|reward|policy|checkpoint-\d+|{_OF_A_MODEL.pattern}|{_OF_A_RUN.pattern}")
"""Everything that a run or an export writes atomically; leftovers have names made from these."""
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def remove_own(folder: Path, more: Collection[str] = ()) -> list[str]:
    """Delete what a run wrote in its folder, and `more` files; return the relative paths of the remaining files.

    Raises:
        OSError: a file can't be deleted.
    """
    own = _own_files(folder) | {folder / name for name in more if (folder / name).is_file()}
    for path in sorted(own, key=lambda path: path.name == MANIFEST_FILE):  # last: identifies a run's folder
        path.unlink()
    for place in sorted({parent for path in own for parent in path.parents if parent.is_relative_to(folder)})[::-1]:
        if place != folder and not any(place.iterdir()):
            place.rmdir()
    return sorted(path.relative_to(folder).as_posix() for path in _files(folder) if path != folder / LOCK_FILE)


def require_no_strangers(folder: Path) -> None:
    """Raise ConfigError if the folder has a file that no run wrote and that would be read with the run's model."""
    own = _own_files(folder)
    for name in strangers(folder):
        if folder / name not in own:
            raise ConfigError(
                f"{folder / name} was not written by a run, and would be read with its model: the run could not be "
                "loaded. Move it away, or choose another --out."
            )


def require_plain_files(folder: Path) -> None:
    """Raise ConfigError if a link, or something else than a file, has the name of a file that the run writes."""
    for path in folder.glob("*"):
        if _CHECKPOINT.fullmatch(path.name):
            if path.is_symlink() or not path.is_dir():
                raise ConfigError(f"{path} is not a folder, so it can't be a checkpoint. Move it away.")
            _require_plain(path, _OF_A_CHECKPOINT, _OF_A_MODEL)
    _require_plain(folder, _OF_A_RUN, _OF_A_MODEL)


def _require_plain(place: Path, *patterns: re.Pattern[str]) -> None:
    for path in place.glob("*"):
        if any(pattern.fullmatch(path.name) for pattern in patterns):
            atomic.require_plain(path)


def require_own_checkpoints(folder: Path) -> None:
    """Raise ConfigError if a folder has checkpoints of another program, which the run would treat as its own."""
    for path in sorted(folder.glob("checkpoint-*")):
        if _CHECKPOINT.fullmatch(path.name) and not _is_own_model(path):
            for each in _files(path):
                if _is_name(each.relative_to(path), _OF_A_CHECKPOINT, _OF_A_MODEL):
                    raise ConfigError(
                        f"{path} has no list of files, so {each.name} in it may not be the run's, but would be "
                        "overwritten. Move the folder away, or choose another --out."
                    )


def _own_files(folder: Path) -> set[Path]:
    """The files in a run's folder that a run, or an export of it, wrote."""
    own = _written(folder, _OF_A_RUN)
    for checkpoint in folder.glob("checkpoint-*"):
        if _CHECKPOINT.fullmatch(checkpoint.name) and _is_own_model(checkpoint):
            own |= _written(checkpoint, _OF_A_CHECKPOINT)
    own |= _half_written(folder / "export") | {each for each in [folder / "export" / LOCK_FILE] if each.is_file()}
    for export in (folder / "export" / "reward", folder / "export" / "policy"):
        card = export / CARD_FILE
        if card.is_file() and CARD_MARK in card.read_text(encoding="utf-8", errors="replace"):
            own |= {card} | _written(export, _OF_A_MODEL)
    return own


def _is_own_model(place: Path) -> bool:
    """Return whether a folder has one of hafrm's lists, or leftovers from writing one."""
    return bool(_listed(place) or any(_leftovers(place)))


def _listed(place: Path) -> set[str]:
    """The files that a folder's lists name, and the lists.

    A `checksums.json` that names files that hafrm does not write is another program's; users may add to `hafrm.json`.
    """
    names: set[str] = set()
    with contextlib.suppress(HafrmError):
        found = listed(place).keys()
        if found and all(map(_is_listable, found)):
            names |= {CHECKSUMS_FILE, *found}
    with contextlib.suppress(HafrmError):
        info = RunInfo.load(place)
        names |= {RUN_FILE, *filter(_is_listable, [*info.sha256, *info.training_sha256])}
    return names


def _is_listable(name: str) -> bool:
    return _is_name(Path(name), _OF_A_MODEL, _OF_A_CHECKPOINT)


def _written(place: Path, pattern: re.Pattern[str]) -> set[Path]:
    """The files under a place that its list names, that have names of the pattern, or that a killed writer left."""
    # A writer that was killed while it put its files in their places has left a folder of this name.
    killed = any(atomic.leftover_of(path) == "files" for path in _leftovers(place))
    patterns = [pattern, _OF_A_MODEL] if killed else [pattern]
    own = {path for path in _files(place) if _is_name(path.relative_to(place), *patterns)}
    return own | _half_written(place) | {place / name for name in _listed(place) if (place / name).is_file()}


def _half_written(place: Path) -> set[Path]:
    """The files that killed writers left at a place under temporary names, or in folders of such names."""
    found: set[Path] = set()
    for path in _leftovers(place):
        inside = (each for each in _files(path) if _is_name(each.relative_to(path), _OF_A_MODEL, _OF_A_CHECKPOINT))
        found |= {path} if path.is_file() else set(inside)
    return found


def _leftovers(place: Path) -> Iterator[Path]:
    """Yield what killed writers of a run's files left in a folder."""
    return (path for path in place.glob(".*") if _SAVED.fullmatch(atomic.leftover_of(path)))


def _is_name(path: Path, *patterns: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(path.as_posix()) for pattern in patterns)


def _files(folder: Path) -> Iterator[Path]:
    """Yield everything except folders; links to folders are included."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path
