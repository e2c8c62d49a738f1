"""How a hybrid step's cost grows with the size of its input.

    python -m benchmarks.scaling --out FILE --plot FILE.svg

One quantity at a time is doubled while the others are fixed; `slopes` are those of straight lines through the logs of
size and seconds: 1 is proportional, 0 is free. If more responses share a prompt, or the prompt is a larger part of a
pair, the cost should grow less than proportionally, because the prompt is encoded once.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import build
from benchmarks.measure import environment, interleaved, print_table, save
from benchmarks.workload import SHAPES, Shape, new_causal_lm, random_group
from hafrm.atomic import write_text
from hafrm.encoding import TokenGroup
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.layout import probe_packing
from hafrm.numerics import cpu_tuned
from hafrm.packing import pack_rows
from hafrm.stats import linear_fit

Point = tuple[float, Callable[[], Any]]
"""A size, and what to run at that size."""


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: for a machine that is not idle")
    parser.add_argument("--out", help="a file for the JSON")
    parser.add_argument("--plot", help="a file for the plot, as SVG")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with cpu_tuned():
        result = _measure(options)
    if options.plot:
        write_text(Path(options.plot), _plot(result["curves"]))
    save(options.out, result)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    curves: dict[str, dict[str, list[float]]] = {}
    clock = time.process_time if options.cpu_time else time.perf_counter
    for name, points in _experiments(SHAPES[options.shape]).items():
        for _, run in points:
            run()  # the first run allocates
        actions = {str(size): [run] * options.rounds for size, run in points}
        seconds = interleaved(actions, clock=clock)
        curves[name] = {
            "size": [size for size, _ in points],
            "seconds": [statistics.median(seconds[str(size)]) for size, _ in points],
        }
    slopes = {name: _slope(curve) for name, curve in curves.items()}
    rows = [
        (name, ", ".join(f"{x:g}: {y:.2f}" for x, y in zip(*curve.values(), strict=True)), f"{slopes[name]:.2f}")
        for name, curve in curves.items()
    ]
    print_table(f"Seconds by size ({options.shape})", ("what grows", "size: seconds", "slope"), rows)
    return {"environment": environment(), "shape": options.shape, "curves": curves, "ratios": slopes}


def _slope(curve: dict[str, list[float]]) -> float:
    logs = [[math.log(value) for value in curve[axis]] for axis in ("size", "seconds")]
    return linear_fit(*logs).slope


def _experiments(shape: Shape) -> dict[str, list[Point]]:
    hybrid = build("hybrid", shape)
    lengths, batches = (64, 128, 256, 512), (4, 8, 16, 32)
    return {
        "pair length (half of it prompt)": [
            (n, _step(hybrid, [random_group(n // 2, n // 2, n // 2, seed=i) for i in range(8)])) for n in lengths
        ],
        "prompt tokens, answers of 32": [
            (n, _step(hybrid, [random_group(n, 32, 32, seed=i) for i in range(8)])) for n in lengths
        ],
        "pairs a batch": [(b, _step(hybrid, [random_group(96, 64, 64, seed=i) for i in range(b)])) for b in batches],
        "responses a prompt (scoring, prompt 256, answers of 64)": _scoring(shape, (1, 2, 4, 8, 16)),
        "vocabulary": [
            (
                v,
                _step(
                    build("hybrid", replace(shape, vocabulary=v)), [random_group(96, 64, 64, seed=i) for i in range(8)]
                ),
            )
            for v in (32_768, 65_536, 131_072)
        ],
    }


def _step(step: Callable[[Sequence[TokenGroup]], Tensor], groups: list[TokenGroup]) -> Callable[[], Tensor]:
    return lambda: step(groups)


def _scoring(shape: Shape, numbers: Sequence[int]) -> list[Point]:
    """Compute rewards of N responses to each of four prompts: the cost of best-of-N."""
    causal_lm = new_causal_lm(shape).eval()
    head = new_reward_head(causal_lm.config.hidden_size, init="normal", seed=0, dtype=torch.float32)
    model = HybridModel(causal_lm, head)
    assert probe_packing(model, max_length=512) is None

    def run(number: int) -> Callable[[], Tensor]:
        batch = pack_rows([random_group(256, *[64] * number, seed=i) for i in range(4)])

        @torch.inference_mode()
        def score() -> Tensor:
            rewards: Tensor = model(batch, log_probs=False).rewards
            return rewards

        return score

    return [(number, run(number)) for number in numbers]


def _plot(curves: dict[str, dict[str, list[float]]]) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    from io import StringIO

    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), layout="constrained")
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        axis.loglog(curve["size"], curve["seconds"], marker="o", color="#1f5fa8")
        first = curve["seconds"][0]
        proportional = [first * size / curve["size"][0] for size in curve["size"]]
        axis.loglog(curve["size"], proportional, linestyle=":", color="#888888", label="proportional")
        axis.set_title(f"{name}\nslope {_slope(curve):.2f}", fontsize=9)
        axis.set_xlabel("size")
        axis.set_ylabel("seconds")
        axis.set_xticks(curve["size"], [f"{size:g}" for size in curve["size"]])
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=8)
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


if __name__ == "__main__":
    main()
