"""How far training moves a backbone's hidden states: an illustration of claim 2 of Appendix D.

The paper's claim 2 bounds the distance of phi_H to an ideal phi*, which is unknown. We measure instead the distance to
the backbone at the start of training, and how many directions the states use.

Shape letters: T tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RepresentationChange:
    """Hidden states after training compared with those of the same tokens before."""

    tokens: int
    relative_change: float
    """Mean over tokens of |h - h0| / |h0|."""
    effective_rank: float
    """Effective rank of the states after training; see `effective_rank`."""
    effective_rank_start: float
    """Effective rank of the states before training."""

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self)


def representation_change(states: Tensor, start: Tensor) -> RepresentationChange:
    """Compare hidden states with those of the same tokens at the start of training.

    Args:
        states: Hidden states, [T, H].
        start: Hidden states of the starting backbone, [T, H].

    Raises:
        ValueError: the shapes differ, or there are fewer than two tokens.
    """
    if states.shape != start.shape or states.dim() != 2 or len(states) < 2:
        raise ValueError(f"expected states of one shape [T, H], got {list(states.shape)} and {list(start.shape)}")
    change = (states - start).norm(dim=1) / start.norm(dim=1).clamp(min=torch.finfo(start.dtype).tiny)
    return RepresentationChange(
        tokens=len(states),
        relative_change=change.double().mean().item(),
        effective_rank=effective_rank(states),
        effective_rank_start=effective_rank(start),
    )


def effective_rank(states: Tensor) -> float:
    """Compute the effective rank of centred states, [T, H].

    It is the exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007): between 1 and H, or
    0 if all states are equal.
    """
    centred = states.double() - states.double().mean(dim=0)
    squares: Tensor = torch.linalg.eigvalsh(centred.T @ centred)
    values = squares.clamp(min=0).sqrt()
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp().item())
