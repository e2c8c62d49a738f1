"""Reports on sources, which account for every row, and the step from rows to records that fills them in.

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
from hafrm.errors import BadRowError, DataError, printable
from hafrm.pairs import PreferencePair
from hafrm.rows import Row

Record = TypeVar("Record")

_SHOWN = 12
"""Number of columns that a message names."""

_EXAMPLES = 3
"""Number of skipped rows that a report names per reason."""


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
    """How the rows were read: a form's name, or the user's mapping; empty for named sets."""
    split: str = ""
    """The requested split; empty for a file, which is read whole."""
    read_from: list[str] = field(default_factory=list)
    """The files, or the call that loads the hub data set."""
    rows: int = 0
    """Rows read."""
    expanded: int = 0
    """Pairs beyond one per row: a ranking of four responses adds five. Negative if several rows make one pair."""
    kept: int = 0
    """Pairs kept."""
    off_topic: int = 0
    """Pairs that `data_options.off_topic` added, including those that are later left out for their length."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of bad rows skipped, by `BadRowReason`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of valid rows, or pairs of rankings, left out by a rule of the source, by reason, such as "tie"."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first skipped rows and their faulty fields, by `BadRowReason`."""
    first_fault: str = ""
    """Problem and remedy of the first skipped row."""
    unread: list[str] = field(default_factory=list)
    """Names of columns with values that pairs do not use, sorted."""
    contradicted: int = 0
    """Number of pairs whose `score_chosen` is below their `score_rejected`."""
    first_contradicted: str = ""
    """The first such pair's source and row."""
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
    def contradictions(self) -> str:
        """Line that counts the pairs whose scores contradict their labels; empty if there are none."""
        if not self.contradicted:
            return ""
        return (
            f"{self.contradicted:,} pairs have a `score_chosen` below their `score_rejected`, first "
            f"{self.first_contradicted}: the scores contradict the labels"
        )

    @property
    def left_out(self) -> Counter[str]:
        """Number of rows left out, skipped or dropped, by reason."""
        return Counter(self.skipped) + Counter(self.dropped)

    @property
    def lost(self) -> Counter[str]:
        """`left_out` without what the rules and splits of named sets leave out, since the user asked for these."""
        return Counter(self.skipped) if self.kind in ("named", "world") else self.left_out

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)


def listed(columns: Sequence[str]) -> str:
    """Return the names of the first few columns, for a message."""
    shown = [printable(name, 60) for name in columns[:_SHOWN]]
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return ", ".join(shown) + more


def left_out_words(counts: Mapping[str, int], limit: int | None = None) -> str:
    """Describe how many pairs are left out and why, and which options change that; "" if there are none.

    Args:
        counts: Number of pairs by reason, as in `SourceReport.left_out` and `Account.dropped`.
        limit: Maximum tokens of a pair, if known.
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


@dataclass
class PairSet:
    """Pairs, with one report per source."""

    pairs: list[PreferencePair]
    reports: list[SourceReport]

    def __repr__(self) -> str:
        names = ", ".join(str(report.name) for report in self.reports)
        return f"PairSet({len(self.pairs):,} pairs of {names})"


def fingerprint(pairs: Iterable[_HasRow]) -> str:
    """Compute the SHA-256 of the pairs as canonical JSON, in order.

    It depends only on the pairs, not on their file format or on bad rows between them.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_canonical(pair))
    return digest.hexdigest()


def completed(pairs: Iterable[PreferencePair], report: SourceReport) -> Iterator[PreferencePair]:
    """Yield the pairs, then store the `fingerprint` of those that were taken in the report.

    Raises:
        DataError: there are none.
    """
    digest = hashlib.sha256()
    try:
        for pair in pairs:
            digest.update(_canonical(pair))
            yield pair
    finally:
        report.sha256 = digest.hexdigest()
    if not report.kept:
        raise DataError(f"{report.name}: {_why_none(report)}")


_REMEDIES = {
    "one_response": "A pair needs two responses to a prompt, with different labels or scores.",
    "tie": "A pair needs responses with different labels or scores.",
}
"""Remedies for sources without usable rows, by the most frequent reason."""


def _why_none(report: SourceReport) -> str:
    """Explain why a source has no pairs."""
    if not report.rows:
        return "contains no rows. Give data with at least one pair."
    left_out = report.left_out
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    form = f", read as {report.form}" if report.form else ""
    remedy = _REMEDIES.get(left_out.most_common(1)[0][0] if left_out else "", "Use another split, or other data.")
    remedy = f"The first bad row: {report.first_fault}" if report.first_fault else remedy
    return f"none of its {report.rows} rows is usable{form} ({counts}). {remedy}"


def _canonical(pair: _HasRow) -> bytes:
    return json.dumps(pair.as_row(), sort_keys=True, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Drop:
    """The decision of a source's rule or of the user's mapping to leave out a valid row."""

    reason: str
    """Key under which such rows are counted."""


Outcome = Mapping[str, Any] | Drop
"""A row of the contract (see `hafrm.contract`), or the decision to leave the row out."""


def records_of(
    rows: Iterable[Row],
    report: SourceReport,
    parse: Callable[[Row], Iterable[Record | Drop]],
    *,
    on_bad_row: OnBadRow,
) -> Iterator[Record]:
    """Turn rows into pairs or other records, one row at a time, and count every row in the report.

    Args:
        rows: The rows.
        report: The counts are added to its own.
        parse: Turns a row into any number of records, or drops it.
        on_bad_row: What to do with rows for which `parse` raises a BadRowError.

    Raises:
        BadRowError: a row is bad, and `on_bad_row` is "error".
    """
    for row in rows:
        report.rows += row.merged
        try:
            if row.fault is not None:
                raise row.fault
            outcomes = list(parse(row))
        except BadRowError as error:
            if on_bad_row == "error":
                raise
            reason = error.reason.value
            report.skipped[reason] = report.skipped.get(reason, 0) + row.merged
            report.first_fault = report.first_fault or f"{error.source}, row {error.row}: {error.fault}"
            examples = report.examples.setdefault(reason, [])
            if len(examples) < _EXAMPLES:
                examples.append(f"{error.source}:{error.row}" + (f" `{error.field}`" if error.field else ""))
            continue
        report.expanded += len(outcomes) - row.merged
        for outcome in outcomes:
            if isinstance(outcome, Drop):
                report.dropped[outcome.reason] = report.dropped.get(outcome.reason, 0) + 1
            else:
                report.kept += 1
                yield outcome
