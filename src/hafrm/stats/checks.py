"""Check arguments of statistics; every function raises a ValueError that names the argument."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def array(**named: ArrayLike) -> Floats:
    """Convert the one argument to an array of numbers, [N], that is not empty and has no NaN."""
    ((name, values),) = named.items()
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{name} must be an array [N] of at least one value, got shape {list(numbers.shape)}")
    if np.isnan(numbers).any():
        raise ValueError(f"{name} contains {np.isnan(numbers).sum()} NaN")
    return numbers


def arrays(**named: ArrayLike) -> tuple[Floats, ...]:
    """Convert all arguments to arrays of the same length, [N], that are not empty and have no NaN."""
    found = {name: array(**{name: values}) for name, values in named.items()}
    if len({len(values) for values in found.values()}) != 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in found.items())
        raise ValueError(f"expected arrays of the same length, got {lengths}")
    return tuple(found.values())


def probabilities(**named: ArrayLike) -> Floats:
    """Convert the one argument to a non-empty array of probabilities, [N]."""
    p = array(**named)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"{next(iter(named))} must be between 0 and 1, got {p.min()} to {p.max()}")
    return p


def bin_index(values: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return the bin [edge, next edge) of each value; the last bin is closed, values outside get the nearest."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
