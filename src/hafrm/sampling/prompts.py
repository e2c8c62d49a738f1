"""Read the prompts to answer from files of prompts or pairs and from named sets, each distinct prompt once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from hafrm.data import PromptRow, ReadOptions, read_prompts
from hafrm.errors import DataError
from hafrm.pairs import Prompt


@dataclass
class Prompts:
    """Distinct prompts, and an account of the rows that they came from."""

    rows: list[PromptRow] = field(default_factory=list)
    read: int = 0
    repeated: int = 0
    """Rows that repeat an earlier prompt."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows without a usable prompt, by reason: they break the contract, or their source's rule or split excludes them.
    """

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
        data: Files whose rows have `prompt` (a string or chat messages) or are pairs; or names of data sets.
        options: What to do with rows that break the contract.
        split: Which split of named data sets.
        limit: Maximum number of distinct prompts; the first ones are used.

    Raises:
        BadRowError: a row breaks the contract, and such rows are not to be skipped.
        UnreadableError: a file can't be read.
        DataError: there is no prompt.
    """
    found = Prompts()
    seen: set[Prompt] = set()
    for row in (row for name in data for row in read_prompts(name, options, split=split, skipped=found.skipped)):
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
