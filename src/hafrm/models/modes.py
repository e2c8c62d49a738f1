"""Modes of a module: temporary evaluation, and training without dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


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
    few models that read their config at each call instead (Persimmon's attention) are not covered.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
