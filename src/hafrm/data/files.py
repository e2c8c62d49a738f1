"""Bytes and lines of users' files: regular files only, decompressed, with bounded memory.

Pipes and devices are refused: opening one may block, it may never end, and rows are read more than once. Bytes after
the last member of a gzip file are ignored with a warning, because everything before them is intact.
"""

from __future__ import annotations

import functools
import gzip
import io
import logging
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow

from hafrm.errors import UnreadableError, first_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LONGEST_ROW = 64 * 2**20
"""Maximum bytes of a line, and maximum characters of a row in a JSON array."""

PACKED = (".gz", ".zst")
"""Endings of compressed files."""

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
_GZIP = b"\x1f\x8b"
_MARKS = {".gz": _GZIP, ".zst": b"\x28\xb5\x2f\xfd"}
"""First bytes of compressed files, which no UTF-8 text begins with."""

_BUFFER = 2**17


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn errors in the block about a file into an `UnreadableError` that names it."""
    try:
        require_regular(Path(source))
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pyarrow.ArrowException) as error:
        raise UnreadableError(f"{source}: {_problem(error)}") from error


def require_regular(path: Path) -> None:
    """Raise unless `path` is a regular file, a folder, or missing without being a broken link.

    Raises:
        UnreadableError: reading it could block forever or never end, or it is a broken link.
        OSError: it can't be looked up, as with a link to itself.
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except FileNotFoundError:
        if path.is_symlink():
            raise UnreadableError(
                f"{path}: is a link to {path.readlink()}, which is missing. Repair or remove the link."
            ) from None
        return
    if kind is not None:
        raise UnreadableError(
            f"{path}: is {kind}, not a file. Rows are read more than once, so write them to a file and give its path."
        )


def opened(path: Path) -> IO[bytes]:
    """Open a file's bytes, decompressed if its name ends in one of `PACKED`.

    Raises:
        UnreadableError: it is not a regular file, or its name does not say whether it is compressed.
        OSError: it can't be opened.
    """
    require_regular(path)
    if path.suffix in PACKED and not path.stat().st_size:
        raise UnreadableError(f"{path}: is empty, but a compressed file never is. Download or write the file again.")
    if path.suffix == ".gz":
        return io.BufferedReader(_GzipBytes(path), _BUFFER)
    if path.suffix == ".zst":
        packed: Any = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        return io.BufferedReader(packed, _BUFFER)
    file = path.open("rb")
    for suffix, mark in _MARKS.items():
        if file.peek(len(mark)).startswith(mark):
            file.close()
            raise UnreadableError(
                f"{path}: is compressed, but its name does not end in {suffix}. Rename it to {path.name}{suffix}."
            )
    return file


def lines(file: IO[bytes], source: str) -> Iterator[bytes]:
    """Yield a file's lines; raise UnreadableError if one is longer than `LONGEST_ROW`."""
    number = 1
    while line := file.readline(LONGEST_ROW + 1):
        if len(line) > LONGEST_ROW:
            raise too_long(source, f"line {number}")
        yield line
        number += 1


def too_long(source: str, where: str) -> UnreadableError:
    """Create the error for a row over the size limit."""
    return UnreadableError(
        f"{source}, {where}: is longer than {LONGEST_ROW // 2**20} MiB, which is the limit for a row. "
        "Write one row per line into a .jsonl file, and check that the file's name matches its format."
    )


class _GzipBytes(io.RawIOBase):
    """Content of a gzip file; trailing bytes that are not gzip data end it with a warning."""

    def __init__(self, path: Path) -> None:
        self._path, self._ended = path, False
        self._file = path.open("rb")
        self._gzip = gzip.GzipFile(fileobj=self._file)
        self._begins_well = self._file.peek(len(_GZIP))[: len(_GZIP)] == _GZIP

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = b"" if self._ended else self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            return self._gzip.read1(size)
        except gzip.BadGzipFile as error:
            # Raised for bytes that don't start a member. At the start of the file it means that it is not gzip at all.
            if not self._begins_well or not str(error).startswith("Not a gzipped file"):
                raise
            self._ended = True
            _warn_of_rest(self._path)
            return b""

    def close(self) -> None:
        self._gzip.close()
        self._file.close()
        super().close()


@functools.cache
def _warn_of_rest(path: Path) -> None:
    """Warn once per file that its trailing bytes were not read."""
    logging.getLogger("hafrm").warning(
        "%s: ignored the bytes after its gzip data, which are not gzip data; all rows before them were read.", path
    )


def _problem(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"can't be opened ({error.strerror}). Check the path and its permissions."
    return (
        f"can't be read and seems damaged ({first_line(error)}). Download or write the file again, and check that its "
        "name matches its format."
    )
