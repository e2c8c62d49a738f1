"""Each tracker gets one run per training, also if the training is resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hafrm.training.trackers import TRACKER_ID, one_run_each, tracker_ids

ROOT = Path(__file__).parents[2]


def arguments(folder: Path, *trackers: str) -> Any:
    return SimpleNamespace(output_dir=str(folder), report_to=list(trackers), run_name=None, process_index=0)


def mlflow_runs(folder: Path) -> list[float]:
    code = """
        import json, mlflow
        runs = mlflow.search_runs(search_all_experiments=True, order_by=["start_time"], output_format="list")
        assert {(run.info.status, run.data.params["max_steps"]) for run in runs} == {("FINISHED", "4")}
        print(json.dumps([run.data.metrics["eval_loss"] for run in runs]))
    """
    return json.loads(python(folder, "-c", textwrap.dedent(code)))


def trackio_runs(folder: Path) -> list[float]:
    code = """
        import json
        from trackio.sqlite_storage import SQLiteStorage as Storage
        (project,) = Storage.get_projects()
        logs = [Storage.get_logs(project, run) for run in Storage.get_runs(project)]
        print(json.dumps([[line for line in log if "eval/loss" in line][-1]["eval/loss"] for log in logs]))
    """
    return json.loads(python(folder, "-c", textwrap.dedent(code)))


def wandb_runs(folder: Path) -> list[str]:
    """Return the runs' ids: an offline run that is resumed has two folders."""
    return sorted({path.name.rsplit("-", 1)[1] for path in (folder / "wandb").glob("offline-run-*")})


def swanlab_runs(folder: Path) -> list[str]:
    return sorted({path.name.rsplit("-", 1)[1] for path in (folder / "swanlog").glob("run-*")})


def tensorboard_runs(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = [run for out in ("first", "second") for run in (folder / out / "runs").iterdir()]
    assert len(list(runs[1].iterdir())) == 1  # a file, as it was not resumed
    return [EventAccumulator(str(run)).Reload().Scalars("eval/loss")[-1].value for run in runs]


RUNS: dict[str, Callable[[Path], list[Any]]] = {
    "mlflow": mlflow_runs,
    "trackio": trackio_runs,
    "wandb": wandb_runs,
    "swanlab": swanlab_runs,
    "tensorboard": tensorboard_runs,
}


def python(folder: Path, *command: str) -> str:
    """Run Python with trackers that write into a folder; return its last line."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
    }
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return next(line for line in reversed(done.stdout.splitlines()) if line.startswith("["))


@pytest.mark.slow
@pytest.mark.parametrize("tracker", RUNS)
def test_each_training_is_one_run_with_its_last_validation(tracker: str, tmp_path: Path) -> None:
    """A training that is stopped and resumed, then another one."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"needs {tracker}")
    losses = json.loads(python(tmp_path, "-m", "tests.training.tracked_worker", tracker, str(tmp_path)))
    runs = RUNS[tracker](tmp_path)
    if isinstance(runs[0], float):
        assert runs == pytest.approx(losses, abs=1e-6)
    assert len(runs) == 2


def test_wandb_continues_a_run_and_begins_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    wandb: Any = SimpleNamespace(run=None, finish=lambda: ended.append("run"), teardown=lambda: None)
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    args = arguments(tmp_path, "wandb")
    first, second = tracker_ids(args, None), tracker_ids(args, None)
    assert first != second
    assert tracker_ids(args, first) == first
    assert tracker_ids(arguments(tmp_path, "tensorboard"), None) == {}
    with one_run_each(args, first):
        assert os.environ["WANDB_RUN_ID"] == first[TRACKER_ID]
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
