"""What of a model a text reaches. Vision towers and the like get no gradient: they are frozen and not adapted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hafrm.errors import ModelError, first_line
from hafrm.models.modes import evaluating

__all__ = ["Reach", "trace_text"]

_TEXT = 8
"""Tokens that are sent through the model."""


@dataclass(frozen=True)
class Reach:
    """Where a text leads through a model; the names of parameters."""

    unreached: frozenset[str]
    """Those that it never reaches, none of which is an expert's: those take turns."""
    no_layers: frozenset[str]
    """Weights of modules that give more than one tensor, as some routers do, though they are linear layers by class."""

    @property
    def no_adapters(self) -> frozenset[str]:
        """What gets no adapters."""
        return self.unreached | self.no_layers


def trace_text(causal_lm: PreTrainedModel) -> Reach:
    """Send a few tokens through a model and see what they reach.

    Raises:
        ModelError: the model can't read text alone.
    """
    embeddings = cast(nn.Embedding, causal_lm.get_input_embeddings())
    ids = torch.arange(_TEXT, device=embeddings.weight.device)[None] % embeddings.num_embeddings
    called: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            called[name] = isinstance(output, Tensor)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in causal_lm.named_modules()]
    try:
        with torch.enable_grad(), evaluating(causal_lm):
            logits = causal_lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except Exception as error:  # whatever a model does that misses its images
        raise ModelError(
            f"{type(causal_lm).__name__} can't read text alone ({type(error).__name__}: {first_line(error)}), which "
            "training on text needs."
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    reached = {id(weight) for weight in _leaves(logits)}
    return Reach(
        frozenset(
            name
            for name, weight in causal_lm.named_parameters()
            if id(weight) not in reached and _passed_over(name, weight, called)
        ),
        frozenset(f"{name}.weight" for name, one_tensor in called.items() if not one_tensor),
    )


def _passed_over(name: str, weight: Tensor, called: Collection[str]) -> bool:
    """Whether a parameter that is not in the graph is really not used."""
    if "expert" in name:
        return False
    # One that takes no gradient, as packed weights do, is in no graph: then its module tells.
    return weight.requires_grad or name.rpartition(".")[0] not in called


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """The tensors with gradients that an output was computed from."""
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [before for before, _ in node.next_functions]
