"""Work of each process for `test_distributed.py`: a list of runs, one after another.

    torchrun --nproc_per_node 2 -m tests.training.distributed_worker RUNS.json
    python -m tests.training.distributed_worker RUNS.json 2    # two workers of Ray Train

RUNS.json is a list of keyword arguments for `TrainConfig`. Each process has a separate cache, as on several nodes.
"""

from __future__ import annotations

import json
import os
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
    os.environ["HAFRM_CACHE"] = str(runs.with_name(f"{runs.stem}-cache-{os.environ.get('RANK', 0)}"))
    references._PART = 4  # so that a few pairs are several parts, of which each process has some
    for values in json.loads(runs.read_text()):
        groups = {"data_options": DataOptions(**values["data_options"]), "lora": LoraOptions(**values["lora"])}
        train(TrainConfig(**(values | groups)))
    PartialState().destroy_process_group()


def by_ray(runs: Path, workers: int) -> None:
    """Do the runs in workers of Ray Train, as in docs/distributed.md."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=workers + 1, include_dashboard=False)
    place = RunConfig(storage_path=str(runs.with_name("ray")))
    TorchTrainer(lambda: main(runs), scaling_config=ScalingConfig(num_workers=workers), run_config=place).fit()


if __name__ == "__main__":
    file, *workers = sys.argv[1:]
    if workers:
        by_ray(Path(file), int(workers[0]))
    else:
        main(Path(file))
