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
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with atomic.naming(self.path):
                os.write(handle, atomic.json_line(asdict(entry)))
        finally:
            os.close(handle)

    def entries(self) -> Iterator[Entry]:
        """All lines in order; a line that a kill cut short is passed over."""
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue

    def last(self) -> dict[str, Entry]:
        """How each run and scoring stands."""
        return {entry.what: entry for entry in self.entries()}

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
