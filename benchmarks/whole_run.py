"""What users wait for: whole trainings, from starting the command to the saved model, by hafrm and by TRL.

    python -m benchmarks.whole_run --model FOLDER --data pku_safe --pairs 192 --steps 10 --out FILE

Each contestant is a separate process, started in turn with the others, round by round; its time includes Python's
start, imports, reading and tokenizing, the reference policy, training and saving. All get the same pairs (those within
the limit of tokens), steps, batch size, learning rate, `--precision` and, as seed, the round's number. TRL's trainers
run without gradient checkpointing, which would slow them down, DPO with precomputed reference log-probs; in `grouped`
runs, batches have pairs of similar length. The accuracy on the test pairs, a mean over rounds, is measured by
`hafrm evaluate` for every reward model. Runs with the same settings that FILE already has stay in it, so with `--only`
contestants can be measured one by one, whenever the machine is idle.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.measure import environment, median_ratio, print_table, save
from benchmarks.workload import SHARED

OURS = {"hafrm haf": "haf", "hafrm baseline": "baseline", "hafrm dpo": "dpo"}
SIDES = ("chosen", "rejected")
THEIRS = ("trl reward", "trl reward grouped", "trl dpo", "trl dpo grouped")
RATIOS = {
    "haf / trl reward": ("hafrm haf", "trl reward"),
    "haf / trl reward grouped": ("hafrm haf", "trl reward grouped"),
    "haf / trl dpo": ("hafrm haf", "trl dpo"),
    "haf / trl dpo grouped": ("hafrm haf", "trl dpo grouped"),
    "baseline / trl reward": ("hafrm baseline", "trl reward"),
    "haf / baseline": ("hafrm haf", "hafrm baseline"),
}


def main() -> None:
    """Measure, print, save; or run one of TRL's trainers, which this module does in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data", default="pku_safe", help="a set of ../shared/data")
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of products")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[*OURS, *THEIRS])
    parser.add_argument("--test_pairs", type=int, default=0, help="measure accuracies on so many test pairs")
    parser.add_argument("--out", help="a file for the JSON")
    parser.add_argument("--trl", choices=THEIRS, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trl:
        _train_with_trl(options)
        return
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write_pairs(options, folder)
        seconds: dict[str, list[float]] = {name: [] for name in options.only}
        memory: dict[str, list[float]] = {name: [] for name in options.only}
        accuracies: dict[str, list[float]] = {name: [] for name in options.only}
        for number in range(options.rounds):
            shift = number % len(options.only)
            for name in options.only[shift:] + options.only[:shift]:
                out = folder / name.replace(" ", "-")
                shutil.rmtree(out, ignore_errors=True)
                shutil.rmtree(folder / "cache", ignore_errors=True)
                taken, peak = _run(_command(name, options, folder, out, number), folder, options.threads)
                seconds[name].append(taken)
                memory[name].append(peak)
                if options.test_pairs and "dpo" not in name:
                    accuracies[name].append(_accuracy(out, folder))
    _report(options, seconds, memory, accuracies)


def _write_pairs(options: argparse.Namespace, folder: Path) -> None:
    """Write the pairs within the limit, as all contestants read them: conversations."""
    from hafrm.data import DataOptions, encode_pairs, load_pairs
    from hafrm.encoding import ConversationEncoder
    from hafrm.models.tokenizers import load_tokenizer

    encoder = ConversationEncoder(load_tokenizer(options.model), options.max_length)
    for split, count in (("train", options.pairs), ("test", options.test_pairs)):
        pairs = load_pairs(str(SHARED / "data" / f"{options.data}-{split}.jsonl.gz")).pairs
        kept = encode_pairs(pairs, encoder, DataOptions(max_length=options.max_length)).kept[:count]
        rows = [{name: pairs[i].as_row()[name] for name in ("prompt", "chosen", "rejected")} for i in kept]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _command(name: str, options: argparse.Namespace, folder: Path, out: Path, seed: int) -> list[str]:
    if name in OURS:
        training = {
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "learning_rate": options.learning_rate,
            "seed": seed,
            "bf16": str(options.precision == "bfloat16").lower(),
            "report_to": "[]",
            "use_cpu": "true",
            "save_strategy": "no",
        }
        return [
            *(sys.executable, "-m", "hafrm", "train", "--model", options.model, "--out", str(out)),
            *("--data", str(folder / "train.jsonl"), "--method", OURS[name]),
            *(f"--training.{key}={value}" for key, value in training.items()),
            f"--data_options.max_length={options.max_length}",
        ]
    given = ("model", "steps", "batch", "learning_rate", "max_length", "precision")
    arguments = [f"--{key}={getattr(options, key)}" for key in given]
    command = [sys.executable, "-m", "benchmarks.whole_run", "--trl", name, "--place", str(out)]
    return [*command, f"--seed={seed}", *arguments]


def _run(command: list[str], folder: Path, threads: int) -> tuple[float, float]:
    """Return the seconds and the peak memory in bytes of a process."""
    variables = {"HAFRM_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return time.perf_counter() - start, 1024.0 * usage.ru_maxrss


def _train_with_trl(options: argparse.Namespace) -> None:
    """Train with TRL's RewardTrainer or DPOTrainer, and save."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from hafrm.models.tokenizers import load_tokenizer

    out = Path(options.place)
    common: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": options.learning_rate,
        "adam_epsilon": 1e-5,  # as in `hafrm train`
        "seed": options.seed,
        "max_length": options.max_length,
        "gradient_checkpointing": False,
        "bf16": options.precision == "bfloat16",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential" if "grouped" in options.trl else "random",
    }
    data = load_dataset("json", data_files=str(out.parent / "train.jsonl"), split="train", cache_dir=str(out / "data"))
    if "grouped" in options.trl:
        data = data.select(_by_length(data, options.batch))
    tokenizer = load_tokenizer(options.model)  # has the same chat template
    if "dpo" in options.trl:
        trainer: Any = DPOTrainer(
            options.model,
            args=DPOConfig(**common, precompute_ref_log_probs=True, model_init_kwargs={"dtype": "float32"}),
            train_dataset=data,
            processing_class=tokenizer,
        )
    else:
        arguments = RewardConfig(**common, model_init_kwargs={"dtype": "float32", "num_labels": 1})
        trainer = RewardTrainer(options.model, args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(out))
    trainer.processing_class.save_pretrained(str(out))


def _by_length(data: Any, batch: int) -> list[int]:
    """Return the rows in batches of similar length, in random order; transformers can't group TRL's rows itself."""
    lengths = [len(str(row["prompt"])) + max(len(str(row[side])) for side in SIDES) for row in data]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    random.Random(0).shuffle(batches)
    return [row for each in batches for row in each]


def _accuracy(model: Path, folder: Path) -> float:
    """Return a reward model's accuracy on the test pairs."""
    from hafrm.evaluation.options import EvaluateConfig
    from hafrm.evaluation.run import evaluate

    out = str(folder / "evaluated")
    shutil.rmtree(out, ignore_errors=True)
    results = evaluate(
        EvaluateConfig(models=[str(model)], data=[str(folder / "test.jsonl")], out=out, token_log_ratios=0)
    )
    (cell,) = results.cells.values()
    return cell.measured.accuracy if cell.measured else float("nan")


def _report(
    options: argparse.Namespace,
    seconds: Mapping[str, list[float]],
    memory: Mapping[str, list[float]],
    accuracies: Mapping[str, list[float]],
) -> None:
    described = ("data", "pairs", "steps", "batch", "learning_rate", "max_length", "precision", "threads", "test_pairs")
    settings = {"model": Path(options.model).name, **{name: getattr(options, name) for name in described}}
    runs = _earlier_runs(options.out, settings) | {
        name: {
            "seconds": taken,
            "memory": memory[name],
            "accuracies": accuracies[name],
            "accuracy": fmean(accuracies[name]) if accuracies[name] else None,
        }
        for name, taken in seconds.items()
    }
    rows = [
        (
            name,
            f"{median(run['seconds']):.1f}",
            f"{median(run['memory']) / 1e9:.2f}",
            "" if run["accuracy"] is None else f"{run['accuracy']:.3f}",
        )
        for name, run in runs.items()
    ]
    title = (
        f"{Path(options.model).name}, {options.pairs} pairs of {options.data}, {options.steps} steps of {options.batch}"
    )
    print_table(title, ("run", "seconds", "GB", "accuracy"), rows)
    pairs = {name: both for name, both in RATIOS.items() if set(both) <= runs.keys()}
    ratios = {name: median_ratio(runs[a]["seconds"], runs[b]["seconds"]) for name, (a, b) in pairs.items()}
    of_memory = {name: median_ratio(runs[a]["memory"], runs[b]["memory"]) for name, (a, b) in pairs.items()}
    print_table("ratios", ("", "seconds", "memory"), [(n, f"{ratios[n]:.2f}", f"{of_memory[n]:.2f}") for n in ratios])
    save(
        options.out,
        {
            "environment": environment(),
            **settings,
            "runs": runs,
            "ratios": ratios | {f"{name}_memory": ratio for name, ratio in of_memory.items()},
        },
    )


def _earlier_runs(out: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runs of a file with the same settings."""
    if out is None or not Path(out).exists():
        return {}
    saved = json.loads(Path(out).read_text())
    return saved["runs"] if all(saved[name] == value for name, value in settings.items()) else {}


if __name__ == "__main__":
    main()
