"""How much memory a training step needs, and how many tokens per forward pass fit into what is free."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainingArguments

from hafrm.data import PairTables
from hafrm.memory import enough_memory
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.training.batches import PairCollator, PairDataset
from hafrm.training.objective import Objective

_ADAM = 8
"""Bytes of optimizer state per trained parameter: two float32 moments."""

_SPARE = 1.25
"""Factor for what is not counted: gradients of activations, buffers, fragmentation. Measured peaks were up to 1.13."""

_LEAST = 256
"""Smallest number of tokens per forward pass that is chosen: fewer hardly save memory and cost much time."""


def tokens_that_fit(
    model: HybridModel,
    objective: Objective,
    layout: Layout,
    tables: PairTables,
    args: TrainingArguments,
    *,
    sharded: bool,
) -> tuple[int, str]:
    """Choose the tokens per forward pass by the free memory: 1,024 on a CPU, where more hardly helps, else 8,192.

    All processes must call it.

    Args:
        model: The model on its device.
        objective: The losses.
        layout: How pairs become batches.
        tables: The training pairs.
        args: The trainer's arguments.
        sharded: Whether weights are sharded over processes, whose memory is not predicted.

    Returns:
        The number of tokens, the same in all processes, and a line that says why it is lower than usual, or "".
    """
    usual = 1024 if args.device.type == "cpu" else 8192
    # What one recomputed layer takes under checkpointing is not seen in a forward pass.
    free = None if sharded or args.activation_checkpointing else free_bytes(args.device)
    if free is None:
        return usual, ""
    needs = measure(model, objective, layout, tables, args)
    tokens: int = min(gather_object([fitting_tokens(needs, free, usual)]))
    if tokens == usual:
        return usual, ""
    short = "warning: " if needs.peak(tokens) > free else ""
    return tokens, (
        f"{short}batches of up to {tokens} tokens instead of {usual}, since {free / 2**30:.1f} GiB of memory are free "
        f"and a step needs about {needs.peak(tokens) / 2**30:.1f} GiB (data_options.tokens_per_batch)"
    )


@dataclass(frozen=True)
class Footprint:
    """Memory of a training step in bytes, beyond the weights, which are loaded already."""

    state: int
    """Gradients and the optimizer's state."""
    per_token: float
    """Activations kept for the backward pass, per token of a forward pass."""

    def peak(self, tokens: int) -> int:
        """Return the bytes of a step whose forward passes have so many tokens."""
        return int(_SPARE * (self.state + self.per_token * tokens))

    def tokens(self, free: int) -> int:
        """Return the number of tokens per forward pass that fit into the free bytes; may be below zero."""
        return int((free / _SPARE - self.state) / self.per_token)


def measure(
    model: HybridModel, objective: Objective, layout: Layout, tables: PairTables, args: TrainingArguments
) -> Footprint:
    """Run the longest pair forward and count what is kept for the backward pass; see `tokens_that_fit`."""
    longest = PairDataset(tables)[int(tables.longest().argmax())]
    (batch,) = PairCollator(layout, longest.tokens.unique_tokens)([longest]).parts
    batch = batch.to(args.device)
    batch = replace(batch, reference=torch.zeros(len(batch.sequences.lengths), device=args.device))
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = model.training
    devices = [args.device] if args.device.type == "cuda" else []
    half = torch.bfloat16 if args.bf16 else torch.float16
    size = f"the longest pair, {longest.tokens.unique_tokens} tokens"
    with (
        enough_memory(size, "Lower data_options.max_length, or use adapters (lora.rank) or a narrower dtype."),
        torch.random.fork_rng(devices),
        torch.autocast(args.device.type, dtype=half, enabled=args.bf16 or args.fp16),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        losses = objective.pair_losses(model.train(), batch)  # kept until counted: freed storage would be reused
        model.train(training)
    del losses
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    state = sum(weight.numel() * (weight.element_size() + _ADAM) for weight in trained)
    return Footprint(state, sum(kept.values()) / batch.sequences.input_ids.numel())


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU or, for a CPU, of this machine or container; None for other devices."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # without a limit, memory.max contains "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat["inactive_file"]))  # cached files give way
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def fitting_tokens(footprint: Footprint, free: int | None, wanted: int) -> int:
    """Return the wanted number of tokens per forward pass, or fewer if the free memory is short of it."""
    if free is None or footprint.peak(wanted) <= free:
        return wanted
    return max(_LEAST, min(wanted, footprint.tokens(free)))
