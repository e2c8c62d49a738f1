"""From raw rows to pairs and other records, with a report per source that accounts for every row.

For every source, `rows == kept + skipped + dropped`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from hafrm.data.options import OnBadRow
from hafrm.data.rawrows import RawRow
from hafrm.errors import BadRowError, BadRowReason, printable
from hafrm.pairs import PreferencePair
from hafrm.rows import RowReader, parse_pair, row_schema, unread_columns

Record = TypeVar("Record")

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

    @property
    def left_out(self) -> Counter[str]:
        """Number of rows left out, skipped or dropped, by reason."""
        return Counter(self.skipped) + Counter(self.dropped)

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
        return sum((report.left_out for report in self.reports), Counter[str]())


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


_EXAMPLES = 3
"""Number of skipped rows that a report names per reason."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A mapping's decision to leave out a valid row."""

    reason: str
    """Key by which such rows are counted."""


RowMapping = Callable[[RowReader], Mapping[str, Any] | Drop]
"""Turns a row in a source's own schema into a pair's row (see `hafrm.pairs`), or drops it."""


def pairs_of(
    rows: Iterable[RawRow],
    report: SourceReport,
    *,
    source: str,
    on_bad_row: OnBadRow,
    mapping: RowMapping | None = None,
) -> Iterator[PreferencePair]:
    """Turn rows into pairs one at a time, and count every row in the report.

    Args:
        rows: The raw rows.
        report: Receives the counts, in addition to those of earlier files; complete after the last pair.
        source: The file or data set of the rows; names the pairs and appears in errors.
        on_bad_row: What to do with rows that break the data contract.
        mapping: Translates the schema of a published source; None if rows already follow the contract. Published sets
            have a few rows that break the contract and can't be repaired, such as empty answers: rows that the mapping
            accepts and the contract refuses count as dropped.

    Raises:
        BadRowError: a row is bad, and `on_bad_row` is "error".
    """
    collector = _Collector(source, mapping)
    yield from records_of(rows, report, collector.pair, on_bad_row=on_bad_row)
    report.unread = sorted(collector.unread.union(report.unread))


def records_of(
    rows: Iterable[RawRow],
    report: SourceReport,
    parse: Callable[[RawRow], Record | Drop],
    *,
    on_bad_row: OnBadRow,
) -> Iterator[Record]:
    """Turn rows into records of any kind one at a time, and count every row in the report.

    Args:
        rows: The raw rows.
        report: Receives the counts, in addition to those of earlier files.
        parse: Turns a row into a record, or drops it.
        on_bad_row: What to do with rows for which `parse` raises a BadRowError.

    Raises:
        BadRowError: a row is bad, and `on_bad_row` is "error".
    """
    for row in rows:
        report.rows += 1
        try:
            outcome = parse(row)
        except BadRowError as error:
            if on_bad_row == "error":
                raise
            report.skipped[error.reason.value] = report.skipped.get(error.reason.value, 0) + 1
            report.first_fault = report.first_fault or f"{error.source}, row {error.row}: {error.fault}"
            _keep_example(report, error)
            continue
        if isinstance(outcome, Drop):
            report.dropped[outcome.reason] = report.dropped.get(outcome.reason, 0) + 1
        else:
            report.kept += 1
            yield outcome


def _keep_example(report: SourceReport, error: BadRowError) -> None:
    examples = report.examples.setdefault(error.reason.value, [])
    if len(examples) < _EXAMPLES:
        examples.append(f"{error.source}:{error.row}" + (f" `{error.field}`" if error.field else ""))


class _Collector:
    """Turns the rows of one source into pairs; remembers the schema of the first good row."""

    def __init__(self, source: str, mapping: RowMapping | None) -> None:
        self.source, self.mapping = source, mapping
        self.schema: tuple[str, ...] | None = None
        self.schema_row = 0
        self.unread: set[str] = set()

    def pair(self, row: RawRow) -> PreferencePair | Drop:
        if row.error is not None:
            raise row.error
        if self.mapping is not None:
            return self._mapped_pair(self.mapping(RowReader(row.value, source=self.source, number=row.number)), row)
        pair = parse_pair(row.value, source=self.source, number=row.number)
        self._check_schema(row.value, row.number)
        self.unread |= unread_columns(row.value)
        return pair

    def _mapped_pair(self, mapped: Mapping[str, Any] | Drop, row: RawRow) -> PreferencePair | Drop:
        if isinstance(mapped, Drop):
            return mapped
        try:
            return parse_pair(mapped, source=self.source, number=row.number)
        except BadRowError as error:
            return Drop(error.reason.value)

    def _check_schema(self, row: Mapping[str, Any], number: int) -> None:
        schema = row_schema(row)
        if self.schema is None:
            self.schema, self.schema_row = schema, number
        elif schema != self.schema:
            raise BadRowError(
                BadRowReason.MIXED_SCHEMA,
                source=self.source,
                row=number,
                field=None,
                problem=f"the row has {_schema_text(schema)}, row {self.schema_row} has {_schema_text(self.schema)}",
                remedy="Write all rows of a file in one schema, or split the file.",
            )


def _schema_text(schema: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}` {kind}" for name, kind in zip(("prompt", "chosen", "rejected"), schema, strict=True))
