"""What a job scores: the input's files, cut into parts of so many rows, and how a part's rows are read.

A part is a range of one file's lines or rows. It names where its file's bytes begin, or its row groups are found by
their counts, so that an actor reads little besides its own rows. Ray's own readers are not used: they stop at the first
line that is no JSON, and want one schema for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from hafrm.data.files import lines, opened, reading
from hafrm.data.rows import RawRow, json_line_row
from hafrm.errors import BadRowError, BadRowReason, ConfigError, UnreadableError

__all__ = ["Input", "Part", "PartRows", "find_input", "plan_parts", "read_part"]

_LINES = (".jsonl", ".jsonl.gz")
_PARQUET = (".parquet",)
_BATCH = 1024  # rows decoded at a time


@dataclass(frozen=True)
class Part:
    """A range of one file's rows."""

    number: int
    """The part's place in the job, from 0, in the order of the input."""
    file: str
    """The file, by its path in the input's folder."""
    first: int
    """Lines, or rows, of the file before this part."""
    count: int
    """Lines, or rows, of this part."""
    offset: int = 0
    """Where the part's first line begins, in bytes of the decompressed file."""


@dataclass(frozen=True)
class Input:
    """A job's input."""

    folder: Path
    files: list[str]
    """The files to score, by their paths in the folder: all of one format."""
    left_out: list[str]
    """Files that are neither JSON lines nor Parquet by their names."""


@dataclass(frozen=True)
class PartRows:
    """A part's rows, as they are scored and, of a Parquet file, as they lie there."""

    rows: list[RawRow]
    table: pyarrow.Table | None = None


def find_input(data: Path) -> Input:
    """The files of a file's or a folder's name, in order.

    Args:
        data: A file or a folder, which is searched with all its folders. Names that begin with a dot or an underscore
            are passed over there, as other programs' readers do.

    Raises:
        ConfigError: there is nothing to read, or both formats, or JSON that is one array.
    """
    if data.is_dir():
        inside = (path.relative_to(data) for path in data.rglob("*") if not path.is_dir())
        folder, names = data, sorted(str(path) for path in inside if not any(part[0] in "._" for part in path.parts))
    else:
        folder, names = data.parent, [data.name]
    array = next((name for name in names if name.endswith((".json", ".json.gz"))), None)
    if array is not None:
        raise ConfigError(f"{folder / array} is one JSON value, of which no part can be read. Write it as JSON lines.")
    lines, parquet = ([name for name in names if name.endswith(kind)] for kind in (_LINES, _PARQUET))
    if not lines and not parquet:
        raise ConfigError(f"{data} holds no {', '.join((*_LINES, *_PARQUET))} to score. Check the path.")
    if lines and parquet:
        raise ConfigError(
            f"{data} holds {lines[0]} and {parquet[0]}. Score JSON lines and Parquet in jobs of their own."
        )
    files = lines or parquet
    return Input(folder, files, [name for name in names if name not in set(files)])


def plan_parts(found: Input, rows: int) -> list[Part]:
    """Cut the input's files into parts.

    Args:
        found: The input. Files of JSON lines are read through once, to find where parts begin.
        rows: Lines, or rows, of a part; the last one of a file has what is left.

    Raises:
        UnreadableError: a file can't be opened or decompressed.
    """
    parts: list[Part] = []
    for name in found.files:
        for first, count, offset in _ranges(found.folder / name, rows):
            parts.append(Part(len(parts), name, first, count, offset))
    return parts


def _ranges(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """First row, number of rows and first byte of a file's parts."""
    with reading(str(path)):
        if path.name.endswith(_PARQUET):
            total = pyarrow.parquet.read_metadata(path).num_rows
            yield from ((first, min(size, total - first), 0) for first in range(0, total, size))
            return
        with opened(path) as file:
            first = offset = 0
            found = lines(file, str(path))
            while lengths := [len(line) for line in islice(found, size)]:
                yield first, len(lengths), offset
                first, offset = first + len(lengths), offset + sum(lengths)


def read_part(folder: Path, part: Part) -> PartRows:
    """Read a part's rows.

    Raises:
        UnreadableError: the file can't be read, or has become shorter since the job was planned.
    """
    path = folder / part.file
    with reading(str(path)):
        if path.name.endswith(_PARQUET):
            table = _table(path, part)
            values = enumerate(table.to_pylist(), start=part.first + 1)
            return PartRows([RawRow(number, value) for number, value in values], table)
        with opened(path) as file:
            file.seek(part.offset)
            found = list(islice(lines(file, str(path), first=part.first + 1), part.count))
    _require_whole(path, part, len(found))
    numbered = enumerate(found, start=part.first + 1)
    return PartRows([row for number, line in numbered if (row := _line_row(line, str(path), number)) is not None])


def _line_row(line: bytes, source: str, number: int) -> RawRow | None:
    """A line as a row; one that is not UTF-8 is a bad row like others, as the lines after it can be read."""
    try:
        return json_line_row(line, source, number)
    except UnreadableError as error:
        problem = BadRowError(
            BadRowReason.INVALID_TEXT,
            source=source,
            row=number,
            field=None,
            problem=str(error),
            remedy="Repair the line.",
        )
        return RawRow(number, error=problem)


def _table(path: Path, part: Part) -> pyarrow.Table:
    """A part's rows of a Parquet file, of whose other row groups nothing is read."""
    with pyarrow.parquet.ParquetFile(path, buffer_size=2**20) as file:
        groups, before, total = [], 0, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if total + rows <= part.first:
                before += rows
            elif total < part.first + part.count:
                groups.append(group)
            total += rows
        found, place = [], before
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=groups):
            begin, end = max(part.first - place, 0), min(part.first + part.count - place, batch.num_rows)
            if begin < end:
                found.append(batch.slice(begin, end - begin))
            place += batch.num_rows
            if place >= part.first + part.count:
                break
        _require_whole(path, part, sum(batch.num_rows for batch in found))
        return pyarrow.Table.from_batches(found, schema=file.schema_arrow)


def _require_whole(path: Path, part: Part, found: int) -> None:
    if found != part.count:
        raise UnreadableError(f"{path} has changed since the job was planned. Score it into a new folder.")
