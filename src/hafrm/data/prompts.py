"""Prompts without responses, from files with `prompt` rows or pairs, and from named sets of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hafrm.data.loading import load_pairs
from hafrm.data.options import ReadOptions
from hafrm.data.rows import RawRow, read_rows
from hafrm.errors import BadRowError
from hafrm.pairs import Prompt, RowReader, parse_pair, prompt_group


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt and its place in a source."""

    id: str
    """`source:row`."""
    group: str
    prompt: Prompt


def read_prompts(name: str, options: ReadOptions, *, split: str, skipped: Counter[str]) -> Iterator[PromptRow]:
    """Read the prompts of one source, in order and including duplicates.

    Args:
        name: A file whose rows contain `prompt` (a string or chat messages) or are pairs; or a data set's name.
        options: What to do with rows that break the contract.
        split: Split of a named data set; files are read whole.
        skipped: Counts rows without a prompt, by reason: those that break the contract, and those that a data set's
            rule or split leaves out.

    Raises:
        BadRowError: a row breaks the contract, and such rows are not skipped.
        UnreadableError: a file can't be read.
    """
    if not Path(name).is_file():
        found = load_pairs(name, split=split, options=options)
        skipped.update(found.left_out)
        for pair in found.pairs:
            yield PromptRow(id=pair.id, group=pair.group, prompt=pair.prompt)
        return
    for row in read_rows(Path(name)):
        try:
            yield _of_row(row, name)
        except BadRowError as error:
            if options.on_bad_row == "error":
                raise
            skipped[error.reason.value] += 1


def _of_row(row: RawRow, source: str) -> PromptRow:
    if row.error is not None:
        raise row.error
    reader = RowReader(row.value, source=source, number=row.number)
    if reader.has("chosen"):
        pair = parse_pair(row.value, source=source, number=row.number)
        return PromptRow(id=pair.id, group=pair.group, prompt=pair.prompt)
    prompt = reader.prompt()
    group = reader.string_or_none("group") or prompt_group(prompt)
    return PromptRow(id=f"{source}:{row.number}", group=group, prompt=prompt)
