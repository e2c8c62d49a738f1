"""A killed command may only leave files that are complete, or that no reader treats as complete."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from safetensors.torch import load_file

from hafrm.errors import ModelError
from hafrm.models.runinfo import RUN_FILE, require_undamaged

_MOMENT = re.compile(rb"\d+ [A-Z][a-z]+ \d{4}, \d\d:\d\d UTC")
_OF_TIME = re.compile(r"runtime|per_second|^started$|^run$|^git_revision$|^resumed$|^training_sha256$")
"""Fields that differ between two runs: times (and checksums of files with times), costs, resumptions, and edits."""
_TRAINERS_OWN = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
"""Files that transformers writes in place; they are not read unless the last one written, the first here, parses."""


def files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that a reader sees, by relative path."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not any(part.startswith(".") for part in Path(name).parts)}


def leftovers(folder: Path) -> list[str]:
    """Return leftovers of unfinished writes."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*hafrm-*")]


def require_no_half_file(folder: Path) -> None:
    """Read every file as its reader would, and every checkpoint that counts as complete."""
    for name, path in files(folder).items():
        if path.name not in _TRAINERS_OWN:
            assert _reads(path), name
    for description in folder.rglob(RUN_FILE):
        with contextlib.suppress(ModelError):  # a half-deleted checkpoint is refused
            require_undamaged(description.parent)


def _reads(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_bytes().split(b"\n")[:-1]:
                json.loads(line)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".npz":
            np.load(path)["log_probs"]
        elif path.suffix == ".sqlite":
            with contextlib.closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".md":
            assert path.read_text().endswith("\n")
    except Exception as error:
        error.add_note(str(path))
        raise
    return True


def outcome(folder: Path) -> dict[str, Any]:
    """Return the content of a command's files, without what differs between any two runs."""
    return {name: _content(path) for name, path in files(folder).items() if path.suffix not in (".sqlite", ".db")}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_bytes().splitlines()]
    if path.suffix in (".pt", ".pth", ".npz"):
        with ZipFile(path) as archive:
            return {Path(name).name: archive.read(name) for name in archive.namelist()}
    if path.suffix == ".html":  # a page says when it was written, and a run's page shows how fast it was
        return b"" if path.name == "training.html" else _MOMENT.sub(b"", path.read_bytes())
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if not _OF_TIME.search(name)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
