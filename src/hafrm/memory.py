"""Batches that do not fit into memory: an error that says which options make them smaller."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hafrm.errors import NoMemoryError

__all__ = ["enough_memory"]

_CPU = "you tried to allocate"  # what PyTorch says on a CPU, in an error of no kind of its own


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Let a block that runs out of memory end in an error that says what to do.

    Args:
        what: What is computed, and how big it is.
        remedy: The options that make it smaller, as a sentence.

    Raises:
        NoMemoryError: memory is exhausted, a GPU's or the machine's.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and _CPU not in str(error):
            raise
        raise NoMemoryError(f"Out of memory at {what}. {remedy}") from error
