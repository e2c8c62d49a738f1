"""How the processor computes: what a run may change for a while."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

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
    """Let subnormal numbers be zero, in this thread and in the threads that share its operations; then as before.

    Gradients of saturated pairs are as small as 1e-39, and x86 CPUs are several times slower with such numbers.
    """
    before = sys.float_info.min / 2 == 0.0
    threads = torch.get_num_threads()
    _flush_subnormals(True, threads)
    try:
        yield
    finally:  # fewer threads may be in use by now: those that rest would flush on when there are more again
        _flush_subnormals(before, max(threads, torch.get_num_threads()))


def _flush_subnormals(on: bool, threads: int) -> None:
    """`torch.set_flush_denormal` reaches its own thread alone; OpenMP's workers keep the state that they began with.

    So it is called on each of them, by a parallel region of the runtime that PyTorch uses. A worker that begins later
    begins with the state of the thread that starts it.
    """
    torch.set_flush_denormal(on)
    openmp = _openmp()
    if openmp is not None:
        region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: torch.set_flush_denormal(on))
        openmp.GOMP_parallel(region, None, threads, 0)


def _openmp() -> ctypes.CDLL | None:
    """PyTorch's OpenMP runtime, where it is one that speaks GCC's protocol (LLVM's and Intel's do too).

    Other libraries can have brought runtimes of their own; PyTorch's lies beside it, or is the system's.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    lines = maps.read_text(encoding="utf-8").splitlines()
    loaded = {Path(line.split(maxsplit=5)[-1]) for line in lines if "omp" in line}
    runtimes = [path for path in loaded if path.name.startswith(("libgomp", "libiomp5", "libomp"))]
    own = Path(torch.__file__).parent
    nearest = min(runtimes, key=lambda path: (not path.is_relative_to(own), len(path.parts)), default=None)
    return None if nearest is None else ctypes.CDLL(str(nearest))


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
