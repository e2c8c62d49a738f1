"""Options of the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hafrm.errors import ConfigError

PartName = Literal["table2", "ood", "heads", "mixed", "losses", "ratios", "sizes", "priors"]

PARTS: tuple[PartName, ...] = get_args(PartName)
"""The parts in the order in which they run on one backbone."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Which parts of the study to run, and for how long."""

    rates: tuple[float, ...] = ()
    """Learning rates that each method tries; with fewer than two there is no choice."""
    rate_seeds: int = 1
    """Number of seeds, counted from the first, that choose the learning rates."""
    parts: tuple[PartName, ...] = PARTS
    hours: float | None = None
    """Time limit: no run starts that would end later. None: no limit."""
    retry: bool = False
    """Whether to try failed runs again."""

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ConfigError(f"parts: {', '.join(unknown) or 'none'} is none of {', '.join(PARTS)}.")
        if self.hours is not None and self.hours <= 0:
            raise ConfigError(f"hours must be more than 0, got {self.hours:g}")
        if self.rate_seeds < 1 or (self.rate_seeds > 1 and len(self.rates) < 2):
            raise ConfigError("rate_seeds must be at least 1, and chooses among two learning_rates or more.")
        if any(rate <= 0 for rate in self.rates):
            raise ConfigError(f"learning_rates must be more than 0, got {', '.join(map(str, self.rates))}")
