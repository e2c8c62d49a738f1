"""Turn running out of memory into an error that names the options to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hafrm.errors import NoMemoryError

_CPU = "DefaultCPUAllocator"  # the CPU allocator raises a plain RuntimeError with this name in it


@contextlib.contextmanager
def enough_memory(what: str, remedy: str, *, tokens: int = 0) -> Iterator[None]:
    """Raise an error with a remedy if the block runs out of memory.

    Args:
        what: What is computed, and its size.
        remedy: The options that make it smaller, as a sentence.
        tokens: The batch's tokens, if it could be split into smaller ones; set on the error.

    Raises:
        NoMemoryError: memory of the GPU or the machine is exhausted.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if _is_of_memory(error):
            full = NoMemoryError(f"Out of memory ({what}). {remedy}")
            full.tokens = tokens
            raise full from error
        raise


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and _CPU in str(error)
