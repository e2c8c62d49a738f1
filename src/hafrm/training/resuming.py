"""Going on with transformers' own loop where a killed run stopped."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from zipfile import ZipFile

from transformers import Trainer, TrainerState

from hafrm.errors import DamagedError

__all__ = ["last_checkpoint", "require_whole_archives", "train_to_the_end", "without_checkpoint"]

_ARCHIVES = ("*.pt", "*.pth", "optimizer*.bin")
"""Files of a checkpoint that torch writes as archives; the last is the optimizer under FSDP."""


def train_to_the_end(trainer: Trainer, folder: Path) -> None:
    """Train, from the folder's last checkpoint if there is one; where that is of the last step, it is only loaded.

    Args:
        trainer: The trainer, made as for a new run.
        folder: Where its checkpoints lie.

    Raises:
        DamagedError: a file of the last checkpoint is not as it was written.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        require_whole_archives(checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # transformers would step once more
            trainer.state = state
            trainer._load_from_checkpoint(str(checkpoint))
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or None.

    The trainer's state is the last file of a checkpoint, so one that reads well means that the rest is there.
    """
    complete = []
    for folder in run.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append((int(state["global_step"]), folder))
    return max(complete, default=(0, None))[1]


def require_whole_archives(checkpoint: Path) -> None:
    """Refuse a checkpoint of which optimizer, schedule or random numbers are damaged: torch reads without checksums.

    Raises:
        DamagedError: names the file.
    """
    for path in sorted(path for pattern in _ARCHIVES for path in checkpoint.glob(pattern)):
        try:
            with ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except Exception:  # zipfile has many for a damaged archive: its own, NotImplementedError, zlib's, ...
            damaged = True
        if damaged:
            raise DamagedError(f"{path} is damaged. {without_checkpoint(checkpoint)}.")


def without_checkpoint(checkpoint: Path) -> str:
    """What to do about a damaged checkpoint of a run that is to go on, as a clause."""
    return (
        f"Delete the folder {checkpoint}: the same command then goes on from the checkpoint before it that holds an "
        "optimizer's state, or begins again where there is none"
    )
