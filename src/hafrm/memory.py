"""Batches that do not fit into memory: an error that says which options make them smaller."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hafrm.errors import NoMemoryError

__all__ = ["enough_memory"]

_CPU = "DefaultCPUAllocator"  # whose error is of no kind of its own


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
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter, and so is much else
        if _is_of_memory(error):
            raise NoMemoryError(f"Out of memory at {what}. {remedy}") from error
        raise


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and _CPU in str(error)
