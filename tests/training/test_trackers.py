"""Each tracker gets one run per training, also if the training is resumed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hafrm.training import callbacks
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from hafrm.training.trackers import one_run_each, tracker_ids
from tests.tiny import save_tiny, some_pairs


def arguments(folder: Path, *trackers: str) -> Any:
    return SimpleNamespace(output_dir=str(folder), report_to=list(trackers))


def test_a_resumed_training_writes_to_one_folder_of_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    config = TrainConfig(
        model=str(save_tiny(tmp_path / "base", max_position_embeddings=512)),
        data=[pair.as_row() for pair in some_pairs(8)],
        eval_data=[pair.as_row() for pair in some_pairs(4)],
        out=str(tmp_path / "run"),
        method="baseline",
        training={"max_steps": 4, "save_steps": 2, "eval_steps": 2, "use_cpu": True, "report_to": "tensorboard"},
    )

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.MetricsFile, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    assert len(list((tmp_path / "run" / "runs").iterdir())) == 1
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_wandb_continues_a_run_and_begins_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    wandb: Any = SimpleNamespace(run=None, finish=lambda: ended.append("run"))
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    args = arguments(tmp_path, "wandb")
    first, second = tracker_ids(args, None), tracker_ids(args, None)
    assert first != second
    assert tracker_ids(args, first) == first
    assert tracker_ids(arguments(tmp_path, "tensorboard"), None) == {}
    with one_run_each(args, first):
        assert os.environ["WANDB_RUN_ID"] == first["wandb_id"]
        assert os.environ["WANDB_RESUME"] == "allow"
        wandb.run = "begun here"
    assert ended == ["run"]
    assert "WANDB_RUN_ID" not in os.environ
    with one_run_each(args, second):  # a run that the user began stays open
        pass
    assert ended == ["run"]


def test_what_the_user_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    args = arguments(tmp_path, "wandb", "tensorboard")
    with one_run_each(args, tracker_ids(args, None)):
        assert os.environ["WANDB_RUN_ID"] == "mine"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == "elsewhere"
    assert os.environ["WANDB_RUN_ID"] == "mine"
