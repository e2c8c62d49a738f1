"""How near a step comes to what the machine can do: operations needed, over the measured peak of matrix products.

    python -m benchmarks.limit --out FILE

The floor counts the products that the unique tokens need and nothing else: no padding, no prompt twice, no
recomputation, no softmax, no norm. Each contestant's share of the peak is the *floor's* operations over its own time,
so what a contestant computes beyond need counts against it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.measure import environment, interleaved, print_table, save
from benchmarks.workload import SHAPES, Shape, draw_batches, real_groups
from hafrm.encoding import TokenGroup
from hafrm.numerics import cpu_tuned

__all__ = ["hybrid_operations", "matmul_peak"]


def matmul_peak(*, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """The most floating-point operations a second that a matrix product reaches here, in float32.

    Under `time.process_time` that is a second of one thread: the threads' times add up.
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
    """Operations that a hybrid step needs: forward and backward are three products of each weight.

    Args:
        shape: The model.
        groups: The pairs.
        head: Whether the LM head is trained (with the reward head alone it is not).
    """
    unique = sum(group.unique_tokens for group in groups)
    responses = sum(len(response) for group in groups for response in group.responses)
    seen = sum(_visible_keys(group) for group in groups)
    layers = 6.0 * shape.backbone_weights * unique
    # Two products a visible key forward (logits and values), each with two more in the backward.
    attention = 6.0 * 2 * shape.layers * shape.hidden * seen
    return layers + attention + (6.0 * shape.hidden * shape.vocabulary * responses if head else 0.0)


def _visible_keys(group: TokenGroup) -> int:
    """Keys that the group's tokens see: each token those before it in its own sequence, and itself."""
    prompt = len(group.prompt)
    own = prompt * (prompt + 1) // 2
    return own + sum(len(r) * prompt + len(r) * (len(r) + 1) // 2 for r in group.responses)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--data", default="hh_harmless", choices=("hh_harmless", "pku_safe"))
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: for a machine that is not idle")
    parser.add_argument("--out", help="a file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with cpu_tuned():
        save(options.out, _measure(options))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.contestants import build  # it needs TRL; the counting above does not

    shape = SHAPES[options.shape]
    batches = draw_batches(real_groups(options.data), pairs=options.pairs, batches=options.rounds)
    needed = {
        "trl_reward": [hybrid_operations(shape, batch, head=False) for batch in batches],
        "trl_dpo": [hybrid_operations(shape, batch) for batch in batches],
        "padded_full_logits": [hybrid_operations(shape, batch) for batch in batches],
        "reward_only": [hybrid_operations(shape, batch, head=False) for batch in batches],
        "policy_only": [hybrid_operations(shape, batch) for batch in batches],
        "hybrid": [hybrid_operations(shape, batch) for batch in batches],
    }
    steps = {name: build(name, shape) for name in needed}
    for step in steps.values():
        step(batches[0][:2])
    clock = time.process_time if options.cpu_time else time.perf_counter
    peak = matmul_peak(clock=clock)
    actions = {name: [lambda step=step, batch=batch: step(batch) for batch in batches] for name, step in steps.items()}
    seconds = interleaved(actions, clock=clock)
    shares = {
        name: sorted(o / s / peak for o, s in zip(needed[name], seconds[name], strict=True))[len(batches) // 2]
        for name in needed
    }
    print_table(
        f"Share of the measured peak, {peak / 1e9:.0f} GFLOP/s ({options.shape} on {options.data})",
        ("contestant", "needed GFLOP", "share of peak"),
        [(name, f"{needed[name][0] / 1e9:.0f}", f"{share:.2f}") for name, share in shares.items()],
    )
    return {
        "environment": environment(),
        "shape": options.shape,
        "data": options.data,
        "matmul_peak": peak,
        "needed_operations": needed,
        "seconds": seconds,
        "ratios": {f"{name}_share_of_peak": share for name, share in shares.items()},
    }


if __name__ == "__main__":
    main()
