"""Finds weights that are not finite, which make all rewards wrong."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hafrm.errors import ModelError


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first weight with a NaN or an infinity; None if all are finite."""
    for name, weight in weights:
        if weight.is_floating_point() and not torch.isfinite(weight.detach()).all():
            return name
    return None


def require_finite(weights: Iterable[tuple[str, Tensor]], place: object) -> None:
    """Raise if a weight is not finite.

    Args:
        weights: The weights with their names.
        place: Where they come from, for the message.

    Raises:
        ModelError: names the weight.
    """
    if name := not_finite(weights):
        raise ModelError(
            f"{place}: the weight {name} has values that are not finite (NaN or infinity), so all scores of the model "
            "would be wrong. Use an earlier checkpoint, or another copy of the model."
        )
