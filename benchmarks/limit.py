"""How close a step comes to the machine's limit: necessary operations, divided by the measured peak of matrix products.

    python -m benchmarks.limit                # the peak of this machine
    python -m benchmarks.limit FILE...        # the share of it that each contestant of a step's results reached

The floor only counts the products that the unique tokens need: no padding, no repeated prompt, no recomputation, no
softmax, no norm. A contestant's share of the peak is the *floor's* operations divided by its own time, so unnecessary
computations lower it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import print_table
from benchmarks.workload import Shape
from hafrm.encoding import TokenGroup

__all__ = ["hybrid_operations", "matmul_peak", "needed_operations", "shares_of_peak"]


def matmul_peak(*, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the peak floating-point operations per second of float32 matrix products here.

    Under `time.process_time` seconds are those of one thread, because the threads' times add up.
    """
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (3200, 512, 1376), (4096, 1024, 4096), (512, 512, 32768)):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        out = torch.empty(rows, columns)
        torch.mm(left, right, out=out)
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            start = clock()
            torch.mm(left, right, out=out)
            best = max(best, 2 * rows * inner * columns / (clock() - start))
    return best


def hybrid_operations(shape: Shape, groups: Sequence[TokenGroup], *, head: bool = True) -> float:
    """Count the operations that a hybrid step needs: forward and backward are three products per weight.

    Args:
        shape: The model.
        groups: The pairs.
        head: Whether the LM head is trained (it is not if only the reward head is).
    """
    unique = sum(group.unique_tokens for group in groups)
    responses = sum(len(response) for group in groups for response in group.responses)
    seen = sum(_visible_keys(group) for group in groups)
    layers = 6.0 * shape.backbone_weights * unique
    # Two products per visible key in the forward pass (logits and values), each with two more in the backward pass.
    attention = 6.0 * 2 * shape.layers * shape.hidden * seen
    return layers + attention + (6.0 * shape.hidden * shape.vocabulary * responses if head else 0.0)


def _visible_keys(group: TokenGroup) -> int:
    """Count the keys that the group's tokens see: each token sees itself and those before it in its sequence."""
    prompt = len(group.prompt)
    own = prompt * (prompt + 1) // 2
    return own + sum(len(r) * prompt + len(r) * (len(r) + 1) // 2 for r in group.responses)


def needed_operations(name: str, shape: Shape, batches: Sequence[Sequence[TokenGroup]]) -> list[float]:
    """The operations that a contestant's task needs for each batch, however it computes them."""
    head = "reward" not in name  # the two reward models don't use the LM head
    return [hybrid_operations(shape, batch, head=head) for batch in batches]


def shares_of_peak(result: Mapping[str, Any]) -> dict[str, float]:
    """Return each contestant's share of the peak for a result of `benchmarks.step`."""
    return {
        name: statistics.median(o / s for o, s in zip(operations, result["seconds"][name], strict=True))
        / result["matmul_peak"]
        for name, operations in result["needed_operations"].items()
    }


def main() -> None:
    """Show the shares of results, or measure this machine's peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", help="files that benchmarks.step wrote")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.results:
        print(f"{matmul_peak() / 1e9:.0f} GFLOP/s in float32 matrix products, {options.threads} threads")
    for path in options.results:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [
            (name, f"{statistics.median(result['needed_operations'][name]) / 1e9:.0f}", f"{share:.2f}")
            for name, share in shares_of_peak(result).items()
        ]
        title = f"{path}: {result['matmul_peak'] / 1e9:.0f} GFLOP/s at most"
        print_table(title, ("contestant", "needed GFLOP a step", "share of peak"), rows)


if __name__ == "__main__":
    main()
