"""Resume a killed run from its newest complete checkpoint."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from hafrm import atomic
from hafrm.errors import DamagedError, HafrmError, ModelError
from hafrm.models.checksums import checksums, require_checksums
from hafrm.models.runinfo import RUN_FILE, RunInfo, checkpoint_folders, require_undamaged
from hafrm.store import read_json
from hafrm.training.callbacks import print_line

if TYPE_CHECKING:
    from hafrm.training.trainer import HybridTrainer

_ARCHIVES = ("*.pt", "*.pth", "optimizer*.bin")
"""Checkpoint files that torch writes as archives; the last pattern is the optimizer under FSDP."""

_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0")
"""Files or folders of the optimizer's state: without sharding, under FSDP, and under sharded FSDP."""


_READ_ON_RESUMING = re.compile(
    rf"{re.escape(TRAINER_STATE_NAME)}|latest|(optimizer|scheduler|scaler|rng_state\w*)\.(pt|pth|bin)"
    r"|pytorch_model\w*\.bin|(optimizer_\d+|pytorch_model_fsdp_\d+|global_step\d+)/.*"
)
"""Files of a checkpoint that transformers, accelerate and DeepSpeed look for when training resumes."""


def train_to_the_end(trainer: Trainer, folder: Path) -> None:
    """Train from the folder's last checkpoint, if any; if that is of the last step, only load it.

    Raises:
        DamagedError: a file of the last checkpoint is not as it was written.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        require_whole_archives(checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step >= state.max_steps:  # transformers would take one more step
            trainer.state = state
            trainer._load_from_checkpoint(str(checkpoint))
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def last_checkpoint(run: Path, say: Callable[[str], None] = print_line) -> Path | None:
    """Return the newest checkpoint that transformers' trainer can resume from, or None; say what newer ones lack."""
    return _newest(run, _trainers_problem, say)


def last_listed_checkpoint(run: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint of a hafrm run that matches the list in its `hafrm.json`, or None.

    Reads all files of the checkpoints that it examines; see `last_checkpoint`.

    Raises:
        DamagedError: a checkpoint is damaged, and there is no earlier one.
    """
    return _newest(run, lambda folder, step: _trainers_problem(folder, step) or _listed_problem(folder), say)


def train_or_resume(
    trainer: HybridTrainer, folder: Path, steps: int, say: Callable[[str], None], begin: Callable[[], None]
) -> None:
    """Train a hafrm run for `steps` steps in all, from its last checkpoint if there is one; else call `begin` first.

    All processes must call it.

    Raises:
        DamagedError, ModelError: the checkpoint can't be resumed from; the message says why and what to do.
    """
    checkpoint = _last_checkpoint(folder, say)
    if checkpoint is not None:
        say(f"resuming from {checkpoint.name}")
        state = _state_here(checkpoint)
        at_its_end = state.global_step >= steps or _out_of_patience(state)
        if at_its_end:  # killed after its last step: transformers would take one more
            trainer.state = state
            best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
            trainer.restore(Path(best or checkpoint))
            trainer.delete_old_checkpoints()
            return
    else:
        begin()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _last_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the checkpoint to resume from, or None. The first process reads it and broadcasts the result."""
    found = [last_listed_checkpoint(folder, say) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    return found[0]


def _state_here(checkpoint: Path) -> TrainerState:
    """Return a checkpoint's state, with the best checkpoint's path updated in case the run's folder was moved.

    Raises:
        ModelError: the best checkpoint is missing, so that the run could not keep it at its end.
        DamagedError: the best checkpoint is damaged.
    """
    path = checkpoint / "trainer_state.json"
    state: TrainerState = TrainerState.load_from_json(str(path))
    best = state.best_model_checkpoint
    here = best and str(checkpoint.parent / Path(best).name)
    if here and not Path(here).is_dir():
        raise ModelError(
            f"{here}, the best checkpoint according to {path}, is missing. Restore it, or start over with --overwrite."
        )
    if here and PartialState().is_main_process:
        require_undamaged(Path(here))
    if here != best:
        state.best_model_checkpoint = here
        values = json.loads(path.read_text(encoding="utf-8")) | {"best_model_checkpoint": here}
        atomic.write_json(path, values)
        list_training_state(checkpoint)
    return state


def _out_of_patience(state: TrainerState) -> bool:
    """Return whether early stopping had ended the run at this checkpoint."""
    callbacks: Any = state.stateful_callbacks or {}
    saved = callbacks.get("EarlyStoppingCallback", {})
    waited = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return bool(waited >= saved.get("args", {}).get("early_stopping_patience", math.inf))


def list_training_state(checkpoint: Path) -> None:
    """Add the training state to the list in a checkpoint's `hafrm.json`, which completes the checkpoint.

    Raises:
        OSError: the file can't be written.
    """
    info = RunInfo.load(checkpoint)
    replace(info, training_sha256=checksums(checkpoint, but=[RUN_FILE, *info.sha256])).save(checkpoint)


def _newest(run: Path, problem_of: Callable[[Path, int], str], say: Callable[[str], None]) -> Path | None:
    damaged: DamagedError | None = None
    for step, folder in reversed(checkpoint_folders(run).items()):
        try:
            problem = problem_of(folder, step)
        except HafrmError as error:
            problem = str(error)
            damaged = damaged or DamagedError(f"{error} {without_checkpoint(folder)}.")
        if not problem:
            return folder
        say(f"warning: training does not resume from {folder}, but from the checkpoint before it, if any: {problem}")
    if damaged is not None:  # don't silently redo all the work
        raise damaged
    return None


def _trainers_problem(folder: Path, step: int) -> str:
    """Describe what a checkpoint of transformers' trainer lacks; empty if it is complete.

    The trainer's state is the last file that it writes. Under ZeRO the optimizer is in a folder `global_step*`, which
    may also contain the schedule.
    """
    state = read_json(folder / TRAINER_STATE_NAME)
    if state is None:
        return f"it is incomplete (no complete {TRAINER_STATE_NAME})"
    if state.get("global_step") != step:
        return f"{TRAINER_STATE_NAME} is of step {state.get('global_step')}"
    zero = any(folder.glob("global_step*"))
    if not zero and not any((folder / name).exists() for name in _OPTIMIZER):
        return "it has no optimizer.pt"
    if not zero and not (folder / SCHEDULER_NAME).is_file():
        return f"it has no {SCHEDULER_NAME}"
    return "" if any(folder.glob("rng_state*.pth")) else "it has no rng_state.pth"


def _listed_problem(folder: Path) -> str:
    """Describe why a checkpoint does not match its `hafrm.json`; empty if it does.

    Raises:
        HafrmError: a file is not what was saved.
    """
    listed = require_undamaged(folder).training_sha256
    require_checksums(folder, listed, kept_in=RUN_FILE, remedy="Restore it from a copy", complete=False)
    if not listed:
        return f"it is incomplete ({RUN_FILE} lists no training state)"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _READ_ON_RESUMING.fullmatch(name) and name not in listed and not path.is_dir():
            raise DamagedError(
                f"{path} would be read by its name, but is not among the files that were saved ({folder / RUN_FILE}). "
                "Move it away."
            )
    return ""


def require_whole_archives(checkpoint: Path) -> None:
    """Raise DamagedError if an optimizer, schedule or random state is damaged: torch reads them without checksums."""
    for path in sorted(path for pattern in _ARCHIVES for path in checkpoint.glob(pattern)):
        try:
            with ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except Exception:  # zipfile raises many for a damaged archive: its own, NotImplementedError, zlib's, ...
            damaged = True
        if damaged:
            raise DamagedError(f"{path} is damaged. {without_checkpoint(checkpoint)}.")


def without_checkpoint(checkpoint: Path) -> str:
    """Return the remedy for a damaged checkpoint of a run that is to be resumed, as a clause."""
    return (
        f"Delete the folder {checkpoint}: the same command then resumes from the checkpoint before it that has an "
        "optimizer's state, or starts over if there is none"
    )
