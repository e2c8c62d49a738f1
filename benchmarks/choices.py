"""How choices that save time affect accuracy: batches by prompt, and products in bfloat16.

    python -m benchmarks.choices --model FOLDER --data pku_safe arguments qa_eval --steps 200 --out FILE

Trains HAF in float32, in float32 with `--data_options.batch_by prompt`, and with `--training.bf16 true`, with several
seeds on the same pairs for the same number of steps, and compares the accuracy on all test pairs and the tokens that
went through the model. Runs that FILE already has stay in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure import environment, print_table, save
from benchmarks.workload import SHARED

WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "by prompt": {"data_options": {"batch_by": "prompt"}},
    "bfloat16": {"training": {"bf16": True}},
}
"""Options in addition to the common ones, which include float32; each other way is compared with the default."""


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
    settings["model"] = Path(options.model).name
    result = _earlier(Path(options.out), settings)
    for data in options.data:
        for seed in options.seeds:
            for way in WAYS:
                name = f"{data} {way} {seed}"
                if name not in result["trained"]:
                    result["trained"][name] = _run(options, data, way, seed)
                    save(options.out, result)
    result["choices"] = list(_compare(options, result["trained"]))
    save(options.out, result)
    rows = [tuple(str(value) for value in each.values()) for each in result["choices"]]
    print_table("accuracy on test pairs", tuple(result["choices"][0]), rows)


def _earlier(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if out.exists():
        saved: dict[str, Any] = json.loads(out.read_text())
        if all(saved[name] == value for name, value in settings.items()):
            return saved
    return {"environment": environment(), **settings, "trained": {}}


def _run(options: argparse.Namespace, data: str, way: str, seed: int) -> dict[str, float]:
    import hafrm

    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        training = {
            "max_steps": options.steps,
            "learning_rate": options.learning_rate,
            "seed": seed,
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            **WAYS[way].get("training", {}),
        }
        hafrm.train(
            {
                "model": options.model,
                "data": [str(SHARED / "data" / f"{data}-train.jsonl.gz")],
                "out": str(out / "run"),
                "data_options": {"max_length": options.max_length, **WAYS[way].get("data_options", {})},
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


def _compare(options: argparse.Namespace, trained: dict[str, dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield each set's comparison of each way with the default, accuracies in percent and means over seeds."""
    for data in options.data:
        found = {way: [trained[f"{data} {way} {seed}"] for seed in options.seeds] for way in WAYS}
        before = [100 * run["accuracy"] for run in found["default"]]
        tokens = {way: fmean(run["tokens_per_pair"] for run in runs) for way, runs in found.items()}
        for way in list(WAYS)[1:]:
            after = [100 * run["accuracy"] for run in found[way]]
            gains = [b - a for a, b in zip(before, after, strict=True)]
            yield {
                "set": data,
                "way": way,
                "default": round(fmean(before), 1),
                "this way": round(fmean(after), 1),
                "gain": round(fmean(gains), 1) + 0.0,  # not -0.0
                "gain by seed": ", ".join(f"{gain:+.1f}" for gain in gains),
                "tokens, this way / default": round(tokens[way] / tokens["default"], 2),
            }


if __name__ == "__main__":
    main()
