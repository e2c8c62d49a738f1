"""Atomic writes of files and folders, JSON lines, and the cache folder.

A reader never sees half a file: data is written to a temporary file next to the target and renamed into place. Files
that grow line by line are the exception: see `hafrm.store`. A temporary file is locked while it is being written, so
the next writer of the same path can tell leftovers of killed writers from work in progress and deletes the leftovers,
without relying on clocks. Where the platform lacks such locks (Windows, some file systems), leftovers stay.
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

from hafrm.errors import ConfigError, first_line, printable

_READER_WAIT = 5.0
"""Seconds to wait until a reader opens a pipe."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file that replaces `path` when the block succeeds; create its folder if needed.

    The data is flushed to disk. Links are followed. Pipes and devices such as /dev/null are written to directly,
    because renaming would replace them.

    Raises:
        ConfigError: `path` is a folder, a socket, a disk, a link to itself, or a pipe without a reader.
    """
    path = resolved(path)
    if _streams(path):
        with open(path, "wb", opener=_with_reader) as stream:  # Path.open has no `opener` argument
            yield stream
        return
    with _temporary(path, _empty_file) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)  # already closed: Windows cannot rename open files


def resolved(path: Path) -> Path:
    """Return the path of a file to be written, with links followed.

    Raises:
        ConfigError: no file can be there: the path is a link to itself, or has a parent that is not a folder.
    """
    try:
        place = path.resolve()
        place.stat()
    except FileNotFoundError:
        return place
    except (RuntimeError, OSError, ValueError) as error:  # Python before 3.13 raises RuntimeError for a loop
        if isinstance(error, OSError) and error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            return place  # writing will raise a clearer error
        raise ConfigError(f"{_shown(path)} can't be a file ({first_line(error)}). Give another path.") from error
    return place


def _shown(path: Path) -> str:
    return printable(str(path))


def _streams(path: Path) -> bool:
    """Return whether to write to `path` directly instead of replacing it (pipes and devices)."""
    try:
        mode = path.stat().st_mode
    except OSError:  # missing, or writing will raise a clearer error
        return False
    if stat.S_ISREG(mode):
        return False
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    raise ConfigError(f"{path} is not a file, so it is not overwritten. Give the path of a file.")


def _with_reader(path: str, flags: int) -> int:
    """Open a pipe or device for writing; wait up to `_READER_WAIT` for a reader instead of blocking forever."""
    deadline = time.monotonic() + _READER_WAIT
    while True:
        try:
            handle = os.open(path, flags & ~os.O_CREAT | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise ConfigError(f"{path} is a pipe without a reader. Start the reader, or give a file.") from None
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return handle


@contextlib.contextmanager
def new_files(folder: Path, *, last: str) -> Iterator[Path]:
    """Create a temporary folder whose files move into `folder`, each atomically, when the block succeeds.

    Args:
        folder: Target folder; its other files are kept.
        last: The file to move last; its presence shows that all others have arrived.
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
    """Raise ConfigError if a path exists and is not a regular file: writing would follow a link or replace it."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(
            f"{path} is not a regular file, so it is not overwritten. Move it away, or choose another --out."
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; lone surrogates, such as bytes of file names that are not UTF-8, are escaped."""
    with new_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def json_text(value: Any, **form: Any) -> str:
    """Serialize a value as JSON, with non-finite numbers as null because JSON has neither NaN nor infinity.

    `form` are further arguments for `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **form)
    except ValueError:
        lenient = json.dumps(value, default=form.get("default"))
        return json.dumps(json.loads(lenient, parse_constant=lambda name: None), **form)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically; see `json_text`."""
    with new_file(path) as file:
        file.write(_encoded(value, indent=2) + b"\n")


def json_line(row: Mapping[str, Any], **form: Any) -> bytes:
    """Serialize a row as one line of JSON; values without a JSON form, such as dates in a Parquet file, become text.

    Non-finite numbers become null; see `json_text`.
    """
    return _encoded(row, default=str, **form) + b"\n"


def _encoded(value: Any, **form: Any) -> bytes:
    try:
        return json_text(value, ensure_ascii=False, **form).encode()
    except UnicodeEncodeError:  # lone surrogates must be escaped
        return json_text(value, **form).encode()


def has_non_finite(value: Any) -> bool:
    """Return whether a value contains a non-finite number, which `json_text` writes as null."""
    waiting = [value]
    while waiting:  # rows may be too deep for recursion
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, float) and not math.isfinite(item):
            return True
    return False


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder that replaces `path` when the block succeeds.

    The old folder is moved aside first and deleted last, so one of the two always exists. Links are followed.

    Raises:
        ConfigError: `path` exists and is not a folder.
    """
    require_folder(path)
    path = path.resolve()
    with _temporary(path, tempfile.mkdtemp) as temporary, _temporary(path, tempfile.mkdtemp) as aside:
        yield temporary
        for place in (temporary, *temporary.rglob("*")):  # some writers make files that only their owner can read
            place.chmod((0o777 if place.is_dir() else 0o666) & ~_umask())
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
    """Raise ConfigError if `path` can't be an output folder: it or a parent is a file, a device or a broken link."""
    for place in (path, *path.parents):
        if "\0" in str(place):
            raise ConfigError(f"{_shown(path)} can't be a folder. Choose another --out.")
        if place.is_symlink() and not place.exists():
            raise ConfigError(f"{place} is a link to {place.readlink()}, which does not exist. Choose another --out.")
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{place} is not a folder. Choose another --out, or move it away.")
            if place != path:
                require_place(path)
            return


def require_utf8(path: Path) -> None:
    """Raise ConfigError if a model's folder has a path that the libraries that read and write weights can't open."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{_shown(path.absolute())}: a model's folder needs a path that is valid UTF-8. Rename the part that is "
            "not, or choose another folder."
        ) from None


def require_place(path: Path) -> None:
    """Raise ConfigError unless a file or folder exists, or could be created in the nearest folder that does."""
    if path.exists():
        return
    nearest = next(each for each in path.resolve().parents if each.exists())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()  # permissions are not sufficient evidence, as in /proc
    except OSError as error:
        problem = f"{nearest} can't be written to: {error.strerror}"
        raise ConfigError(f"{_shown(path)} can't be created ({problem}). Choose another --out.") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to operating-system errors that lack one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def cache_folder(name: str) -> Path:
    """Return the folder for regenerable files: `$HAFRM_CACHE`, or `hafrm` in the user's cache folder."""
    root = os.environ.get("HAFRM_CACHE")
    if root:
        return Path(root) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hafrm" / name


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[..., str]) -> Iterator[Path]:
    """Create a file or folder next to `path`, locked while the block runs and deleted if the block fails."""
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
    """Create a temporary file or folder and return it with the handle of its lock, None where locks are unsupported.

    Another writer may delete it as a leftover before it is locked; then retry.
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
"""Matches the name of a temporary file or folder, which `tempfile` ends with eight random letters and digits."""


def leftover_of(path: Path) -> str:
    """Return the final name of a temporary file or folder, in use or left by a killed writer; "" for other paths."""
    found = _LEFTOVER.fullmatch(path.name)
    return found["name"] if found and not path.is_symlink() else ""


def _prefix(path: Path) -> str:
    return f".{path.name}{_MARK}"


def _empty_file(dir: Path, prefix: str) -> str:
    handle, name = tempfile.mkstemp(dir=dir, prefix=prefix)
    os.close(handle)
    return name


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files and folders that killed writers of a path left next to it."""
    found = path.parent.glob(f"{glob.escape(_prefix(path))}*")
    for leftover in (each for each in found if leftover_of(each) == path.name):
        with contextlib.suppress(OSError):  # still locked by its writer, or just renamed to its final name
            lock = _lock(leftover)
            _remove(leftover)
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """Lock a file or folder and return the handle; closing the handle or ending the process releases the lock.

    Raises:
        BlockingIOError: another handle has locked it.
        OSError: the path is gone, or locks are unsupported.
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
