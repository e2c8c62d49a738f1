"""Rows of tables in files: CSV, TSV, Parquet, Arrow, folders written by `save_to_disk` of the `datasets` library."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from hafrm.data.files import LONGEST_ROW
from hafrm.errors import BadRowError, BadRowReason, UnreadableError
from hafrm.rows import Cell

_BATCH = 1024
"""Rows converted at a time."""

_ARROW_FILE = b"ARROW1"


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from map(arrow_row, batch.to_pylist())


def arrow_file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file (Feather version 2) or of an Arrow stream, as `datasets` writes."""
    with pyarrow.memory_map(str(path)) as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield from map(arrow_row, batch.slice(start, _BATCH).to_pylist())


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


def separated_rows(file: IO[bytes], source: str, separator: str) -> Iterator[dict[str, Any] | BadRowError]:
    """Yield the rows of a CSV or TSV file, whose first line names the columns; a row with other cells is an error.

    Raises:
        UnreadableError: the file is not UTF-8, its quotes are broken, or its first line does not name the columns.
    """
    csv.field_size_limit(LONGEST_ROW)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            names = _column_names(reader, source)
            for number, cells in enumerate(filter(None, reader), start=1):
                if len(cells) == len(names):
                    yield {name: Cell(cell) for name, cell in zip(names, cells, strict=True)}
                else:
                    yield _wrong_cells(cells, names, source, number, reader.line_num)
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


def _column_names(reader: Iterator[list[str]], source: str) -> list[str]:
    names = next(reader, [])
    if len(set(names)) < len(names) or not all(names):
        what = "names a column twice" if all(names) else "has a column without a name"
        raise UnreadableError(f"{source}: the first line {what}. Write the columns' names into it.")
    return names


def _wrong_cells(cells: list[str], names: list[str], source: str, number: int, line: int) -> BadRowError:
    return BadRowError(
        BadRowReason.WRONG_TYPE,
        source=source,
        row=number,
        field=None,
        problem=f"the row, which ends in line {line}, has {len(cells)} cells, but the first line names {len(names)} "
        "columns",
        remedy="Quote cells that contain the separator or line breaks.",
    )


def saved_files(folder: Path, split: str) -> list[Path] | None:
    """Return the files of a split in a folder of `save_to_disk`, or None if the folder is not one.

    A folder of one data set without splits is read whole.

    Raises:
        UnreadableError: the folder has no such split, or lacks files.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if split not in splits:
            raise UnreadableError(
                f"{folder}: the saved data set has no split {split!r}, but {', '.join(splits)}. Name one as "
                f"{folder}#SPLIT."
            )
        folder = folder / split
    elif not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    state = _json(folder / "state.json")
    files = [folder / str(part["filename"]) for part in state.get("_data_files", [])]
    missing = next((file for file in files if not file.is_file()), None)
    if missing or not files or state.get("_indices_files"):
        problem = f"lacks {missing}" if missing else "names no files, or an order of rows of an old version"
        raise UnreadableError(f"{folder}: the saved data set {problem}. Save it again with `save_to_disk`.")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path}: can't be read ({error}). Save the data set again.") from error
    return value if isinstance(value, dict) else {}
