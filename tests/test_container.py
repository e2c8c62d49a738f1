"""Limits of containers, as Linux writes them in either version of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hafrm.container import allowed_cores, free_memory


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def own(folder: Path, line: str) -> Path:
    write(folder, own=line)
    return folder / "own"


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_cores_of_version_2(tmp_path: Path, text: str, cores: int | None) -> None:
    write(tmp_path, cpu__max=text)
    assert allowed_cores(tmp_path, own(tmp_path, "0::/")) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("400000", 4), ("410000", 5)])
def test_cores_of_version_1(tmp_path: Path, quota: str, cores: int | None) -> None:
    """The path is the host's, which a container does not see."""
    write(tmp_path / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert allowed_cores(tmp_path, own(tmp_path, "3:cpuset:/\n1:cpu,cpuacct:/docker/1f\n0::/")) == cores


def test_the_strictest_of_a_group_and_its_parents_counts(tmp_path: Path) -> None:
    write(tmp_path / "a", cpu__max="300000 100000")
    write(tmp_path / "a" / "b", cpu__max="max 100000")
    write(tmp_path / "a" / "b" / "c", cpu__max="800000 100000")
    write(tmp_path / "z", cpu__max="100000 100000")
    assert allowed_cores(tmp_path, own(tmp_path, "0::/a/b/c")) == 3


def test_free_memory_counts_cached_files_as_free(tmp_path: Path) -> None:
    write(tmp_path, memory__max="1000", memory__current="700", memory__stat="anon 600\ninactive_file 50")
    assert free_memory(tmp_path, own(tmp_path, "0::/")) == 350
    stat = "inactive_file 1\ntotal_inactive_file 40"
    limits = {"memory__limit_in_bytes": "1000", "memory__usage_in_bytes": "700", "memory__stat": stat}
    write(tmp_path / "memory" / "mine", **limits)
    assert free_memory(tmp_path, own(tmp_path, "4:memory:/mine")) == 340


def test_there_may_be_no_limit(tmp_path: Path) -> None:
    line = own(tmp_path, "0::/")
    assert allowed_cores(tmp_path, line) is None
    assert free_memory(tmp_path, line) is None
    assert allowed_cores(tmp_path, tmp_path / "none") is None  # not Linux
    write(tmp_path, memory__max="max", memory__current="700", memory__stat="inactive_file 50")
    assert free_memory(tmp_path, line) is None


@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_pytorch_gets_no_more_threads_than_the_container_has_cores(given: dict[str, str], threads: str) -> None:
    """The limit is read before torch is imported; the user's own setting wins."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    code = """
import sys, types
limits = types.ModuleType("hafrm.container")
limits.allowed_cores, limits.free_memory = lambda: 1, lambda: None
sys.modules["hafrm.container"] = limits
import hafrm, torch
print(torch.get_num_threads())
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == threads
