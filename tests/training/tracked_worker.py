"""Trainings for `test_trackers.py`: one that is stopped and resumed, then another one.

    python -m tests.training.tracked_worker TRACKER FOLDER

Prints, as JSON, the validation loss of each training's kept checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs


class Stop(TrainerCallback):
    """Stops a training in its third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def main(tracker: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    base = save_tiny(folder / "base", max_position_embeddings=512)
    rows = [pair.as_row() for pair in some_pairs(8)]
    training = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "use_cpu": True, "report_to": tracker}
    first, second = (
        TrainConfig(
            model=str(base), data=rows, eval_data=rows[:4], out=str(folder / out), method="baseline", training=training
        )
        for out in ("first", "second")
    )
    with contextlib.suppress(KeyboardInterrupt):
        train(first, callbacks=[Stop()])
    print(json.dumps([train(config).metrics["eval_loss"] for config in (first, second)]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
