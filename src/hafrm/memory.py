"""Turn out-of-memory errors into errors that name the options to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hafrm.errors import NoMemoryError

_CPU = "DefaultCPUAllocator"  # occurs in the plain RuntimeError that the CPU allocator raises


@contextlib.contextmanager
def enough_memory(what: str, remedy: str, *, tokens: int = 0) -> Iterator[None]:
    """Raise NoMemoryError, with a remedy, if the block runs out of a GPU's or the machine's memory.

    Args:
        what: What the block computes, and its size.
        remedy: The options that make it smaller, as a sentence.
        tokens: The batch's tokens, if it could be split into smaller ones; set on the error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if known or (type(error) is RuntimeError and _CPU in str(error)):
            full = NoMemoryError(f"Out of memory ({what}). {remedy}")
            full.tokens = tokens
            raise full from error
        raise
