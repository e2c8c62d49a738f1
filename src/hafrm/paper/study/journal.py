"""The journal: a line for everything that was started, and for how it ended. Nothing is ever taken out of it.

Several processes may write to one journal: a line is written in one call, to the end of the file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hafrm import atomic

__all__ = ["JOURNAL_FILE", "Entry", "Journal"]

JOURNAL_FILE = "runs.jsonl"

Event = Literal["started", "finished", "failed", "stopped"]
"""What fails is not tried again by itself; what was stopped, by an option that can't work or a full disk, is."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line."""

    what: str
    """The run's or the scoring's name."""
    event: Event
    seconds: float = 0.0
    foretold: float = 0.0
    """The seconds that were expected, before any correction; 0 where nobody knew."""
    reason: str = ""
    """Why it failed or was stopped."""
    at: str = ""


class Journal:
    """The entries of one study.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str, event: Event, **more: Any) -> None:
        """Add a line: the fields of an `Entry`."""
        entry = Entry(what=what, event=event, at=datetime.now(UTC).isoformat(timespec="seconds"), **more)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = atomic.json_line(asdict(entry))
        with atomic.naming(self.path), self.path.open("ab", buffering=0) as file:
            if not self._ends_whole():
                line = b"\n" + line  # or the half line before would take this one with it
            if (written := file.write(line)) < len(line):
                file.write(line[written:])  # raises, where the disk is full

    @property
    def length(self) -> int:
        """Its bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def entries(self, *, since: int = 0) -> Iterator[Entry]:
        """All lines in order; a line that a kill cut short is passed over.

        Args:
            since: The bytes to leave out, as `length` once gave them.
        """
        if not self.path.exists():
            return
        for line in self.path.read_bytes()[since:].split(b"\n"):  # JSON leaves U+2028 as it is: no str.splitlines
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue

    def last(self, *, since: int = 0) -> dict[str, Entry]:
        """How each run and scoring stands, by all lines or those since a `length`."""
        return {entry.what: entry for entry in self.entries(since=since)}

    def _ends_whole(self) -> bool:
        """Whether no half line is at the end. Two writers may both end one: the empty line is passed over."""
        if not self.length:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def slowness(self) -> float:
        """How much longer things took than was foretold, of those that came to their end in one go; 1 without any."""
        starts: Counter[str] = Counter()
        taken = foretold = 0.0
        for entry in self.entries():
            starts[entry.what] += entry.event == "started"
            if entry.event == "finished" and starts[entry.what] == 1 and entry.foretold:
                taken += entry.seconds
                foretold += entry.foretold
        return taken / foretold if foretold else 1.0
