"""Time that `hafrm train` spends outside its steps: reading, tokenizing, packing, logging, evaluation, saving.

    python -m benchmarks.overhead --out FILE

Measures the wall time of the parts of a training run on real pairs. The goal: everything except the forward and
backward passes, the optimizer and the reference's forward pass takes less than a tenth of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import environment, print_table, save
from benchmarks.workload import SHAPES, SHARED, new_causal_lm, real_tokenizer

PARTS = {
    "reading": ("hafrm.data.encode.open_sources",),
    "tokenizing": ("hafrm.training.inputs.load_tables",),
    "loading the model": ("hafrm.training.run.load_model",),
    "probing the layout": ("hafrm.training.fitting.choose_layout",),
    "reference log-probs": ("hafrm.training.reference.ReferenceCache.log_probs",),
    "packing": ("hafrm.training.batches.PairCollator.__call__",),
    "forward and backward": ("transformers.Trainer.training_step",),
    "optimizer": ("torch.optim.AdamW.step",),
    "evaluation": ("hafrm.training.trainer.HybridTrainer.evaluation_loop",),
    "logging": ("hafrm.training.trainer.HybridTrainer.log",),
    "saving": ("transformers.Trainer._save_checkpoint", "hafrm.training.run.save_run"),
}
"""The functions of each part; a part called within another counts for the outer one."""

WORK = ("forward and backward", "optimizer", "reference log-probs", "evaluation")
"""The purpose of a run; the rest is overhead. Evaluation consists of forward passes and is reported separately."""


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--method", default="haf", choices=("haf", "baseline", "dpo"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", help="a file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds, total = _run(options)
    seconds["everything else"] = total - sum(seconds.values())
    overhead = sum(value for name, value in seconds.items() if name not in WORK) / total
    rows = [(name, f"{value:.1f}", f"{100 * value / total:.1f}") for name, value in seconds.items()]
    print_table(f"hafrm train, {options.steps} steps, {total:.0f} s", ("part", "seconds", "% of the run"), rows)
    save(
        options.out,
        {
            "environment": environment(),
            "shape": options.shape,
            "method": options.method,
            "steps": options.steps,
            "seconds": seconds,
            "total": total,
            "ratios": {"overhead": overhead, "overhead_and_evaluation": overhead + seconds["evaluation"] / total},
        },
    )


def _run(options: argparse.Namespace) -> tuple[dict[str, float], float]:
    from hafrm.training.config import TrainConfig
    from hafrm.training.run import train

    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        new_causal_lm(SHAPES[options.shape]).save_pretrained(base)
        real_tokenizer().save_pretrained(base)
        data = SHARED / "data"
        config = TrainConfig(
            model=str(base),
            data=[str(data / "hh_harmless-train.jsonl.gz")],
            eval_data=[str(data / "hh_harmless-validation.jsonl.gz")],
            method=options.method,
            out=str(Path(place) / "run"),
            training={"max_steps": options.steps},
        )
        with _clocks() as seconds:
            start = time.perf_counter()
            train(config)
            return dict(seconds), time.perf_counter() - start


@contextlib.contextmanager
def _clocks() -> Iterator[dict[str, float]]:
    """Measure the time of every function in `PARTS` during the block."""
    seconds: dict[str, float] = defaultdict(float)
    running: list[str] = []
    undo = []
    for part, names in PARTS.items():
        seconds[part] = 0.0
        for name in names:
            owner, attribute = _resolve(name)
            original = getattr(owner, attribute)
            setattr(owner, attribute, _clocked(original, part, seconds, running))
            undo.append((owner, attribute, original))
    try:
        yield seconds
    finally:
        for owner, attribute, original in undo:
            setattr(owner, attribute, original)


def _clocked(
    function: Callable[..., Any], part: str, seconds: dict[str, float], running: list[str]
) -> Callable[..., Any]:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        if running:
            return function(*args, **kwargs)
        running.append(part)
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start
            running.pop()

    return clocked


def _resolve(name: str) -> tuple[Any, str]:
    """Return the module or class that contains a function, and its name there."""
    import importlib

    path = name.split(".")
    for cut in range(len(path) - 1, 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            owner: Any = importlib.import_module(".".join(path[:cut]))
            for part in path[cut:-1]:
                owner = getattr(owner, part)
            return owner, path[-1]
    raise AssertionError(name)


if __name__ == "__main__":
    main()
