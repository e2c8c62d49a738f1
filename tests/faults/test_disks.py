"""On full or read-only disks, commands print one line, leave nothing half-written, and can resume later."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hafrm.errors import UnwritableError
from hafrm.models.checkpoints import writing
from tests.faults.processes import LEAST_LIMIT, Ended
from tests.faults.stages import STAGES, Stage, slow
from tests.faults.whole import outcome

_CAPABILITIES_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2 | 1 << 3  # root's leave to ignore permissions: CAP_DAC_*, CAP_FOWNER


def limit_files(size: int) -> None:
    """Limit the size of files: a write beyond it fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey_permissions() -> None:
    """Drop root's permission to write everywhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for place in range(3):
        sets[place] &= ~_OVERRIDES & 0xFFFFFFFF
    assert libc.capset(header, sets) == 0


def require_one_line(ended: Ended, stage: Stage) -> None:
    """Check that the command failed with a readable message."""
    assert ended.status == 2, ended.said
    assert "Traceback" not in ended.said
    last = ended.said.splitlines()[-1]
    assert last.startswith(f"hafrm {stage.argv[0]}: "), ended.said
    assert str(stage.work) in last, ended.said


@pytest.mark.parametrize("share", [slow(0.0), 0.5, slow(1.0)])
@pytest.mark.parametrize("name", [*map(slow, STAGES[:4]), *STAGES[4:]])
def test_files_that_can_not_grow(name: str, share: float, stage_of: Callable[[str], Stage]) -> None:
    """A write in the middle of a file fails: first of every file over the limit, finally of the longest."""
    stage = stage_of(name)
    size = LEAST_LIMIT + int(share * (max(stage.sizes) - 1 - LEAST_LIMIT))
    require_one_line(stage.run(partial(limit_files, size)), stage)
    stage.require_no_half_file()
    stage.require_resumed()


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize("place", ["none/file", "folder"])
def test_writers_errors_are_the_folders(save: Callable[..., None], place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnwritableError, match=f"{tmp_path} can't be written"), writing(tmp_path):
        save({"weight": torch.ones(10_000)}, tmp_path / place)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Some tensors share memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.distributed.DistBackendError("NCCL error"),
        SafetensorError("Error while deserializing header"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_not_the_disks(error: Exception, tmp_path: Path) -> None:
    """Such errors occur while a checkpoint is written, but more free space would not help."""
    with pytest.raises(type(error)) as caught, writing(tmp_path):
        raise error
    assert caught.value is error


@contextlib.contextmanager
def small_disk(folder: Path, *, pages: int) -> Iterator[None]:
    """Mount a disk of so many 4 KiB pages at the folder; skip the test if that is not allowed."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("share", [slow(0.2), 0.7])
@pytest.mark.parametrize("name", [*map(slow, STAGES[:2]), *STAGES[2:]])
def test_a_full_disk(name: str, share: float, stage_of: Callable[[str], Stage]) -> None:
    stage = stage_of(name)
    with small_disk(stage.work, pages=int(share * sum(stage.sizes)) // 4096 + 1):
        require_one_line(stage.run(), stage)
        subprocess.run(["mount", "-o", "remount,size=100m", str(stage.work)], check=True)
        stage.require_no_half_file()
        stage.require_resumed()


def test_a_cache_that_can_not_be_written_stops_no_training(stage_of: Callable[[str], Stage]) -> None:
    """One warning names it, however many parts there are, and the weights are those of an undisturbed run."""
    stage = stage_of("precompute")
    folder = stage.work / "cache"
    folder.mkdir()
    folder.chmod(0o555)
    ended = stage.run(obey_permissions) if os.geteuid() == 0 else stage.run()
    folder.chmod(0o755)
    assert ended.status == 0, ended.said
    (line,) = [line for line in ended.said.splitlines() if "warning" in line and str(folder) in line]
    assert "Permission denied" in line
    assert list(folder.iterdir()) == []
    expected = {name: content for name, content in stage.expected.items() if name.startswith("out/")}
    assert {name: content for name, content in outcome(stage.work).items() if name.startswith("out/")} == expected


@pytest.mark.parametrize("name", [name for name in STAGES if name != "precompute"])
def test_a_read_only_folder(name: str, stage_of: Callable[[str], Stage]) -> None:
    stage = stage_of(name)
    folder = stage.work / stage.watched
    folder.mkdir()
    folder.chmod(0o555)
    ended = stage.run(obey_permissions) if os.geteuid() == 0 else stage.run()
    folder.chmod(0o755)
    require_one_line(ended, stage)
    assert str(folder) in ended.said.splitlines()[-1]
    assert list(folder.iterdir()) == []
    stage.require_resumed()


def test_a_mounted_output_folder(stage_of: Callable[[str], Stage]) -> None:
    """The folder can be written to, but not the one around it, so nothing can be put beside it."""
    stage = stage_of("train")
    folder = stage.work / "out"
    for place in (folder, stage.work / "cache"):
        place.mkdir()
    stage.work.chmod(0o555)
    ended = stage.run(obey_permissions) if os.geteuid() == 0 else stage.run()
    again = stage.run(obey_permissions) if os.geteuid() == 0 else stage.run()
    stage.work.chmod(0o755)
    assert ended.status == 0, ended.said
    assert {*outcome(stage.work)} - {"out/.lock"} == {*stage.expected}
    assert "finished run" in again.said.splitlines()[-1]
