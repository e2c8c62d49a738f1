"""Checks that a command does not overwrite what it reads, or files that it did not write."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data.names import local_path, parsed
from hafrm.data.rowfiles import SPLITS_FILE
from hafrm.errors import ConfigError, HafrmError
from hafrm.models.runinfo import RUN_FILE, RunInfo, mark_of_model
from hafrm.models.sources import adapter_source
from hafrm.store import read_json

_MODELS = frozenset({"model", "models", "reference"})
_DATA = frozenset({"data", "calibration_data"})
_FILES = frozenset({"config", "suites", "samples", "chat_template", "prices", "cache"})


def require_unread(out: Path, options: Any, config_files: Iterable[str] = (), *, nested: bool = False) -> None:
    """Raise if writing would overwrite what a command reads: data, a template, a config, or a file of a model.

    This includes the models' bases and references, and the targets of links.

    Args:
        out: The file to be written.
        options: The command's options, as a dataclass.
        config_files: The files from which the options were read.
        nested: Whether a folder of data is read with the folders in it.

    Raises:
        ConfigError: `out` is read by an option, which is named, or can't be a file.
    """
    place = atomic.resolved(out)
    for name, value in [*(("config", str(file)) for file in config_files), *_named(options)]:
        for path in map(_real, _files_of(name.rpartition(".")[2], value)):
            if place == path or (name in _DATA and _is_of_folder(place, path, nested=nested)):
                raise ConfigError(f"--out {out} would overwrite what `{name}` reads ({value}). Give another path.")
    for name, value in _named(options):
        for folder in _folders_of(value) if name.rpartition(".")[2] in _MODELS else ():
            if place.is_relative_to(_real(folder)) or place in map(_real, filter(Path.is_symlink, folder.iterdir())):
                raise ConfigError(
                    f"--out {out} is in a model's folder ({folder}), which `{name}` reads. Give another path."
                )


def require_results(
    folder: Path,
    options: Any,
    written: Collection[str],
    results: str,
    fields: Collection[str],
    *,
    by: str,
    parts: str = "",
) -> None:
    """Raise ConfigError if results would overwrite what the command reads, or files that it did not write.

    Args:
        folder: The command's output folder.
        options: The command's options, as a dataclass.
        written: The files that it writes there.
        results: The one among them that contains a JSON object with `fields`.
        fields: Fields that the command writes into `results`.
        by: The command, for the message.
        parts: A pattern of files that show that the command was stopped before it wrote results.
    """
    atomic.require_folder(folder)
    begun = list(folder.glob(parts)) if parts else []
    for path in (*(folder / name for name in written), *begun):
        atomic.require_plain(path)
        require_unread(path, options)
    there = [folder / name for name in written if (folder / name).exists()]
    if (folder / results).exists():
        foreign = [] if set(fields) <= (read_json(folder / results) or {}).keys() else [folder / results]
    else:
        foreign = [] if begun else there
    if foreign:
        raise ConfigError(
            f"{foreign[0]} was not written by an earlier `{by}` and would be overwritten. Move it away, or choose "
            "another --out."
        )


def require_apart(out: Path) -> None:
    """Raise ConfigError if the folder for a command's results is a model's own, or not a folder."""
    atomic.require_folder(out)
    if name := mark_of_model(out):
        raise ConfigError(f"out: {out} is a model's folder ({name}). Choose a separate folder for the results.")


def _named(options: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the options that are strings, with their names, such as `score.chat_template` in a group."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from _named(value, f"{prefix}{field.name}.")
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str):
                yield f"{prefix}{field.name}", each


def _files_of(option: str, value: str) -> Iterator[Path]:
    """Yield the files and folders that an option reads; for data names without their split, slice and share."""
    if option in _DATA:
        if path := local_path(value):
            yield path
        elif path := parsed(value).path:  # a pattern
            yield from map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - pathlib takes no absolute ones
    elif option in _FILES:
        yield Path(value.rpartition("@")[2] if option == "suites" else value)


def _is_of_folder(place: Path, folder: Path, *, nested: bool) -> bool:
    """Return whether a file is one of a folder of data; saved data sets have a folder for each split."""
    if not (folder.is_dir() and place.is_file()):
        return False
    nested = nested or (folder / SPLITS_FILE).is_file()
    return place.is_relative_to(folder) if nested else place.parent == folder


def _folders_of(model: str) -> Iterator[Path]:
    """Yield the folders that loading a model may read: its own, its base's, and so on; none for hub ids and servers."""
    for _ in range(9):
        folder = Path(model)
        if not folder.is_dir():
            return
        yield folder
        try:
            if (folder / RUN_FILE).is_file():
                model = RunInfo.load(folder).base_model
            elif (adapters := adapter_source(model)) is not None:
                model = adapters.base
            else:
                return
        except HafrmError:  # loading the model raises a better error
            return


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
