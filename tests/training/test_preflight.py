"""The machine's requirements for a run are checked before anything is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hafrm.errors import ConfigError
from hafrm.training import preflight
from hafrm.training.config import TrainConfig
from hafrm.training.preflight import check_machine, require_all_processes
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.usefixtures("no_accelerator")
def test_processes_that_would_train_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_machine({})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes.*training\.use_cpu true"):
        check_machine({})
    check_machine({"use_cpu": True})
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_machine({})


def test_accelerate_must_see_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SimpleNamespace(world_size=1)
    require_all_processes(one)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 processes"):
        require_all_processes(one)


@pytest.mark.parametrize("given", ["wandb", ["tensorboard", "wandb"]])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_read(
    given: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "get_available_reporting_integrations", lambda: ["tensorboard"])
    config = TrainConfig(
        model=str(tmp_path / "none"), data=["none.jsonl"], out=str(tmp_path / "out"), training={"report_to": given}
    )
    with pytest.raises(ConfigError, match=r"report_to: wandb is not installed.*pip install wandb"):
        train(config)
    assert not (tmp_path / "out").exists()


def test_trackers_that_are_there_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "get_available_reporting_integrations", lambda: ["tensorboard"])
    for given in (None, "none", "all", [], "tensorboard", ["tensorboard"]):
        check_machine({"report_to": given})


@pytest.mark.parametrize(("given", "expected"), [("tensorbord", "Did you mean tensorboard"), (["mine"], "wandb")])
def test_a_tracker_that_does_not_exist_is_named(given: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"is not a tracker.*{expected}"):
        check_machine({"report_to": given})


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="with an accelerator the processes find each other")
def test_torchrun_without_a_gpu_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(4)))
    base = save_tiny(tmp_path / "base", max_position_embeddings=512)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hafrm"]
    command += ["train", "--model", str(base), "--data", str(rows), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "training.use_cpu true" in done.stderr
    assert "Traceback" not in done.stderr.split("torch.distributed.run")[0].split("elastic")[0]
    assert not (tmp_path / "out").exists()
