"""One run per training in each tracker: a resumed training continues its run, and the next training begins another."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import default_logdir

WANDB_ID = "wandb_id"
"""The manifest's field with the id of the run at W&B."""


def tracker_ids(args: TrainingArguments, before: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the manifest's fields that let trackers continue: those of the interrupted training, or new ones."""
    if "wandb" not in (args.report_to or ()):
        return {}
    return {WANDB_ID: (before or {}).get(WANDB_ID) or uuid.uuid4().hex[:12]}


@contextlib.contextmanager
def one_run_each(args: TrainingArguments, ids: Mapping[str, str]) -> Iterator[None]:
    """Set what trackers read from the environment, unless the user did, and end the run that W&B began.

    TensorBoard writes to the newest folder in `runs/`, if there is one: else every resumed training adds a curve.
    """
    found = sorted((Path(str(args.output_dir)) / "runs").glob("*"), key=lambda path: path.stat().st_mtime)
    folder = found[-1] if found else Path(str(args.output_dir)) / default_logdir()
    values = {"TENSORBOARD_LOGGING_DIR": str(folder)} if "tensorboard" in (args.report_to or ()) else {}
    if WANDB_ID in ids:
        values |= {"WANDB_RUN_ID": ids[WANDB_ID], "WANDB_RESUME": "allow"}
    new = {name: value for name, value in values.items() if name not in os.environ}
    already = getattr(sys.modules.get("wandb"), "run", None)
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        wandb: Any = sys.modules.get("wandb")
        if WANDB_ID in ids and already is None and getattr(wandb, "run", None) is not None:
            wandb.finish()
