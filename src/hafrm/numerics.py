"""Temporary CPU settings for faster arithmetic and memory allocation, and float64 on every device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

# Constants and defaults from glibc's malloc.h.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 128 * 1024
_M_MMAP_MAX, _MMAP_MAX = -4, 65536


_WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that have no float64."""


def doubled(values: Tensor) -> Tensor:
    """Return values in float64; on the CPU, if their device has no float64."""
    return (values.cpu() if values.device.type in _WITHOUT_FLOAT64 else values).double()


@contextlib.contextmanager
def cpu_tuned() -> Iterator[None]:
    """Flush subnormals and keep freed memory, which together speed up training on a CPU noticeably."""
    with subnormals_flushed(), freed_memory_kept():
        yield


@functools.cache
def bfloat16_speedup() -> float:
    """Measure how much faster than float32 this machine's CPU multiplies matrices in bfloat16, as a ratio.

    About 6 with AMX, 2 on an AMD Zen 4, which has AVX512-BF16, and below 1 where bfloat16 is emulated. Takes about 50
    ms, once per process.
    """
    dtypes = (torch.float32, torch.bfloat16)
    seconds = dict.fromkeys(dtypes, math.inf)
    factors = {dtype: [torch.full((512, 512), 0.5, dtype=dtype) for _ in range(2)] for dtype in dtypes}
    for _ in range(8):  # in turn, so that other work on the machine slows down both
        for dtype, (left, right) in factors.items():
            start = time.perf_counter()
            left @ right
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def is_bfloat16_fast() -> bool:
    """Return whether bfloat16 is faster even with its casts.

    Where products are 2.2 times as fast, a step takes .58 of float32's time at a width of 576, and 1.12 at one of 64.
    """
    return bfloat16_speedup() >= 1.5


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Flush subnormal numbers to zero in this thread and PyTorch's worker threads; restore the setting afterwards.

    Gradients of saturated pairs can be as small as 1e-39, and x86 CPUs are several times slower with such numbers.
    """
    before = sys.float_info.min / 2 == 0.0
    threads = torch.get_num_threads()
    _flush_subnormals(True, threads)
    try:
        yield
    finally:  # also reset threads that are idle now but may be used again
        _flush_subnormals(before, max(threads, torch.get_num_threads()))


def _flush_subnormals(on: bool, threads: int) -> None:
    """Call `torch.set_flush_denormal` on each OpenMP worker.

    PyTorch's function only affects the calling thread, and workers keep the state with which they started. A parallel
    region of PyTorch's OpenMP runtime reaches them; later workers inherit the state of the thread that starts them.
    """
    torch.set_flush_denormal(on)
    openmp = _openmp()
    if openmp is not None:
        region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: torch.set_flush_denormal(on))
        openmp.GOMP_parallel(region, None, threads, 0)


def _openmp() -> ctypes.CDLL | None:
    """Return PyTorch's OpenMP runtime if it has GCC's interface, as LLVM's and Intel's do too; otherwise None.

    Other libraries may have loaded other runtimes; PyTorch's is in its package folder or belongs to the system.
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
    """Keep freed memory in the process for the next step; restore glibc's defaults afterwards.

    By default glibc returns large freed tensors to the system, and the kernel zeroes the memory of the next allocation
    page by page, which takes 5% of a training step. Does nothing with other C libraries.
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
