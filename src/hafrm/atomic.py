"""Writing files and folders whole or not at all, one command at a time, JSON lines, and the folder for caches.

A reader never meets half a file: text is written beside its place and renamed into it. Files that grow line by line
are the exception: `drop_half_line` takes off what a kill left of the last one. What is being written is locked, so that
the next writer of the same place knows what a killed one left from what another is still writing, and deletes it: no
clock is asked. Where a file system or Windows has no such locks, leftovers stay.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from hafrm.errors import ConfigError, first_line, printable

__all__ = [
    "alone",
    "cache_folder",
    "drop_half_line",
    "json_line",
    "json_text",
    "leftover_of",
    "naming",
    "new_file",
    "new_files",
    "new_folder",
    "require_folder",
    "require_plain",
    "resolved",
    "write_json",
    "write_text",
]


_READER_WAIT = 5.0
"""Seconds in which a pipe's reader must have opened it."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path`, flushed to disk, when the block ends well; its folder is made if need be.

    A link is followed. A pipe or a device such as /dev/null is written to as it is: renaming would replace it.

    Raises:
        ConfigError: there is a folder, a socket, a disk, a link to itself, or a pipe that no one reads.
    """
    path = resolved(path)
    if _streams(path):
        with open(path, "wb", opener=_with_reader) as stream:  # Path.open takes no opener
            yield stream
        return
    with _temporary(path, _empty_file) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)  # closed by now: Windows renames no open file


def resolved(path: Path) -> Path:
    """The place of a file that is to be written, with its links followed.

    Raises:
        ConfigError: it can't be one: a link to itself, or something under what is not a folder.
    """
    try:
        place = path.resolve()
        place.stat()
    except FileNotFoundError:
        return place
    except (RuntimeError, OSError, ValueError) as error:  # Python before 3.13 raises RuntimeError for a loop
        if isinstance(error, OSError) and error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            return place  # writing will say why not
        raise ConfigError(f"{_shown(path)} can't be a file ({first_line(error)}). Give the path of a file.") from error
    return place


def _shown(path: Path) -> str:
    return printable(str(path))


def _streams(path: Path) -> bool:
    """Whether what is there is written to as it is, and not replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there yet, or writing will say why not
        return False
    if stat.S_ISREG(mode):
        return False
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    raise ConfigError(f"{path} is not a file, and nothing is written over it. Give the path of a file.")


def _with_reader(path: str, flags: int) -> int:
    """Open a pipe or a device for writing; wait a little for a pipe's reader, where opening would wait without end."""
    deadline = time.monotonic() + _READER_WAIT
    while True:
        try:
            handle = os.open(path, flags & ~os.O_CREAT | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise ConfigError(f"{path} is a pipe that no one reads. Start its reader, or name a file.") from None
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return handle


@contextlib.contextmanager
def new_files(folder: Path, *, last: str) -> Iterator[Path]:
    """A temporary folder whose files become those of `folder`, each whole, when the block ends well.

    Args:
        folder: Where the files go; what it holds under other names stays.
        last: The file that comes last and so says that the others are there.
    """
    with _temporary(folder / "files", tempfile.mkdtemp) as temporary:
        yield temporary
        files = [path for path in temporary.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path == temporary / last):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o666 & ~_umask())
            place = folder / path.relative_to(temporary)
            place.parent.mkdir(exist_ok=True)
            require_plain(place)
            path.replace(place)
        shutil.rmtree(temporary)


def require_plain(path: Path) -> None:
    """Refuse to put a file where something is that is not one: writing would go through a link, or replace it.

    Raises:
        ConfigError: names the file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(
            f"{path} is not a plain file, and is not written over. Move it away, or choose another --out."
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with new_file(path) as file:
        file.write(text.encode())


def json_text(value: Any, **form: Any) -> str:
    """A value as JSON, in which numbers that are not finite are null: JSON has neither NaN nor infinity.

    Args:
        value: What to write.
        form: Further arguments of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **form)
    except ValueError:
        return json.dumps(_with_nulls(value), allow_nan=False, **form)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; see `json_text`."""
    write_text(path, json_text(value, indent=2, ensure_ascii=False) + "\n")


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON, with what JSON has no form for (dates of a Parquet file, say) as text.

    Numbers that are not finite are null; see `json_text`.
    """
    try:
        return json_text(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate can only be written escaped
        return json_text(row, default=str).encode() + b"\n"


def _with_nulls(value: Any) -> Any:
    """A value with None for the floats in it that are not finite."""
    if isinstance(value, Mapping):
        return {name: _with_nulls(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_half_line(path: Path) -> None:
    """Cut a file that grows line by line behind its last whole line; a missing file stays missing."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well.

    What was there is moved aside first and deleted last, so that one of the two is always there. A link is followed.

    Raises:
        ConfigError: something is there that is not a folder.
    """
    require_folder(path)
    path = path.resolve()
    with _temporary(path, tempfile.mkdtemp) as temporary, _temporary(path, tempfile.mkdtemp) as aside:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.replace(aside / path.name)
        try:
            temporary.replace(path)
        except BaseException:
            if (aside / path.name).exists():
                (aside / path.name).replace(path)
            raise
        shutil.rmtree(aside)


def require_folder(path: Path) -> None:
    """Refuse what can't be a command's output folder: a file, a device, or a link that leads nowhere.

    Raises:
        ConfigError: says what is there.
    """
    for place in (path, *path.parents):
        if "\0" in str(place):
            raise ConfigError(f"{_shown(path)} can't be a folder. Choose another --out.")
        if place.is_symlink() and not place.exists():
            raise ConfigError(f"{place} is a link to {place.readlink()}, which is not there. Choose another --out.")
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{place} is not a folder. Choose another --out, or move it away.")
            return


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the system's errors name a file where they name none, as those of a write on a full disk don't."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a command's output folder, which is made if need be, so that no second one writes there meanwhile.

    Raises:
        ConfigError: another one does, or there is no folder to be made there.
    """
    require_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"Another command is writing to {folder}. Wait for it, or name another --out.") from None
    try:
        yield
    finally:
        lock.release()


def cache_folder(name: str) -> Path:
    """Where hafrm keeps what it can make again: `$HAFRM_CACHE`, or `hafrm` in the user's cache folder."""
    root = os.environ.get("HAFRM_CACHE")
    if root:
        return Path(root) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hafrm" / name


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[..., str]) -> Iterator[Path]:
    """A new file or folder beside `path`, locked while the block runs and deleted if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary, lock = _claim(path, make)
    try:
        with naming(path):
            yield temporary
    except BaseException:
        _remove(temporary)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _claim(path: Path, make: Callable[..., str]) -> tuple[Path, int | None]:
    """A new file or folder and the handle that locks it; None where there are no locks.

    Another writer may take it for a leftover before it is locked: then one more is made.
    """
    while True:
        temporary = Path(make(dir=path.parent, prefix=_prefix(path)))
        try:
            lock = _lock(temporary)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:
            return temporary, None
        if os.fstat(lock).st_nlink:
            return temporary, lock
        os.close(lock)


_MARK = ".hafrm-"
_LEFTOVER = re.compile(rf"(?s)\.(?P<name>.+){re.escape(_MARK)}[a-z0-9_]{{8}}")
"""The name of a temporary file or folder: `tempfile` ends it with eight random letters and digits."""


def leftover_of(path: Path) -> str:
    """The name that a file or folder was to have which a writer has not finished, or a killed one left.

    Empty for anything else.
    """
    found = _LEFTOVER.fullmatch(path.name)
    return found["name"] if found and not path.is_symlink() else ""


def _prefix(path: Path) -> str:
    return f".{path.name}{_MARK}"


def _empty_file(dir: Path, prefix: str) -> str:
    handle, name = tempfile.mkstemp(dir=dir, prefix=prefix)
    os.close(handle)
    return name


def _remove_leftovers(path: Path) -> None:
    """Delete what killed writers of a path left beside it."""
    found = path.parent.glob(f"{glob.escape(_prefix(path))}*")
    for leftover in (each for each in found if leftover_of(each) == path.name):
        with contextlib.suppress(OSError):  # locked by its writer, or become by now what it was to be
            lock = _lock(leftover)
            _remove(leftover)
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """A handle that locks a file or folder until it is closed, as it is by whatever ends the process.

    Raises:
        BlockingIOError: another handle has locked it.
        OSError: it is gone, or nothing can be locked here.
    """
    if sys.platform == "win32":
        raise OSError("folders can't be locked")
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
