"""Rows in memory: lists, DataFrames, Arrow tables, data sets of the `datasets` library and generators.

`data_names_of` turns what the Python API takes as data into data names. The name of data in memory is a `MemoryData`, a
string that also refers to the rows, so that options remain plain values in manifests and copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np

from hafrm.data.rowfiles import arrow_row, require_once
from hafrm.errors import ConfigError, DataError
from hafrm.pairs import PreferencePair
from hafrm.rows import Row, is_list

_BATCH = 1000
"""Rows converted at a time."""

_TAKES = (
    "Give file names, a list of dicts or PreferencePairs, a pandas or polars DataFrame, a pyarrow Table, a Dataset or "
    "IterableDataset, or a generator of rows."
)


class MemoryData(str):
    """The name of data in memory, with the data; copies share them."""

    held: Any
    _begun: bool

    def __new__(cls, name: str, held: Any) -> MemoryData:
        """Create a name for data, as in ids of pairs and reports."""
        self = super().__new__(cls, name)
        self.held, self._begun = held, False
        return self

    def __copy__(self) -> MemoryData:
        return self

    def __deepcopy__(self, memo: Any) -> MemoryData:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # worker processes get token ids, not rows

    @property
    def size(self) -> int | None:
        """Number of rows; None if it is unknown, as for generators."""
        try:
            return len(self.held)
        except TypeError:
            return None

    @property
    def fingerprint(self) -> str | None:
        """A fingerprint of the rows, which a data set of the `datasets` library has."""
        found = getattr(self.held, "_fingerprint", None)
        return found if self.size is not None and isinstance(found, str) else None

    @property
    def description(self) -> str:
        """Type, size and fingerprint of the data, for reports."""
        size = "" if self.size is None else f" of {self.size:,} rows"
        mark = f", fingerprint {self.fingerprint}" if self.fingerprint else ""
        return f"{_kind(self.held)}{size}{mark}"

    def of_split(self, split: str) -> MemoryData:
        """Return one split of data with splits, such as a DatasetDict; other data unchanged.

        Raises:
            ConfigError: there is no such split.
        """
        if not isinstance(self.held, Mapping):
            return self
        if split not in self.held:
            splits = ", ".join(map(str, self.held))
            raise ConfigError(
                f"{self}: {_kind(self.held)} has no split {split!r}, only {splits}. Give the split itself."
            )
        return MemoryData(self, self.held[split])

    def rows(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            DataError: the data is a generator that was read before.
        """
        if isinstance(self.held, Iterator):
            if self._begun:
                raise DataError(
                    f"{self}: the rows of {_kind(self.held)} were read before and can be read only once. Give a list, "
                    "or a new generator."
                )
            self._begun = True
        for number, value in enumerate(_values(self.held), start=1):
            yield Row(value.as_row() if isinstance(value, PreferencePair) else value, self, number)


def data_names_of(data: Any, option: str = "data") -> list[str]:
    """Return the data names of what the Python API takes as data.

    Args:
        data: A name, a path, rows in memory, or a list of these.
        option: What messages call it.

    Raises:
        ConfigError: the argument is none of these.
    """
    several = isinstance(data, list | tuple) and not (data and _is_row(data[0]))
    names: list[str] = []
    for given in data if several else [data]:
        if isinstance(given, str | PathLike):
            names.append(given if isinstance(given, MemoryData) else fspath(given))
            continue
        holds_rows = isinstance(given, Iterable) or hasattr(given, "to_batches")
        if not holds_rows or isinstance(given, bytes) or _is_row(given):
            raise ConfigError(f"{option}: can't read rows from {_kind(given)}. {_TAKES}")
        earlier = sum(isinstance(name, MemoryData) for name in names)
        names.append(MemoryData(f"memory-{earlier + 1}" if earlier else "memory", given))
    return names


def _is_row(value: Any) -> bool:
    return isinstance(value, PreferencePair) or (isinstance(value, Mapping) and not _has_splits(value))


def _has_splits(value: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is one from splits to tables, such as a DatasetDict, rather than a row."""
    return bool(value) and all(hasattr(each, "column_names") or hasattr(each, "columns") for each in value.values())


def _kind(value: Any) -> str:
    kind = type(value)
    return (
        f"a {kind.__name__}" if kind.__module__ == "builtins" else f"a {kind.__module__.split('.')[0]} {kind.__name__}"
    )


def _values(held: Any) -> Iterator[Any]:
    """Yield the rows of data in memory as plain values."""
    if hasattr(held, "iter_rows"):  # polars
        yield from held.iter_rows(named=True)
    elif hasattr(held, "iloc") and hasattr(held, "columns"):  # pandas
        held = _with_index(held)
        require_once(held.columns, _kind(held))
        for start in range(0, len(held), _BATCH):
            for row in held.iloc[start : start + _BATCH].to_dict("records"):
                yield arrow_row({str(name): plain_value(value, _filled) for name, value in row.items()})
    elif hasattr(held, "to_batches"):  # pyarrow
        require_once(held.schema.names, _kind(held))
        for batch in held.to_batches(max_chunksize=_BATCH):
            yield from map(arrow_row, batch.to_pylist())
    elif hasattr(held, "with_format") and hasattr(held, "column_names") and hasattr(held, "__len__"):  # a Dataset
        for table in held.with_format("arrow").iter(batch_size=_BATCH):
            yield from map(arrow_row, table.to_pylist())
    else:
        for value in held:
            with contextlib.suppress(RecursionError):  # too deep a value is not one that a row needs
                value = plain_value(value)
            yield arrow_row(value) if hasattr(held, "column_names") and isinstance(value, Mapping) else value


def _with_index(frame: Any) -> Any:
    """Return a pandas DataFrame with the named levels of its index as columns, except those it also has as columns."""
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    return frame.reset_index(level=named) if named else frame


def plain_value(value: Any, of_scalar: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a value with Python's numbers and lists for those of numpy; `of_scalar` converts all other values."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain_value(each, of_scalar) for name, each in value.items()}
    if is_list(value):
        return [plain_value(each, of_scalar) for each in value]
    return of_scalar(value.item() if isinstance(value, np.generic) else value)


def _filled(value: Any) -> Any:
    """Return None for a missing value of a DataFrame."""
    # NaN, NaT and pandas' NA are the values that are not equal to themselves
    same = value == value
    return value if same is True else None
