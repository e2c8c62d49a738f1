"""Modes of a model: evaluation for a while, and training without dropout. Knows modules, and nothing of their use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["disable_dropout", "evaluating"]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the context, and each module's own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def disable_dropout(model: nn.Module) -> None:
    """Let a model compute the same in training mode as in evaluation mode; its config keeps what it says.

    Beside dropout modules, transformers' layers keep probabilities as plain numbers, which they hand to their attention
    function (`attention_dropout`, OPT's `dropout`) or skip themselves by (`layerdrop`). All of these become 0. The few
    models that read their config at each call instead (Persimmon's attention) can't be told.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
