"""Fit batches to the model and the machine: their layout, and the tokens per forward pass that memory has room for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainingArguments

from hafrm.container import free_memory
from hafrm.data import PairTables
from hafrm.errors import NoMemoryError, first_line
from hafrm.logprobs import usual_chunk
from hafrm.memory import enough_memory
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.training.batches import PairCollator, PairDataset
from hafrm.training.config import TrainConfig
from hafrm.training.defaults import autocast_of
from hafrm.training.objective import Objective

_ADAM = 8
"""Bytes of optimizer state per trained parameter: two float32 moments."""

_SPARE = 1.25
"""Factor for what is not counted: gradients of activations, buffers, fragmentation. Measured peaks were up to 1.13."""

_LEAST = 256
"""Smallest number of tokens per forward pass that is chosen: fewer hardly save memory and cost much time."""


def fitted_layout(
    config: TrainConfig,
    model: HybridModel,
    tokenizer: Any,
    measured: Callable[[Layout], Footprint] | None,
    say: Callable[[str], None],
) -> tuple[Layout, Footprint | None]:
    """Choose the layout of batches, the same in all processes, and measure a step of it.

    Args:
        measured: `measure` for a layout. It runs the model as in training, which finds kernels that passed the probe,
            where no gradients are computed, but fail here. None for sharded models, which can't run before the trainer
            has wrapped them.
        say: Called with the reason if batches are padded.
    """

    def report(reason: str) -> None:
        say(f"batches are padded, not packed: {reason}")

    layout = choose_layout(
        model, tokenizer.pad_token_id, max_length=config.data_options.max_length, choice=config.layout, report=report
    )
    needs, packed = None, layout.packed
    if packed and measured:
        try:
            needs = measured(layout)
        except NoMemoryError:
            raise
        except Exception as error:  # kernels and compilers raise many types
            packed = False
            report(f"a training step fails with {type(error).__name__}: {first_line(error)}")
    if not all(gather_object([packed])):
        layout, needs = replace(layout, packed=False), None
    return layout, measured(layout) if measured and needs is None else needs


def tokens_per_batch(
    config: TrainConfig, needs: Footprint | None, args: TrainingArguments, most: int | None
) -> tuple[int, str]:
    """Return the tokens per forward pass, the same in all processes, and why they are fewer than usual, or "".

    Args:
        config: The run's options; they decide if they name a number.
        most: The number to use after a batch did not fit into memory.
    """
    usual = 1024 if args.device.type == "cpu" else 8192  # larger batches hardly help on a CPU
    if config.data_options.tokens_per_batch:
        return config.data_options.tokens_per_batch, ""
    if most or needs is None or args.activation_checkpointing:  # needs don't include what checkpointing recomputes
        return most or usual, ""
    fitted: tuple[int, str] = min(gather_object([fitting_tokens(needs, free_bytes(args.device), usual)]))
    return fitted


@dataclass(frozen=True)
class Footprint:
    """Memory of a training step in bytes, beyond the weights, which are loaded already."""

    state: int
    """Gradients, the optimizer's state, and a chunk of logits if there is a policy loss."""
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
    """Run the longest pair through a model that is not sharded, and count what is kept for the backward pass.

    On a GPU the backward pass runs too, since a kernel that works forward may still fail there.

    Raises:
        NoMemoryError: not even this pair fits into memory.
    """
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
        return tensor.detach()  # an output saved as itself would keep its graph, and so its own node, alive for good

    training = model.training
    devices = [args.device] if args.device.type == "cuda" else []
    size = f"the longest pair, {longest.tokens.unique_tokens} tokens"
    with (
        enough_memory(size, "Lower data_options.max_length, or use adapters (lora.rank) or a narrower dtype."),
        torch.random.fork_rng(devices),
        autocast_of(args),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        losses = objective.pair_losses(model.train(), batch)  # kept until counted: freed storage would be reused
        model.train(training)
        if args.device.type != "cpu":
            losses.loss.sum().backward()
            model.zero_grad(set_to_none=True)
    del losses
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    state = sum(weight.numel() * (weight.element_size() + _ADAM) for weight in trained)
    if objective.needs_log_probs:
        state += usual_chunk(len(model.policy_head.weight), args.device.type)
    return Footprint(state, sum(kept.values()) / batch.sequences.input_ids.numel())


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU or, for a CPU, of this machine or container; None for other devices."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    in_container = free_memory()
    if in_container is not None:
        free = min(free, in_container)
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def fitting_tokens(needs: Footprint, free: int | None, usual: int) -> tuple[int, str]:
    """Return the `usual` tokens per forward pass, or as many as fit into the `free` bytes and a line that says so."""
    if free is None or needs.peak(usual) <= free:
        return usual, ""
    tokens = max(_LEAST, min(usual, needs.tokens(free)))
    short = "warning: " if needs.peak(tokens) > free else ""
    return tokens, (
        f"{short}batches of up to {tokens} tokens instead of {usual}, since {free / 2**30:.1f} GiB of memory are free "
        f"and a step needs about {needs.peak(tokens) / 2**30:.1f} GiB (data_options.tokens_per_batch)"
    )
