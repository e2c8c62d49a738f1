"""What a plan needs, by arithmetic: bytes of disk at its peak, and memory of its largest run before activations.

Sizes follow from a backbone's architecture, which is known without its weights. Weights, gradients and optimizer states
are float32 (4 bytes), except that a frozen base under adapters takes 2 at the scale `paper`.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, PhiConfig
from transformers.pytorch_utils import Conv1D

from hafrm.errors import ConfigError
from hafrm.paper.runs import Policy, Run
from hafrm.paper.scales import Job
from hafrm.paper.world.backbone import BackboneRecipe

GIB = 2**30

_KEPT = 3
"""Checkpoints that exist at once: the best, the last, and the one that is being written."""


@dataclass(frozen=True)
class Shape:
    """Numbers of parameters of a backbone with its heads."""

    weights: int
    """All parameters, including the reward head; a tied LM head counts once."""
    body: int
    """Parameters by which every token is multiplied."""
    head: int
    """Parameters of the LM head."""
    adapters: int
    """Parameters of the adapters; 0 for full training."""

    @property
    def trained(self) -> int:
        """Parameters with a gradient and two optimizer states."""
        return self.adapters or self.weights


def _paper_config(name: str) -> Any:
    if name == "phi-2":
        return PhiConfig(vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32)
    return MistralConfig(vocab_size=32768 if name == "mistral-base" else 32000)  # otherwise 7B's are the defaults


def _world_config() -> Any:
    recipe = BackboneRecipe()
    return LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
    )


def shape_of(job: Job, name: str) -> Shape | None:
    """Return a backbone's shape; None for a model of the hub whose architecture is unknown here."""
    backbone = job.scale.backbone(name)
    if job.scale.name == "paper":
        config = _paper_config(name)
    elif job.in_world:
        config = _world_config()
    elif (Path(backbone.shown) / "config.json").is_file():
        config = AutoConfig.from_pretrained(backbone.shown)
    else:
        return None
    return _shape(config.to_json_string(), cast(Hashable, type(config)), backbone.lora.rank)


@functools.lru_cache(maxsize=32)
def _shape(config: str, kind: Hashable, rank: int) -> Shape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(cast(Any, kind)(**json.loads(config)))
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    held = {id(weight): weight.numel() for weight in model.parameters()}
    apart = {id(embeddings.weight), id(head.weight)}
    layers = [part for part in model.modules() if isinstance(part, nn.Linear | Conv1D) and part is not head]
    width = head.weight.shape[1]
    return Shape(
        weights=sum(held.values()) + width,
        body=sum(count for key, count in held.items() if key not in apart),
        head=head.weight.numel(),
        adapters=sum(rank * sum(part.weight.shape) for part in layers) + (width if rank else 0),
    )


@dataclass(frozen=True)
class Bytes:
    """Disk that a run takes."""

    finished: int
    """After it is finished."""
    training: int
    """In addition while it trains: checkpoints with optimizer states."""


def bytes_of(job: Job, run: Run | Policy, shape: Shape) -> Bytes:
    """Return the disk that a run takes.

    A finished run has whole weights in float32 (a run with adapters has them merged, and the adapters too); a
    checkpoint has what is trained and its two optimizer states.
    """
    finished = 4 * (shape.weights + shape.adapters)
    checkpoint = 4 * shape.trained
    if isinstance(run, Policy):
        return Bytes(finished + checkpoint * run.config(job, model=run.backbone).checkpoints, 2 * 3 * checkpoint)
    if run.keep_checkpoints:
        return Bytes(finished + job.scale.evaluations(kept=True) * checkpoint, _KEPT * 2 * checkpoint)
    return Bytes(finished, _KEPT * 3 * checkpoint)


def peak_bytes(job: Job, runs: Iterable[Run | Policy], *, keeps_weights: bool = True) -> int | None:
    """Return the disk that unfinished runs take at their peak, in their order; None if a shape is unknown.

    `keeps_weights` says whether finished runs keep their weights.
    """
    held = peak = 0
    for run in runs:
        shape = shape_of(job, run.backbone)
        if shape is None:
            return None
        if run.state(job) == "finished":
            continue
        sizes = bytes_of(job, run, shape)
        peak = max(peak, held + sizes.finished + sizes.training)
        held += sizes.finished if keeps_weights else 0
    return peak


def memory_bytes(job: Job, run: Run | Policy, shape: Shape) -> int:
    """Return the memory of weights, gradients and optimizer while a run trains, without activations.

    transformers' fused AdamW, which reward models use at the scale `paper`, needs no copies; torch's default on a GPU,
    which PPO uses, takes one more copy of the trained parameters for its square roots. PPO also has a frozen copy of a
    policy without adapters, and a reward model, which counts as one of the same backbone.
    """
    frozen = (2 if job.scale.name == "paper" else 4) * shape.weights if shape.adapters else 0
    if isinstance(run, Policy):
        oracle = run.reward is None and job.in_world
        whole = frozen or 4 * shape.weights
        return frozen + 20 * shape.trained + (0 if frozen else whole) + (0 if oracle else whole)
    fused = job.scale.training.get("optim") == "adamw_torch_fused"
    return frozen + (16 if fused else 20) * shape.trained


def needs(job: Job, runs: Sequence[Run | Policy], *, keeps_weights: bool = True) -> Iterator[str]:
    """Describe the disk and the memory of what is not finished."""
    left = [run for run in runs if run.state(job) != "finished"]
    shapes = {run.backbone: shape_of(job, run.backbone) for run in left}
    if not left or None in shapes.values():
        return
    peak = peak_bytes(job, left, keeps_weights=keeps_weights) or 0
    sizes = {run: memory_bytes(job, run, shape) for run in left if (shape := shapes[run.backbone]) is not None}
    largest = max(sizes, key=lambda run: sizes[run])
    yield f"disk: {size(peak)} at the peak, in {job.root}"
    what = "weights, gradients and optimizer" + ", reference and reward model" * isinstance(largest, Policy)
    yield f"memory: {size(sizes[largest])} for {what} of the largest run, before activations"


def require_disk(job: Job, runs: Sequence[Run | Policy], *, keeps_weights: bool = True) -> None:
    """Raise if the disk is too small for what is not finished.

    Raises:
        ConfigError: gives what is needed and what is free.
    """
    folder = next(place for place in (job.root, *job.root.resolve().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    peak = peak_bytes(job, runs, keeps_weights=keeps_weights) or 0
    if peak > free:
        raise ConfigError(
            f"out: this needs {size(peak)} of disk at its peak, and {folder} has {size(free)} free. Choose another "
            "--out, or fewer --sets, --seeds or --backbones."
        )


def size(number: float) -> str:
    """Format a number of bytes."""
    for unit, of in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20)):
        if number >= of:
            return f"{number / of:.1f} {unit}"
    return f"{number / 2**10:.1f} KiB"
