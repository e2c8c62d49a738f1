"""Parts that losses share: decreasing functions of a difference z, and checks of inputs.

Shape letters: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def logistic(z: Tensor) -> Tensor:
    """-log sigmoid(z)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(z)


def hinge(z: Tensor) -> Tensor:
    """max(0, 1 - z)."""
    return (1 - z).relu()


def probit(z: Tensor) -> Tensor:
    """-log Phi(z), computed in float64: torch's float32 gradient is 6 times too large at -1e4."""
    import torch

    from hafrm.numerics import doubled

    log_probability: Tensor = torch.special.log_ndtr(doubled(z))
    return -log_probability.to(z)


def cauchy(z: Tensor) -> Tensor:
    """-log(1/2 + atan(z) / pi), computed as atan2(1, -z) / pi, which stays accurate for very negative z."""
    return -(z.new_ones(z.shape).atan2(-z) / math.pi).log()


def smoothed(shape: Callable[[Tensor], Tensor], z: Tensor, label_smoothing: float) -> Tensor:
    """Return the loss `shape` at z, averaged over labels that are wrong with probability `label_smoothing`."""
    require_label_smoothing(label_smoothing)
    if label_smoothing == 0:
        return shape(z)
    return (1 - label_smoothing) * shape(z) + label_smoothing * shape(-z)


def wide(values: Tensor) -> Tensor:
    """Widen values to float32; keep float64."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def require_pairs(**tensors: Tensor) -> None:
    """Raise unless all tensors are [B]: broadcasting [B] against [B, 1] would silently give a wrong loss."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"expected one number per pair, all of the same shape [B]; got {listed}")


def require_positive(**options: float) -> None:
    """Raise unless each option is positive and finite."""
    for name, value in options.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")


def require_label_smoothing(value: float) -> None:
    """Raise unless the share of wrong labels is between 0 and 0.5."""
    if not 0 <= value <= 0.5:
        raise ValueError(f"label_smoothing must be between 0 and 0.5, got {value}")
