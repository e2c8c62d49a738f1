"""How the processor computes: what a run may change for a while."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

__all__ = ["cpu_tuned", "freed_memory_kept", "subnormals_flushed"]

# From glibc's malloc.h, with its defaults.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 128 * 1024
_M_MMAP_MAX, _MMAP_MAX = -4, 65536


@contextlib.contextmanager
def cpu_tuned() -> Iterator[None]:
    """Both of the below: what training on a CPU gains a good deal by, and nothing loses by."""
    with subnormals_flushed(), freed_memory_kept():
        yield


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Let subnormal numbers be zero; afterwards as it was.

    Gradients of saturated pairs are as small as 1e-39, and x86 CPUs are several times slower with such numbers.
    """
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let freed memory stay with the process, for the next step to use; afterwards as glibc has it by default.

    By default glibc gives every freed tensor of some size back to the system, and the next one of that size is fresh
    memory, which the kernel fills with zeros page by page: a twentieth of a training step. Does nothing where the C
    library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, _MMAP_MAX)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
