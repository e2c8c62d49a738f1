"""The journal: one line for every start and every end of a run or scoring. Lines are never removed.

Several processes may write to one journal: each line is appended in a single write.
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

JOURNAL_FILE = "runs.jsonl"

Event = Literal["started", "finished", "failed", "stopped"]
""""failed" runs are not repeated without --retry; "stopped" ones are: an option can't work, or the disk was full."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the journal."""

    what: str
    """Name of the run or scoring."""
    event: Event
    seconds: float = 0.0
    foretold: float = 0.0
    """Estimated seconds before any correction; 0 if unknown."""
    reason: str = ""
    """Why it failed or was stopped."""
    at: str = ""


class Journal:
    """Entries of one study.

    Args:
        path: The journal file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str, event: Event, **more: Any) -> None:
        """Append a line with the fields of an `Entry`."""
        entry = Entry(what=what, event=event, at=datetime.now(UTC).isoformat(timespec="seconds"), **more)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = atomic.json_line(asdict(entry))
        with atomic.naming(self.path), self.path.open("ab", buffering=0) as file:
            if not self._ends_whole():
                line = b"\n" + line  # keep it apart from an incomplete line before it
            if (written := file.write(line)) < len(line):
                file.write(line[written:])  # raises if the disk is full

    @property
    def length(self) -> int:
        """Current size in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def entries(self, *, since: int = 0) -> Iterator[Entry]:
        """Yield all entries in order, skipping lines that a kill left incomplete.

        Args:
            since: Number of bytes to skip, from an earlier `length`.
        """
        if not self.path.exists():
            return
        for line in self.path.read_bytes()[since:].split(b"\n"):  # not str.splitlines: JSON may contain U+2028
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue

    def last(self, *, since: int = 0) -> dict[str, Entry]:
        """Return the latest entry of each run and scoring, overall or since an earlier `length`."""
        return {entry.what: entry for entry in self.entries(since=since)}

    def _ends_whole(self) -> bool:
        """Return whether the last line is complete. Two writers may both end it: readers skip the empty line."""
        if not self.length:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def slowness(self) -> float:
        """Return the ratio of actual to estimated time over entries that finished in one go; 1 if there are none."""
        starts: Counter[str] = Counter()
        taken = foretold = 0.0
        for entry in self.entries():
            starts[entry.what] += entry.event == "started"
            if entry.event == "finished" and starts[entry.what] == 1 and entry.foretold:
                taken += entry.seconds
                foretold += entry.foretold
        return taken / foretold if foretold else 1.0
