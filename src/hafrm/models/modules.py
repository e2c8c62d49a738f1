"""Loaded models as modules: evaluation mode, dropout, finite weights, and which parameters text reaches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from hafrm.errors import ModelError, first_line


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode within the context; restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def disable_dropout(model: nn.Module) -> None:
    """Make a model compute the same in training mode as in evaluation mode; its config is left unchanged.

    In addition to dropout modules, transformers' layers keep probabilities as plain numbers, for their attention
    function (`attention_dropout`, OPT's `dropout`) or for skipping themselves (`layerdrop`). All of these become 0. The
    few models that read their config in each call instead (Persimmon's attention) are not covered.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


@dataclass(frozen=True)
class Reach:
    """The parameters that a text input uses, by name."""

    unreached: frozenset[str]
    """Parameters that text never reaches, except experts, of which each text uses only some."""
    no_layers: frozenset[str]
    """Weights of linear layers that return several tensors, such as some routers."""

    @property
    def no_adapters(self) -> frozenset[str]:
        """Parameters that get no adapters."""
        return self.unreached | self.no_layers


def trace_text(causal_lm: PreTrainedModel) -> Reach:
    """Run a few tokens through a model and record which parameters they reach.

    Raises:
        ModelError: the model can't process text alone.
    """
    embeddings = cast(nn.Embedding, causal_lm.get_input_embeddings())
    ids = torch.arange(8, device=embeddings.weight.device)[None] % embeddings.num_embeddings
    called: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            called[name] = isinstance(output, Tensor)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in causal_lm.named_modules()]
    try:
        with torch.enable_grad(), evaluating(causal_lm):
            logits = causal_lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except Exception as error:  # models that require images can fail in any way
        raise ModelError(
            f"{type(causal_lm).__name__} can't process text without other inputs ({type(error).__name__}: "
            f"{first_line(error)}), so it can't be trained on text."
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
    """Return whether a parameter outside the autograd graph is really unused."""
    if "expert" in name:
        return False
    # Weights without gradients, such as quantized ones, are never in the graph: check whether their module ran.
    return weight.requires_grad or name.rpartition(".")[0] not in called


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """Yield the tensors with gradients from which an output was computed."""
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


def require_finite(weights: Iterable[tuple[str, Tensor]], place: object) -> None:
    """Raise ModelError if a weight is not finite; `place` says in the message where the weights come from."""
    for name, weight in weights:
        if weight.is_floating_point() and not torch.isfinite(weight.detach()).all():
            raise ModelError(
                f"{place}: the weight {name} has values that are not finite (NaN or infinity), so all scores of the "
                "model would be wrong. Use an earlier checkpoint, or another copy of the model."
            )
