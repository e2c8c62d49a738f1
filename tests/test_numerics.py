"""A run's changes to the process are undone afterwards, and change no result."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hafrm.numerics import cpu_tuned, freed_memory_kept, subnormals_flushed


def test_subnormals_are_zero_within_and_numbers_after() -> None:
    with subnormals_flushed():
        assert (torch.tensor(1e-39) * 1.0).item() == 0.0
    assert (torch.tensor(1e-39) * 1.0).item() > 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="finds OpenMP's runtime in /proc")
@pytest.mark.parametrize("within", [2, 1, 4], ids=["as before", "fewer", "more"])
def test_threads_that_work_within_flush_and_no_others(within: int) -> None:
    """A worker does its part of a parallel operation, whether it started before or within the context."""
    threads = torch.get_num_threads()
    numbers = torch.full((2**20,), 1e-39)
    try:
        torch.set_num_threads(2)
        assert (numbers * 1.0).count_nonzero() == 2**20
        with subnormals_flushed():
            assert (numbers * 1.0).count_nonzero() == 0
            torch.set_num_threads(within)
            assert (numbers * 1.0).count_nonzero() == 0
        for after in (within, 2, 4):
            torch.set_num_threads(after)
            assert (numbers * 1.0).count_nonzero() == 2**20
    finally:
        torch.set_num_threads(threads)


def test_it_ends_after_an_error_too() -> None:
    try:
        with cpu_tuned():
            raise RuntimeError
    except RuntimeError:
        pass
    assert (torch.tensor(1e-39) * 1.0).item() > 0.0


def test_freed_memory_is_used_again() -> None:
    """On glibc, tensors made and freed within the context touch no fresh pages after the first."""
    code = """
import ctypes, resource, sys, torch
from hafrm.numerics import freed_memory_kept
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(77)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
plain = faults()
with freed_memory_kept():
    faults()
    kept = faults()
print(plain, kept)
sys.exit(not kept < plain / 10)
"""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode in (0, 77), found.stdout + found.stderr


def test_results_are_the_same() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 300)
    before = x @ x
    with freed_memory_kept():
        assert torch.equal(x @ x, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the heap's size from glibc")
def test_products_of_ever_new_shapes_in_bfloat16_take_no_memory() -> None:
    """A packed row rarely has the length of an earlier one, and PyTorch would keep code for each length."""
    code = """
import ctypes, hafrm, torch

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap
weight = torch.ones(96, 64, dtype=torch.bfloat16)
used = []
for lengths in (range(300, 340), range(340, 540)):
    for length in lengths:
        torch.ones(length, 64, dtype=torch.bfloat16) @ weight.t()
    used.append(mallinfo().uordblks)
print(used[1] - used[0])
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(found.stdout) < 10 * 2**20
