"""The external half of Table 3: accuracies on the sections of RewardBench. The suite that scores them hooks in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hafrm.errors import ConfigError

__all__ = ["SECTION_SCORER", "SectionScorer", "require_section_scorer"]

SectionScorer = Callable[[str, str, Sequence[Path], Path], Mapping[Path, float]]
"""(RewardBench's pairs, the section "Chat" or "Safety", runs, a folder for scores) -> each run's accuracy, a share."""

SECTION_SCORER: SectionScorer | None = None
"""What scores a section; None where this version has no such suite."""


def require_section_scorer() -> SectionScorer:
    """What scores a section of RewardBench.

    Raises:
        ConfigError: this version has none.
    """
    if SECTION_SCORER is None:
        raise ConfigError("rewardbench: this version has no RewardBench suite. Leave --rewardbench out.")
    return SECTION_SCORER
