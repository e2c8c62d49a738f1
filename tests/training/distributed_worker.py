"""What each of several processes does for `test_distributed.py`: the runs that it is told, one after another.

    torchrun --nproc_per_node 2 -m tests.training.distributed_worker RUNS.json

RUNS.json is a list of keyword arguments for `TrainConfig`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from accelerate import PartialState

from hafrm.data import DataOptions
from hafrm.models import references
from hafrm.models.options import LoraOptions
from hafrm.training.config import TrainConfig
from hafrm.training.run import train


def main(runs: Path) -> None:
    warnings.simplefilter("ignore")
    references._PART = 4  # so that a few pairs are several parts, of which each process has some
    computed = 0
    original = references._reference_batches

    def counting(model, groups, *args):
        nonlocal computed
        computed += len(groups)
        return original(model, groups, *args)

    references._reference_batches = counting
    for values in json.loads(runs.read_text()):
        groups = {"data_options": DataOptions(**values["data_options"]), "lora": LoraOptions(**values["lora"])}
        train(TrainConfig(**(values | groups)))
    runs.with_name(f"{runs.stem}-computed-{PartialState().process_index}").write_text(str(computed))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
