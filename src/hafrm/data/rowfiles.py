"""Rows of files, one at a time: JSON lines, JSON, CSV and TSV, compressed or not, Parquet and Arrow.

Deals with file formats only: the content of rows is checked later. A line that is not JSON becomes a row with a fault,
so that later rows can still be read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from hafrm.data.arrays import array_values, json_problem
from hafrm.data.files import LONGEST_ROW, PACKED, lines, opened, reading, require_regular, too_long
from hafrm.errors import BadRowError, BadRowReason, ConfigError, UnreadableError
from hafrm.rows import Cell, Row, unique_keys
from hafrm.store import read_json

_TEXTS = (".jsonl", ".json", ".csv", ".tsv")
_TABLES = (".parquet", ".arrow", ".feather")

SUFFIXES = (*_TEXTS, *(text + packed for text in _TEXTS for packed in PACKED), *_TABLES)
"""Endings of supported files."""

FORMATS = f"{', '.join(_TEXTS)}, each also with {' or '.join(PACKED)}, {', '.join(_TABLES)}"
"""The endings in words."""

_PART = r"(?:-\d+(?:-of-\d+(?:-[0-9a-f]{16})?)?)?"
"""Suffix of the name of a file with part of the rows; the hub's converters used to add a fingerprint."""

_BATCH = 1024
"""Rows of a table converted at a time."""

_ARROW_FILE = b"ARROW1"

SPLITS_FILE = "dataset_dict.json"
"""Names the splits of a data set that was saved by `datasets`."""


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


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file's rows one at a time; raise UnreadableError if it can't be opened, decompressed or decoded."""
    source = str(path)
    with reading(source):
        require_regular(path)
        if not has_known_suffix(path):
            if not path.exists():
                raise UnreadableError(f"{source}: no such file. Check the path.")
            raise UnreadableError(
                f"{source}: the file's name must end in one of {FORMATS}. Convert the file, or rename it if it has one "
                "of these formats."
            )
        kind = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
        if kind in _TABLES:
            values = _parquet_rows(path) if kind == ".parquet" else _arrow_rows(path)
            yield from _numbered(values, source)
            return
        with opened(path) as file:
            if kind == ".jsonl":
                yield from _json_lines(file, source)
            elif kind == ".json":
                yield from _numbered(array_values(file, source), source)
            else:
                yield from _numbered(_separated_rows(file, source, "\t," if kind == ".tsv" else ",;\t"), source)


def _numbered(values: Iterable[Any], source: str) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        if isinstance(value, BadRowError):
            yield Row(source=source, number=number, fault=value)
        else:
            yield Row(value, source, number)


def _json_lines(file: IO[bytes], source: str) -> Iterator[Row]:
    """Yield the rows of the lines that are not blank; raise UnreadableError if one is not UTF-8."""
    for number, line in enumerate(lines(file, source), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UnreadableError(
                f"{source}, line {number}: not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}). "
                "Convert the file to UTF-8."
            ) from None
        if not text:
            continue
        try:
            yield Row(json.loads(text, object_pairs_hook=unique_keys), source, number)
        except (ValueError, RecursionError) as error:  # ValueError: bad JSON, a repeated key, or too long an integer
            problem = f"the line is not valid JSON ({json_problem(error)})"
            fault = Row(source=source, number=number).error(
                BadRowReason.INVALID_JSON, None, problem, "Repair or remove the line."
            )
            yield Row(source=source, number=number, fault=fault)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        require_once(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from map(arrow_row, batch.to_pylist())


def _arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file (Feather version 2) or of an Arrow stream, as `datasets` writes."""
    with pyarrow.memory_map(str(path)) as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
        else:
            reader = pyarrow.ipc.open_stream(file)
            batches = iter(reader)
        require_once(reader.schema.names, str(path))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield from map(arrow_row, batch.slice(start, _BATCH).to_pylist())


def require_once(names: Iterable[str], source: str) -> None:
    """Raise UnreadableError if a table has two columns of one name, since rows would only have one of them."""
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise UnreadableError(f"{source}: the column {name} occurs {count} times. Rename or remove one of them.")


def arrow_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of an Arrow table, removing null fields from its structs.

    Arrow gives all structs of a column the same fields, so a tool call would be rendered with null for arguments that
    only other calls have.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _separated_rows(file: IO[bytes], source: str, separators: str) -> Iterator[dict[str, Any] | BadRowError]:
    """Yield the rows of a CSV or TSV file, whose first line names the columns; a row with other cells is an error.

    Cells are separated by the first of the `separators` that the first line contains.

    Raises:
        UnreadableError: the file is not UTF-8, its quotes are broken, its first line does not name the columns, or a
            row is longer than `LONGEST_ROW`.
    """
    csv.field_size_limit(LONGEST_ROW)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        found = _TableLines(text, source)
        reader = csv.reader(found, strict=True)
        try:
            first = next(found, "")
            separator = next((each for each in separators if each in first), separators[0])
            reader = csv.reader(chain([first], found), delimiter=separator, strict=True)
            names = _with_index(next(reader, []))
            if not all(names):
                raise UnreadableError(
                    f"{source}: the first line has a column without a name. Write the columns' names into it."
                )
            require_once(names, source)
            for number, cells in enumerate(filter(None, found.rows(reader)), start=1):
                if len(cells) == len(names):
                    yield {name: Cell(cell) for name, cell in zip(names, cells, strict=True)}
                else:
                    problem = (
                        f"the row, which ends in line {reader.line_num}, has {len(cells)} cells, but the first line "
                        f"names {len(names)} columns"
                    )
                    remedy = "Quote cells that contain the separator or line breaks."
                    yield Row(source=source, number=number).error(BadRowReason.WRONG_TYPE, None, problem, remedy)
        except csv.Error as error:
            raise UnreadableError(
                f"{source}, line {reader.line_num}: {error}. Quote cells that contain the separator, quotes or line "
                "breaks."
            ) from None
        except UnicodeDecodeError as error:
            raise UnreadableError(
                f"{source}, after line {reader.line_num}: not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert "
                "the file to UTF-8."
            ) from None


def _with_index(names: list[str]) -> list[str]:
    """Name the first column `index` if only it has no name, as in tables that pandas writes."""
    if len(names) > 1 and not names[0] and "index" not in names:
        return ["index", *names[1:]]
    return names


class _TableLines(Iterator[str]):
    """Lines of a table for a `csv.reader`; those of one row may have at most `LONGEST_ROW` characters together."""

    def __init__(self, text: IO[str], source: str) -> None:
        self._text, self._source = text, source
        self._number = self._held = 0

    def __next__(self) -> str:
        line = self._text.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._held += len(line)
        if self._held > LONGEST_ROW:
            raise too_long(self._source, f"line {self._number}")
        return line

    def rows(self, reader: Iterable[list[str]]) -> Iterator[list[str]]:
        """Yield the rows of a reader of these lines."""
        for cells in reader:
            self._held = 0
            yield cells


def saved_files(folder: Path, split: str) -> list[Path] | None:
    """Return the files of a split in a folder of `save_to_disk`, or None if the folder is not one.

    A folder of one data set without splits is read whole.

    Raises:
        UnreadableError: the folder has no such split, or lacks files.
    """
    if (folder / SPLITS_FILE).is_file():
        splits = _saved_json(folder / SPLITS_FILE).get("splits", [])
        if split not in splits:
            raise UnreadableError(
                f"{folder}: the saved data set has no split {split!r}, but {', '.join(splits)}. Name one as "
                f"{folder}#SPLIT."
            )
        folder = folder / split
    elif not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    state = _saved_json(folder / "state.json")
    files = [folder / str(part["filename"]) for part in state.get("_data_files", [])]
    missing = next((file for file in files if not file.is_file()), None)
    if missing or not files or state.get("_indices_files"):
        problem = f"lacks {missing}" if missing else "names no files, or was saved by an old version of datasets"
        raise UnreadableError(f"{folder}: the saved data set {problem}. Save it again with `save_to_disk`.")
    return files


def _saved_json(path: Path) -> dict[str, Any]:
    if (value := read_json(path)) is None:
        raise UnreadableError(f"{path}: is damaged. Save the data set again.")
    return value
