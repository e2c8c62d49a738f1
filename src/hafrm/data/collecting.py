"""From raw rows to pairs and other records, with a report per source that accounts for every row.

For every source, `rows + expanded == kept + skipped + dropped`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from hafrm.data.options import OnBadRow
from hafrm.data.rawrows import RawRow
from hafrm.errors import BadRowError, printable
from hafrm.pairs import PreferencePair
from hafrm.rows import RowReader

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
    """Kind of source: "file", "folder", "named", "world", "hub", "memory" or "suite"."""
    form: str = ""
    """How the rows were read: a form's name, or the mapping that the user named; empty for sets with names."""
    split: str = ""
    """The requested split; empty for a file, which is read whole."""
    read_from: list[str] = field(default_factory=list)
    """The files, or the call that loads the hub data set."""
    rows: int = 0
    """Rows read."""
    expanded: int = 0
    """Pairs that rows gave beyond one each: a ranking of four gives six. Below 0 if several rows make one pair."""
    kept: int = 0
    """Pairs kept."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of bad rows skipped, by `BadRowReason`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of valid rows or pairs of rankings left out by the source's rule, such as ties, by reason."""
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
        return f"columns not read: {listed(self.unread)}" if self.unread else ""

    @property
    def left_out(self) -> Counter[str]:
        """Number of rows left out, skipped or dropped, by reason."""
        return Counter(self.skipped) + Counter(self.dropped)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)


def listed(columns: Sequence[str]) -> str:
    """Return names of columns for a message, which shows the first few."""
    shown = [printable(name, 60) for name in columns[:_SHOWN]]
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return ", ".join(shown) + more


def left_out_words(counts: Mapping[str, int], limit: int | None = None) -> str:
    """Say how many pairs are left out for which reason, and which options change it; empty if there are none.

    Args:
        counts: Number of pairs by reason: as in `SourceReport` and `Account`, and "overlong".
        limit: Largest number of tokens of a pair, if known.
    """
    length = f"{limit} tokens" if limit else "the length limit"
    words = {
        "overlong": f"over {length} left out: --data_options.max_length, --data_options.overlong truncate",
        "tie": "tied",
        "one_response": "prompts with one response",
        "mapping": "left out by --data_options.mapping",
    }
    merged = Counter(counts)
    merged["overlong"] += merged.pop("overlong_prompt", 0)
    return "; ".join(f"{count:,} {words.get(reason, reason)}" for reason, count in merged.most_common() if count)


def left_out_of(report: SourceReport) -> Counter[str]:
    """Return how many pairs of a source were left out, by reason.

    The rules and splits of named sets don't count: they say what the user asked for.
    """
    return Counter(report.skipped) if report.kind in ("named", "world") else report.left_out


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
    """Yield the pairs, then store the `fingerprint` of those that were taken in the report."""
    digest = hashlib.sha256()
    try:
        for pair in pairs:
            digest.update(_canonical(pair))
            yield pair
    finally:
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


Outcome = Mapping[str, Any] | Drop
"""A row of the contract (see `hafrm.rows`), or the decision to leave it out."""

ToRows = Callable[[RowReader], Iterable[Outcome]]
"""Turns a row in a source's own columns into any number of rows of the contract."""


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
    return outcomes_of(rows, report, lambda row: [parse(row)], on_bad_row=on_bad_row)


def outcomes_of(
    rows: Iterable[RawRow],
    report: SourceReport,
    parse: Callable[[RawRow], Iterable[Record | Drop]],
    *,
    on_bad_row: OnBadRow,
) -> Iterator[Record]:
    """Turn each row into any number of records; see `records_of`."""
    for row in rows:
        report.rows += row.merged
        try:
            if row.error is not None:
                raise row.error
            outcomes = list(parse(row))
        except BadRowError as error:
            if on_bad_row == "error":
                raise
            report.skipped[error.reason.value] = report.skipped.get(error.reason.value, 0) + row.merged
            report.first_fault = report.first_fault or f"{error.source}, row {error.row}: {error.fault}"
            _keep_example(report, error)
            continue
        report.expanded += len(outcomes) - row.merged
        for outcome in outcomes:
            if isinstance(outcome, Drop):
                report.dropped[outcome.reason] = report.dropped.get(outcome.reason, 0) + 1
            else:
                report.kept += 1
                yield outcome


def _keep_example(report: SourceReport, error: BadRowError) -> None:
    examples = report.examples.setdefault(error.reason.value, [])
    if len(examples) < _EXAMPLES:
        examples.append(f"{error.source}:{error.row}" + (f" `{error.field}`" if error.field else ""))
