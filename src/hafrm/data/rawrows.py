"""Raw rows of a file, one at a time: JSON lines, JSON, CSV and TSV, compressed or not, Parquet and Arrow.

Deals with file formats only: the content of rows is checked later. A line that is not JSON becomes a row with an error,
so that later rows can still be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hafrm.data.arrays import array_values, json_problem
from hafrm.data.files import PACKED, lines, opened, reading, require_regular
from hafrm.data.tabular import arrow_file_rows, parquet_rows, separated_rows
from hafrm.errors import BadRowError, BadRowReason, ConfigError, UnreadableError

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "RawRow",
    "files_named",
    "has_known_suffix",
    "json_line_row",
    "read_rows",
    "reading",
]

_TEXTS = (".jsonl", ".json", ".csv", ".tsv")
_TABLES = (".parquet", ".arrow", ".feather")

SUFFIXES = (*_TEXTS, *(text + packed for text in _TEXTS for packed in PACKED), *_TABLES)
"""Endings of supported files."""

FORMATS = f"{', '.join(_TEXTS)}, each also with {' or '.join(PACKED)}, {', '.join(_TABLES)}"
"""The endings in words."""

_PART = r"(?:-\d+(?:-of-\d+(?:-[0-9a-f]{16})?)?)?"
"""Suffix of the name of a file with part of the rows; the hub's converters used to add a fingerprint."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as found in its source."""

    number: int
    """The row's number from 1; in JSON-lines files the line's number."""
    value: Any = None
    """Usually a mapping from field names to values."""
    error: BadRowError | None = None
    """Why there is no value."""
    source: str = ""
    """The file or data set of the row."""
    merged: int = 1
    """Number of rows of the source that it was made from."""


def has_known_suffix(path: str | Path) -> bool:
    """Return whether a file's name ends in one of `SUFFIXES`."""
    return str(path).endswith(SUFFIXES)


def files_named(files: Iterable[Path], names: str) -> list[Path]:
    """Select the files named NAME and those with parts of it: `NAME-0.jsonl`, `NAME-00000-of-00002.parquet`.

    Args:
        files: Files whose names end in one of `SUFFIXES`.
        names: A regular expression of the names, without their endings.

    Raises:
        ConfigError: a name or a part exists twice, or both whole and in parts: rows would be read twice.
    """
    pattern = re.compile(f"(?P<name>{names})(?P<part>{_PART})")
    found: dict[tuple[str, str], Path] = {}
    for path in files:
        if match := pattern.fullmatch(path.name.split(".")[0]):
            _require_one(path, found.setdefault((match["name"], match["part"]), path))
    for (name, _), path in found.items():
        _require_one(path, found.get((name, ""), path))
    return list(found.values())


def _require_one(path: Path, other: Path) -> None:
    if path != other:
        raise ConfigError(
            f"{path.parent}: {other.name} and {path.name} would both be read, the same rows twice if one is a copy of "
            "the other. Remove or rename one of them."
        )


def read_rows(path: Path, *, source: str | None = None) -> Iterator[RawRow]:
    """Read a file's rows, one at a time.

    Args:
        path: A file whose name ends in one of `SUFFIXES`.
        source: Name of the file in error messages; its path by default.

    Raises:
        UnreadableError: the file can't be opened, decompressed or decoded.
    """
    source = source or str(path)
    with reading(source):
        require_regular(path)
        if not has_known_suffix(path):
            raise UnreadableError(
                f"{source}: the file's name ends in none of {FORMATS}. Convert the file, or rename it to say what it "
                "holds."
            )
        kind = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
        if kind in _TABLES:
            values = parquet_rows(path) if kind == ".parquet" else arrow_file_rows(path)
            yield from _numbered(values, source)
            return
        with opened(path) as file:
            if kind == ".jsonl":
                yield from _json_lines(file, source)
            elif kind == ".json":
                yield from _numbered(array_values(file, source), source)
            else:
                yield from _numbered(separated_rows(file, source, "\t" if kind == ".tsv" else ","), source)


def _numbered(values: Iterable[Any], source: str) -> Iterator[RawRow]:
    for number, value in enumerate(values, start=1):
        if isinstance(value, BadRowError):
            yield RawRow(number, error=value, source=source)
        else:
            yield RawRow(number, value, source=source)


def _json_lines(file: IO[bytes], source: str) -> Iterator[RawRow]:
    for number, line in enumerate(lines(file, source), start=1):
        if row := json_line_row(line, source, number):
            yield row


def json_line_row(line: bytes, source: str, number: int) -> RawRow | None:
    """Parse a line of a JSON-lines file; return None if it is blank.

    Raises:
        UnreadableError: the line is not UTF-8.
    """
    text = _decode(line.removeprefix(_BOM) if number == 1 else line, f"{source}, line {number}").strip()
    if not text:
        return None
    try:
        return RawRow(number, json.loads(text), source=source)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, or an integer of thousands of digits
        problem = BadRowError(
            BadRowReason.INVALID_JSON,
            source=source,
            row=number,
            field=None,
            problem=f"the line is not valid JSON ({json_problem(error)})",
            remedy="Repair or remove the line.",
        )
        return RawRow(number, error=problem, source=source)


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"{where}: not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}). Convert the file to UTF-8."
        ) from None
