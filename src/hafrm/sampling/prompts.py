"""The prompts to answer: of files of prompts or pairs, and of named sets, each distinct prompt once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hafrm.data import RawRow, ReadOptions, load_pairs, read_rows
from hafrm.errors import BadRowError, DataError
from hafrm.pairs import Message, RowReader, parse_pair, prompt_group

__all__ = ["Prompt", "PromptRow", "Prompts", "load_prompts"]

Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt, and where it first stood."""

    id: str
    """`source:row`."""
    group: str
    prompt: Prompt


@dataclass
class Prompts:
    """Distinct prompts, and an account of the rows that they came from."""

    rows: list[PromptRow] = field(default_factory=list)
    read: int = 0
    repeated: int = 0
    """Rows whose prompt stood before."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows that break the contract, by reason."""

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
    """Read prompts.

    Args:
        data: Files whose rows hold `prompt` (a string or chat messages) or are pairs; or names of data sets.
        options: What to do with rows that break the contract.
        split: Which split of named data sets.
        limit: How many distinct prompts at the most, the first ones.

    Raises:
        BadRowError: a row breaks the contract, and such rows are not to be skipped.
        UnreadableError: a file can't be read.
        DataError: there is no prompt.
    """
    found = Prompts()
    seen: set[Prompt] = set()
    for row in (row for name in data for row in _rows(name, options, split, found)):
        found.read += 1
        if row.prompt in seen:
            found.repeated += 1
        elif limit is None or len(seen) < limit:
            seen.add(row.prompt)
            found.rows.append(row)
    if not found.rows:
        lost = ", ".join(f"{count} {reason}" for reason, count in found.skipped.items())
        raise DataError(f"{', '.join(data) or 'data'}: there is no prompt to answer ({lost or 'no row'}).")
    return found


def _rows(name: str, options: ReadOptions, split: str, found: Prompts) -> Iterator[PromptRow]:
    if not Path(name).is_file():
        for pair in load_pairs(name, split=split, options=options).pairs:
            yield PromptRow(id=pair.id, group=pair.group, prompt=pair.prompt)
        return
    for row in read_rows(Path(name)):
        try:
            yield _of_row(row, name)
        except BadRowError as error:
            if options.on_bad_row == "error":
                raise
            found.skipped[error.reason.value] += 1


def _of_row(row: RawRow, source: str) -> PromptRow:
    if row.error is not None:
        raise row.error
    reader = RowReader(row.value, source=source, number=row.number)
    if reader.has("chosen"):
        pair = parse_pair(row.value, source=source, number=row.number)
        return PromptRow(id=pair.id, group=pair.group, prompt=pair.prompt)
    prompt = reader.messages("prompt", "user")
    reader.check_prompt(prompt)
    group = reader.string_or_none("group") or prompt_group(prompt)
    return PromptRow(id=f"{source}:{row.number}", group=group, prompt=prompt)
