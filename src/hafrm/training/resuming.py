"""Going on with transformers' own loop where a killed run stopped."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer, TrainerState

from hafrm.training.trainer import last_checkpoint, require_whole_archives

__all__ = ["train_to_the_end"]


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
