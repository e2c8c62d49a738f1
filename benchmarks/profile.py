"""Where one hybrid step spends its time, by kind of operator.

    python -m benchmarks.profile --out FILE

PyTorch's profiler gives each operator's own time, without that of operators it calls. Operators are grouped by purpose;
products with a side as wide as the vocabulary are the LM head's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import CONTESTANTS, build
from benchmarks.measure import environment, print_table, save
from benchmarks.workload import SHAPES, Shape, draw_batches, real_groups
from hafrm.numerics import cpu_tuned

KINDS = {
    "products of the layers": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "softmax of the logits": ("aten::_log_softmax", "aten::exp_", "aten::scatter_add_", "aten::gather"),
    "activation, norms, rotations": (
        *("aten::silu", "aten::mul", "aten::pow", "aten::mean", "aten::rsqrt", "aten::neg", "aten::sum", "aten::div"),
        *("aten::cos", "aten::sin"),
    ),
    "adding up gradients": ("aten::add", "aten::add_", "aten::embedding_dense", "aten::_index_put_impl_"),
    "copies and fills": (
        *("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::index", "aten::index_select"),
    ),
}
"""Names of operators by kind; all others are `other`."""

HEAD = "products of the LM head"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--data", default="hh_harmless", choices=("hh_harmless", "pku_safe"))
    parser.add_argument("--contestant", default="hybrid", choices=CONTESTANTS)
    parser.add_argument("--pairs", type=int, default=16, help="pairs a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", help="a file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with cpu_tuned():
        seconds = _measure(options)
    total = sum(seconds.values())
    rows = [(kind, f"{value:.2f}", f"{100 * value / total:.1f}") for kind, value in seconds.items()]
    print_table(f"One step of {options.contestant}", ("operators", "seconds", "share, %"), rows)
    described = {name: getattr(options, name) for name in ("shape", "data", "contestant", "pairs")}
    save(options.out, {"environment": environment(), **described, "seconds": seconds, "total": total, "ratios": {}})


def _measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of one step by kind of operator: means over the rounds, the largest first."""
    shape = SHAPES[options.shape]
    batches = draw_batches(real_groups(options.data), pairs=options.pairs, batches=options.rounds)
    step = build(options.contestant, shape)
    step(batches[0])
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for batch in batches:
            step(batch)
    return _by_kind(found.key_averages(group_by_input_shape=True), shape, options.rounds)


def _by_kind(events: Iterable[Any], shape: Shape, rounds: int) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[_kind(event.key, event.input_shapes, shape)] += event.self_cpu_time_total / 1e6 / rounds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _kind(name: str, shapes: Sequence[Sequence[int]], shape: Shape) -> str:
    kind = next((kind for kind, names in KINDS.items() if name.removesuffix("_backward") in names), "other")
    product = kind == "products of the layers"
    return HEAD if product and any(shape.vocabulary in sides for sides in shapes) else kind


if __name__ == "__main__":
    main()
