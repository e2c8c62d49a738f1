"""Records other than pairs, from the same sources: prompts to answer, prompts with responses, rows to judge."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from hafrm.contract import parse_pair
from hafrm.data.forms import FORMS
from hafrm.data.loading import open_sources
from hafrm.data.mappings import renamed_rows, row_mapping
from hafrm.data.options import ReadOptions
from hafrm.data.reports import Drop, SourceReport, records_of
from hafrm.data.rowfiles import read_rows
from hafrm.errors import DataError
from hafrm.pairs import PreferencePair, Prompt, prompt_group
from hafrm.rows import Row

Record = TypeVar("Record")

_PAIR_FORMS = [form for form in FORMS if "chosen" in form.columns]
"""Forms of rows with one pair; other records with several responses have their own columns."""


def read_records(
    name: str,
    report: SourceReport,
    options: ReadOptions,
    of_row: Callable[[Row], Record | Drop],
    *,
    of_pair: Callable[[PreferencePair], Record] | None = None,
    split: str = "test",
) -> Iterator[Record]:
    """Read the records of one source, in order.

    Args:
        name: A file of rows; or the name of a data set of pairs, if `of_pair` is given.
        report: Receives the numbers of rows read, kept and left out.
        options: What to do with rows that break the contract.
        of_row: Converts a row of a file to a record, or drops it.
        of_pair: Converts a pair of a data set to a record.
        split: Split of a named data set; files are read whole.

    Raises:
        BadRowError: a row breaks the contract, and such rows are not skipped.
        UnreadableError: the file can't be read.
    """
    if of_pair is not None and not Path(name).is_file():
        (source,) = open_sources(name, split=split, options=options)
        yield from map(of_pair, source.pairs)
        for each in ("rows", "kept", "skipped", "dropped"):
            setattr(report, each, getattr(source.report, each))
        return

    read = row_mapping(options, _PAIR_FORMS)

    def parse(row: Row) -> Iterator[Record | Drop]:
        yield of_row(replace(row, value=read(row), source=name))

    rows = renamed_rows(read_rows(Path(name)), options)
    yield from records_of(rows, report, parse, on_bad_row=options.on_bad_row)


def nothing_left(name: str, what: str, reports: Sequence[SourceReport]) -> DataError:
    """Create the error for sources without a usable record; `what` ends "there is/are no ..."."""
    left_out = sum((report.left_out for report in reports), Counter[str]())
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return DataError(f"{name}: there {what} ({counts or 'no row'}).")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt and its place in a source."""

    id: str
    """`source:row`."""
    group: str
    prompt: Prompt

    @classmethod
    def of_pair(cls, pair: PreferencePair) -> PromptRow:
        """Return the prompt of a pair."""
        return cls(id=pair.id, group=pair.group, prompt=pair.prompt)

    @classmethod
    def of_row(cls, row: Row) -> PromptRow:
        """Read a row with `prompt`, or a pair."""
        if row.has("chosen"):
            return cls.of_pair(parse_pair(row.fields, source=row.source, number=row.number))
        prompt = row.prompt()
        group = row.string_or_none("group") or prompt_group(prompt)
        return cls(id=f"{row.source}:{row.number}", group=group, prompt=prompt)


@dataclass
class Prompts:
    """Distinct prompts, and reports on the rows that they came from."""

    rows: list[PromptRow] = field(default_factory=list)
    read: int = 0
    repeated: int = 0
    """Rows that repeat an earlier prompt."""
    reports: list[SourceReport] = field(default_factory=list)
    """One report per source; its `sha256` is of the source's prompts, repeated ones included."""

    @property
    def skipped(self) -> Counter[str]:
        """Rows without a usable prompt, by reason: bad rows, and those that a source's rule or split leaves out."""
        return sum((report.left_out for report in self.reports), Counter[str]())

    @property
    def sha256(self) -> str:
        """A fingerprint of all prompts, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(asdict(row)).encode() + b"\n")
        return digest.hexdigest()


def load_prompts(
    data: Sequence[str], options: ReadOptions, *, split: str = "test", limit: int | None = None
) -> Prompts:
    """Read the distinct prompts of some sources.

    Args:
        data: Files whose rows have `prompt` (a string or chat messages) or are pairs; or names of data sets.
        options: What to do with rows that break the contract.
        split: Split of named data sets.
        limit: Maximum number of distinct prompts; the first ones are used.

    Raises:
        BadRowError: a row breaks the contract, and bad rows are not skipped.
        UnreadableError: a file can't be read.
        DataError: there is no prompt.
    """
    found = Prompts()
    seen: set[Prompt] = set()
    for name in data:
        report, digest = SourceReport(name=name, kind="prompts", split=split), hashlib.sha256()
        found.reports.append(report)
        for row in read_records(name, report, options, PromptRow.of_row, of_pair=PromptRow.of_pair, split=split):
            found.read += 1
            turns = json.dumps([turn.as_dict() for turn in row.prompt.turns])
            digest.update((turns + row.prompt.arguments).encode() + b"\n")
            if row.prompt in seen:
                found.repeated += 1
            elif limit is None or len(seen) < limit:
                seen.add(row.prompt)
                found.rows.append(row)
        report.sha256 = digest.hexdigest()
    if not found.rows:
        raise nothing_left(", ".join(data) or "data", "is no prompt to answer", found.reports)
    return found
