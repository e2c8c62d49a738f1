"""Writing files and folders whole or not at all, JSON lines, and the folder for caches.

A reader never meets half a file: text is written beside its place and renamed into it. Files that grow line by line
are the exception: `drop_half_line` takes off what a kill left of the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["cache_folder", "drop_half_line", "json_line", "new_file", "new_folder", "write_json", "write_text"]


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path`, flushed to disk, when the block ends well; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity are refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON, with what JSON has no form for (dates of a Parquet file, say) as text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate can only be written escaped
        return json.dumps(row, default=str).encode() + b"\n"


def drop_half_line(path: Path) -> None:
    """Cut a file that grows line by line behind its last whole line; a missing file stays missing."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well.

    What stood there is moved aside first and deleted last, so that one of the two is always there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        if path.exists():
            path.replace(old / path.name)
        temporary.replace(path)
        shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def cache_folder(name: str) -> Path:
    """Where hafrm keeps what it can make again: `$HAFRM_CACHE`, or `hafrm` in the user's cache folder."""
    root = os.environ.get("HAFRM_CACHE")
    if root:
        return Path(root) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hafrm" / name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
