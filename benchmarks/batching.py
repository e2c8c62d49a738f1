"""What drawing a prompt's pairs together (`--data_options.batch_by prompt`) saves, and does to accuracy.

    python -m benchmarks.batching --model FOLDER --data pku_safe arguments qa_eval --steps 200 --out FILE

Trains HAF with each order and several seeds on the same pairs, for the same number of steps, and compares the accuracy
on all test pairs and the tokens that went through the model. Runs that FILE already has stay in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.measure import environment, print_table, save
from benchmarks.workload import SHARED

ORDERS = ("pair", "prompt")


def main() -> None:
    """Train, evaluate, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data", nargs="+", required=True, help="sets of ../shared/data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--out", required=True, help="a file for the JSON")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("steps", "learning_rate", "max_length")}
    result = _earlier(Path(options.out), settings)
    for data in options.data:
        for seed in options.seeds:
            for order in ORDERS:
                name = f"{data} {order} {seed}"
                if name not in result["runs"]:
                    result["runs"][name] = _run(options, data, order, seed)
                    save(options.out, result)
    _report(options, result["runs"])


def _earlier(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if out.exists():
        saved: dict[str, Any] = json.loads(out.read_text())
        if all(saved[name] == value for name, value in settings.items()):
            return saved
    return {"environment": environment(), **settings, "runs": {}}


def _run(options: argparse.Namespace, data: str, order: str, seed: int) -> dict[str, float]:
    import hafrm

    limits: dict[str, Any] = {"max_length": options.max_length, "batch_by": order}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        training = {
            "max_steps": options.steps,
            "learning_rate": options.learning_rate,
            "seed": seed,
            "use_cpu": True,
            "report_to": [],
        }
        hafrm.train(
            {
                "model": options.model,
                "data": [str(SHARED / "data" / f"{data}-train.jsonl.gz")],
                "out": str(out / "run"),
                "data_options": limits,
                "training": training,
            }
        )
        lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
        rates = [line["tokens_per_second"] / line["pairs_per_second"] for line in lines if "tokens_per_second" in line]
        results = hafrm.evaluate(
            {
                "models": [str(out / "run")],
                "data": [str(SHARED / "data" / f"{data}-test.jsonl.gz")],
                "out": str(out / "evaluated"),
                "token_log_ratios": 0,
            }
        )
        (cell,) = results.cells.values()
        accuracy = cell.measured.accuracy if cell.measured else float("nan")
    return {"accuracy": accuracy, "tokens_per_pair": round(fmean(rates), 1)}


def _report(options: argparse.Namespace, runs: dict[str, dict[str, float]]) -> None:
    rows = []
    for data in options.data:
        found = {
            order: [runs[f"{data} {order} {seed}"] for seed in options.seeds if f"{data} {order} {seed}" in runs]
            for order in ORDERS
        }
        accuracies = {order: [100 * run["accuracy"] for run in found[order]] for order in ORDERS}
        gains = [b - a for a, b in zip(accuracies["pair"], accuracies["prompt"], strict=True)]
        tokens = {order: fmean(run["tokens_per_pair"] for run in found[order]) for order in ORDERS}
        rows.append(
            (
                data,
                *(f"{fmean(accuracies[order]):.1f}" for order in ORDERS),
                f"{fmean(gains):+.1f} (sd {stdev(gains):.1f})" if len(gains) > 1 else f"{gains[0]:+.1f}",
                f"{tokens['prompt'] / tokens['pair']:.2f}",
            )
        )
    heads = ("set", "by pair, %", "by prompt, %", "gain", "tokens, prompt / pair")
    print_table("batches by pair and by prompt", heads, rows)


if __name__ == "__main__":
    main()
