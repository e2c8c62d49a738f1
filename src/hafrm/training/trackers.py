"""Keep one run per training in each tracker: it includes the last validation, and a resumed training continues it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import default_logdir, get_reporting_integration_callbacks

TRACKER_ID = "tracker_id"
"""The manifest's field with the id of the training in trackers."""

_TAG = "hafrm.training"
"""MLflow's tag with that id."""


def tracker_ids(args: TrainingArguments, before: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the manifest's fields that let trackers continue: those of the interrupted training, or new ones."""
    if not set(args.report_to or ()) - {"tensorboard"}:
        return {}
    return {TRACKER_ID: (before or {}).get(TRACKER_ID) or uuid.uuid4().hex[:12]}


@contextlib.contextmanager
def one_run_each(args: TrainingArguments, ids: Mapping[str, str]) -> Iterator[None]:
    """Set what trackers read from the environment, unless the user did; end the runs that W&B and SwanLab began.

    A run without a name gets that of the run's folder and the id, by which Trackio continues it.
    """
    if TRACKER_ID in ids and args.run_name is None:
        args.run_name = f"{Path(str(args.output_dir)).name}-{ids[TRACKER_ID]}"
    values = {name: value for tracker in args.report_to or () for name, value in _settings(tracker, args, ids).items()}
    new = {name: value for name, value in values.items() if name not in os.environ}
    already = getattr(sys.modules.get("wandb"), "run", None)
    os.environ.update(new)
    try:
        with _swanlab_run(args):
            yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        wandb: Any = sys.modules.get("wandb")
        if "wandb" in (args.report_to or ()) and already is None and getattr(wandb, "run", None) is not None:
            wandb.finish()
            wandb.teardown()  # otherwise the next run would be this one: W&B reads the environment once


@contextlib.contextmanager
def _swanlab_run(args: TrainingArguments) -> Iterator[None]:
    """Start a SwanLab run if one is wanted and there is none: transformers 5.23 accesses the run before starting it."""
    if "swanlab" not in (args.report_to or ()) or args.process_index != 0:
        yield
        return
    import swanlab

    with contextlib.nullcontext() if swanlab.has_run() else swanlab.init(name=args.run_name):
        yield


def _settings(tracker: str, args: TrainingArguments, ids: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables by which a tracker continues a training's run."""
    if tracker == "tensorboard":  # the newest folder in `runs/`: else every resumed training adds a curve
        found = sorted((Path(str(args.output_dir)) / "runs").glob("*"), key=lambda path: path.stat().st_mtime)
        return {"TENSORBOARD_LOGGING_DIR": str(found[-1] if found else Path(str(args.output_dir)) / default_logdir())}
    if tracker == "wandb":
        return {"WANDB_RUN_ID": ids[TRACKER_ID], "WANDB_RESUME": "allow"}
    if tracker == "swanlab":
        return {"SWANLAB_RUN_ID": ids[TRACKER_ID], "SWANLAB_RESUME": "allow"}
    if tracker == "mlflow":
        return {"MLFLOW_TAGS": json.dumps({_TAG: ids[TRACKER_ID]})} | _mlflow_run(ids[TRACKER_ID])
    return {}


def _mlflow_run(training: str) -> dict[str, str]:
    """Return the setting by which MLflow continues an earlier run of a training, if there is one."""
    import mlflow

    tagged = f"tags.`{_TAG}` = '{training}'"
    runs = mlflow.search_runs(search_all_experiments=True, filter_string=tagged, output_format="list")
    return {"MLFLOW_RUN_ID": runs[0].info.run_id} if runs else {}


@contextlib.contextmanager
def open_to_the_end(trainer: Trainer) -> Iterator[None]:
    """End the trackers' runs when the block ends: after training, some would start another one for later log lines."""
    kinds = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    trackers: list[Any] = [each for each in trainer.callback_handler.callbacks if isinstance(each, kinds)]
    for each in trackers:
        each.on_train_end = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for each in trackers:
            del each.on_train_end
            each.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
