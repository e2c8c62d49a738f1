"""One training step, forward and backward: hafrm's compared with TRL's and with the padded hybrid.

    python -m benchmarks.step --out FILE

Each round draws a new batch of real pairs and runs every contestant on it once. `ratios` are medians over the rounds;
those with `_memory` compare the peak memory of whole processes, each running one contestant on the first batch.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS, GROUPED, build, plain_reference, saturated_reference
from benchmarks.limit import matmul_peak, needed_operations, shares_of_peak
from benchmarks.measure import environment, interleaved, median_ratio, peak_memory, peak_rss, print_table, save
from benchmarks.workload import SHAPES, draw_batches, real_groups
from hafrm.numerics import freed_memory_kept, subnormals_flushed

RATIOS = {
    "hybrid_vs_trl_reward": ("hybrid", "trl_reward"),
    "hybrid_vs_trl_dpo": ("hybrid", "trl_dpo"),
    "hybrid_vs_trl_dpo_live_reference": ("hybrid", "trl_dpo_live_reference"),
    "hybrid_vs_trl_dpo_every_position": ("hybrid", "trl_dpo_every_position"),
    "hybrid_vs_padded": ("hybrid", "padded_full_logits"),
    "hybrid_vs_our_padded": ("hybrid", "padded_hybrid"),
    "hybrid_vs_reward_only": ("hybrid", "reward_only"),
    "hybrid_vs_policy_only": ("hybrid", "policy_only"),
    "reward_only_vs_trl_reward": ("reward_only", "trl_reward"),
    "policy_only_vs_trl_dpo": ("policy_only", "trl_dpo"),
    "hybrid_grouped_vs_trl_reward_grouped": ("hybrid_grouped", "trl_reward_grouped"),
    "hybrid_grouped_vs_trl_dpo_grouped": ("hybrid_grouped", "trl_dpo_grouped"),
}


def main() -> None:
    """Measure, print, save."""
    options = _options()
    torch.set_num_threads(options.threads)
    with (
        contextlib.nullcontext() if options.subnormals else subnormals_flushed(),
        contextlib.nullcontext() if options.stock_malloc else freed_memory_kept(),
    ):
        if options.memory:
            _run_once(options)
            print(peak_rss())
            return
        save(options.out, _measure(options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--data", default="hh_harmless", choices=("hh_harmless", "pku_safe"))
    parser.add_argument("--pairs", type=int, default=16, help="pairs a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: for a machine that is not idle")
    parser.add_argument("--stock-malloc", action="store_true", help="let all contestants return freed memory")
    parser.add_argument("--saturated", action="store_true", help="DPO has long learnt the pairs: tiny gradients")
    parser.add_argument("--subnormals", action="store_true", help="let all contestants keep subnormal numbers")
    parser.add_argument("--out", help="a file for the JSON")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_once(options: argparse.Namespace) -> None:
    step = build(options.memory, SHAPES[options.shape])
    (batch,) = draw_batches(real_groups(options.data), pairs=options.pairs, batches=1)
    step(batch)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    # Measured first, while this process is small: two of the largest contestants together fill the machine.
    names = [] if options.no_memory else options.only
    memory = {name: peak_memory([*_again(options), "--memory", name]) for name in names}
    shape = SHAPES[options.shape]
    groups = real_groups(options.data)
    batches = draw_batches(groups, pairs=options.pairs, batches=options.rounds)
    grouped = draw_batches(groups, pairs=options.pairs, batches=options.rounds, grouped=True)
    reference = saturated_reference if options.saturated else plain_reference
    steps = {name: build(name, shape, reference) for name in options.only}
    for step in steps.values():
        step(batches[0][:2])  # the first step allocates
    actions: dict[str, list[Any]] = {}
    needed: dict[str, list[float]] = {}
    for name, step in steps.items():
        drawn = {name: batches} | ({f"{name}_grouped": grouped} if name in (*GROUPED, "hybrid") else {})
        for label, given in drawn.items():
            actions[label] = [lambda step=step, batch=batch: step(batch) for batch in given]
            needed[label] = needed_operations(name, shape, given)
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds = interleaved(actions, clock=clock)
    peak = matmul_peak(clock=clock)
    ratios = dict(_ratios(seconds, memory))
    if "hybrid" in seconds:
        ratios["hybrid_vs_floor"] = median_ratio(seconds["hybrid"], [o / peak for o in needed["hybrid"]])
    result = {
        "environment": environment(),
        "shape": options.shape,
        "data": options.data,
        "pairs": options.pairs,
        "clock": "processor" if options.cpu_time else "wall",
        "gradients": "saturated" if options.saturated else "ordinary",
        "subnormals": "kept" if options.subnormals else "flushed",
        "malloc": "stock" if options.stock_malloc else "freed memory kept",
        "unique_tokens": [sum(g.unique_tokens for g in batch) for batch in batches],
        "padded_tokens": [2 * len(batch) * max(max(g.lengths) for g in batch) for batch in batches],
        "response_tokens": [sum(len(r) for g in batch for r in g.responses) for batch in batches],
        "matmul_peak": peak,
        "needed_operations": needed,
        "seconds": seconds,
        "peak_memory": memory,
        "ratios": ratios,
    }
    _print(options, result)
    return result


def _again(options: argparse.Namespace) -> list[str]:
    """Return this command for one contestant's memory."""
    names = ("shape", "data", "pairs", "threads")
    words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    return ["benchmarks.step", *words, *(["--stock-malloc"] if options.stock_malloc else [])]


def _ratios(seconds: dict[str, list[float]], memory: dict[str, int]) -> Iterator[tuple[str, float]]:
    for name, (ours, theirs) in RATIOS.items():
        if ours in seconds and theirs in seconds:
            yield name, median_ratio(seconds[ours], seconds[theirs])
        if ours in memory and theirs in memory:
            yield f"{name}_memory", memory[ours] / memory[theirs]


def _print(options: argparse.Namespace, result: dict[str, Any]) -> None:
    shares = shares_of_peak(result)
    rows = []
    for name, values in result["seconds"].items():
        held = f"{result['peak_memory'][name] / 2**30:.2f}" if name in result["peak_memory"] else ""
        rows.append((name, f"{statistics.median(values):.2f}", f"{shares[name]:.2f}", held))
    title = f"{options.shape} on {options.data}, {options.pairs} pairs, {options.threads} threads"
    print_table(f"One step: {title}", ("contestant", "seconds", "share of peak", "peak GiB"), rows)
    ratios = [(name, f"{value:.3f}") for name, value in result["ratios"].items()]
    print_table("Ratios", ("ratio", "value"), ratios)


if __name__ == "__main__":
    main()
