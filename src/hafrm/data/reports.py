"""What was read: the pairs of a load, and for each source an account of every row.

`rows == kept + skipped + dropped` holds for every source: no row vanishes uncounted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from hafrm.errors import printable
from hafrm.pairs import PreferencePair

__all__ = ["PairSet", "SourceReport", "fingerprint"]


_SHOWN = 12
"""How many columns a line names."""


class _HasRow(Protocol):
    def as_row(self) -> dict[str, Any]: ...


@dataclass(kw_only=True)
class SourceReport:
    """The account of one source, as it goes into a run's manifest."""

    name: str
    """The data name as it was given."""
    kind: str
    """What the name stood for: "file", "folder", "named", "world", "hub" or "suite"."""
    split: str = ""
    """The split that was asked for; empty for a file, which is read whole."""
    read_from: list[str] = field(default_factory=list)
    """The files, or the hub data set with the arguments of its loading."""
    rows: int = 0
    """Rows read."""
    kept: int = 0
    """Pairs kept."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Bad rows that were skipped, by `BadRowReason`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Sound rows that the source's rule leaves out (ties, for one), by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first few skipped rows and the fields at fault, by `BadRowReason`."""
    first_fault: str = ""
    """What is wrong with the first bad row that was skipped, and what to do about it."""
    unread: list[str] = field(default_factory=list)
    """Columns with values that no pair is made of, sorted by name."""
    sha256: str = ""
    """`fingerprint` of the pairs kept."""
    licence: str = ""
    """The data's licence, where it is known."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the manifest should know about this source."""

    @property
    def unread_columns(self) -> str:
        """One line that names the columns that are not read; empty where there are none."""
        shown = [printable(name, 60) for name in self.unread[:_SHOWN]]
        more = f" and {len(self.unread) - _SHOWN} more" if len(self.unread) > _SHOWN else ""
        return f"columns not read: {', '.join(shown)}{more}" if shown else ""

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return asdict(self)


@dataclass
class PairSet:
    """Pairs, with one report for each source that they came from."""

    pairs: list[PreferencePair]
    reports: list[SourceReport]

    @property
    def left_out(self) -> Counter[str]:
        """Rows that are no pair here, skipped and dropped ones of all sources, by reason."""
        counts: Counter[str] = Counter()
        for report in self.reports:
            counts.update(report.skipped)
            counts.update(report.dropped)
        return counts


def fingerprint(pairs: Iterable[_HasRow]) -> str:
    """SHA-256 of the pairs as canonical JSON, in order.

    The same pairs have the same fingerprint, whatever file format they came in and whatever bad rows stood between.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(pair.as_row(), sort_keys=True, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()
