"""Rows of data sets on the Hugging Face hub, loaded by the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hafrm.data.rowfiles import arrow_row
from hafrm.errors import UnreadableError, first_line
from hafrm.hub import work_offline_if_unreachable
from hafrm.rows import Row


def hub_rows(path: str, arguments: Mapping[str, Any], *, split: str, source: str, remedy: str) -> Iterator[Row]:
    """Load the rows of one split of a hub data set (downloaded once, then cached).

    Args:
        path: The data set, as in `datasets.load_dataset`.
        arguments: Further arguments of `load_dataset`.
        split: The split's name on the hub.
        source: Source of the rows, for ids and errors.
        remedy: What to do if the hub fails, for the error message.

    Raises:
        UnreadableError: the hub can't be reached, has no such data set or split, or refuses access.
    """
    work_offline_if_unreachable()
    from datasets import load_dataset  # takes seconds to import and is not needed for files

    try:
        dataset = load_dataset(path, split=split, **arguments)
    except Exception as error:  # errors of the hub, the network and file formats share no base class
        call = hub_call(path, arguments, split=split)
        raise UnreadableError(f"{call} failed: {first_line(error).rstrip('.')}. {remedy}") from error
    return (Row(arrow_row(row), source, number) for number, row in enumerate(dataset, start=1))


def hub_call(path: str, arguments: Mapping[str, Any], *, split: str) -> str:
    """Write the loading call as Python, for reports and errors."""
    given = [repr(path), *(f"{name}={value!r}" for name, value in {**arguments, "split": split}.items())]
    return f"load_dataset({', '.join(given)})"
