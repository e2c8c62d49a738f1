"""The result of loading: pairs, and a report per source that accounts for every row.

For every source, `rows == kept + skipped + dropped`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from hafrm.errors import printable
from hafrm.pairs import PreferencePair

_SHOWN = 12
"""Number of columns that a message names."""


class _HasRow(Protocol):
    def as_row(self) -> dict[str, Any]: ...


@dataclass(kw_only=True)
class SourceReport:
    """Report on one source, as stored in a run's manifest."""

    name: str
    """The data name as given."""
    kind: str
    """Kind of source: "file", "folder", "named", "world", "hub" or "suite"."""
    split: str = ""
    """The requested split; empty for a file, which is read whole."""
    read_from: list[str] = field(default_factory=list)
    """The files, or the call that loads the hub data set."""
    rows: int = 0
    """Rows read."""
    kept: int = 0
    """Pairs kept."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of bad rows skipped, by `BadRowReason`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of valid rows left out by the source's rule, such as ties, by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first few skipped rows and their faulty fields, by `BadRowReason`."""
    first_fault: str = ""
    """Problem and remedy of the first skipped row."""
    unread: list[str] = field(default_factory=list)
    """Columns with values that pairs do not use, sorted by name."""
    sha256: str = ""
    """`fingerprint` of the pairs kept."""
    licence: str = ""
    """The data's licence, if known."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the manifest should know about this source."""

    @property
    def unread_columns(self) -> str:
        """Line that names the unused columns; empty if there are none."""
        shown = [printable(name, 60) for name in self.unread[:_SHOWN]]
        more = f" and {len(self.unread) - _SHOWN} more" if len(self.unread) > _SHOWN else ""
        return f"columns not read: {', '.join(shown)}{more}" if shown else ""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)


@dataclass
class PairSet:
    """Pairs, with one report per source."""

    pairs: list[PreferencePair]
    reports: list[SourceReport]

    @property
    def left_out(self) -> Counter[str]:
        """Number of rows left out, skipped or dropped, over all sources, by reason."""
        counts: Counter[str] = Counter()
        for report in self.reports:
            counts.update(report.skipped)
            counts.update(report.dropped)
        return counts


def fingerprint(pairs: Iterable[_HasRow]) -> str:
    """Compute the SHA-256 of the pairs as canonical JSON, in order.

    It depends only on the pairs, not on their file format or on bad rows between them.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_canonical(pair))
    return digest.hexdigest()


def fingerprinted(pairs: Iterable[PreferencePair], report: SourceReport) -> Iterator[PreferencePair]:
    """Yield the pairs, then store their `fingerprint` in the report."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_canonical(pair))
        yield pair
    report.sha256 = digest.hexdigest()


def _canonical(pair: _HasRow) -> bytes:
    return json.dumps(pair.as_row(), sort_keys=True, separators=(",", ":")).encode() + b"\n"
