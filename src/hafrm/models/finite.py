"""Weights that are not finite, by name: with one of them no reward is right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hafrm.errors import ModelError

__all__ = ["not_finite", "require_finite"]


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first weight that has a NaN or an infinity; None where all are finite."""
    for name, weight in weights:
        if weight.is_floating_point() and not torch.isfinite(weight.detach()).all():
            return name
    return None


def require_finite(weights: Iterable[tuple[str, Tensor]], place: object) -> None:
    """Refuse weights that are not finite.

    Args:
        weights: The weights with their names.
        place: Where they come from, for the message.

    Raises:
        ModelError: names the weight.
    """
    if name := not_finite(weights):
        raise ModelError(
            f"{place}: the weight {name} has values that are not finite (NaN or infinity), so no score of the model is "
            "right. Use an earlier checkpoint, or another copy of the model."
        )
