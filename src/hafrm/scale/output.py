"""A job's folder: what it depends on, its parts' files, and which parts are done.

    job.json              what the rewards depend on, the input's files, the parts
    scored/part-N         the rows with their rewards: Parquet or JSON lines, as the input is
    errors/part-N.jsonl   the part's rows that can't be scored, with their reasons; none where there are none
    done/part-N.json      the part's counts, written last: a part without it is scored again, over its own files
    result.json           the counts of all, once all parts are done

Each file appears whole or not at all. An actor that outlives its driver does no harm: it writes the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from hafrm import atomic
from hafrm.errors import DataError, first_line
from hafrm.evaluation.bulk import RESULTS, ScoreCounts, ScoredRow, reward_names
from hafrm.evaluation.scoring import OVERLONG
from hafrm.scale.plan import Part, PartRows

__all__ = ["JobFolder", "intact"]


@contextmanager
def intact(path: Path, remedy: str) -> Iterator[None]:
    """Read one of a job's files; what is not in its form is an error that names it.

    Raises:
        DataError: the file is damaged.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {first_line(error)}). {remedy}") from error


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job's output."""

    path: Path

    @property
    def job(self) -> Path:
        """The file that says what the job is."""
        return self.path / "job.json"

    @property
    def result(self) -> Path:
        """The file of counts, there when all is done."""
        return self.path / "result.json"

    def is_done(self, part: Part) -> bool:
        """Whether all of a part's files are there."""
        return self._done(part).exists()

    def begin(self, part: Part) -> int:
        """Note that a part is begun; returns how often it was before, in this run, and was not done."""
        self._tries(part).parent.mkdir(parents=True, exist_ok=True)
        with self._tries(part).open("ab") as file:
            before = file.tell()
            file.write(b".")
        return before

    def counts(self, parts: Sequence[Part]) -> ScoreCounts:
        """The counts of parts that are done.

        Raises:
            DataError: a part's file of counts is damaged.
        """
        total = ScoreCounts()
        for part in parts:
            path = self._done(part)
            with intact(path, "Delete it: the same command then scores its part anew."):
                found = json.loads(path.read_bytes())
                total.scored += found["scored"]
                total.unscored.update(found["unscored"])
        return total

    def write(self, part: Part, content: PartRows, outcomes: Sequence[ScoredRow]) -> None:
        """Write what became of a part's rows; the part is done then.

        Args:
            part: The part.
            content: Its rows.
            outcomes: What became of each, in order.
        """
        counts = ScoreCounts()
        for outcome in outcomes:
            counts.add(outcome)
        self._write_errors(part, [outcome for outcome in outcomes if _is_error(outcome)])
        self._write_scored(part, content, outcomes)
        self._tries(part).unlink(missing_ok=True)
        atomic.write_json(self._done(part), {"scored": counts.scored, "unscored": dict(counts.unscored)})

    def clear_temporary(self) -> None:
        """Remove what killed actors left: files that they were writing, and notes of what they tried."""
        for folder in ("scored", "errors", "done"):
            for path in (self.path / folder).glob(".part-*"):
                path.unlink(missing_ok=True)

    def _done(self, part: Part) -> Path:
        return self.path / "done" / f"{_name(part)}.json"

    def _tries(self, part: Part) -> Path:
        return self.path / "done" / f".{_name(part)}.tries"

    def _write_errors(self, part: Part, errors: Sequence[ScoredRow]) -> None:
        path = self.path / "errors" / f"{_name(part)}.jsonl"
        if not errors:
            path.unlink(missing_ok=True)  # of an earlier scoring, whose errors now stand among the scored
            return
        with atomic.new_file(path) as file:
            for outcome in errors:
                file.write(atomic.json_line(_error_line(part, outcome)))

    def _write_scored(self, part: Part, content: PartRows, outcomes: Sequence[ScoredRow]) -> None:
        stem = self.path / "scored" / _name(part)
        if content.table is None:
            with atomic.new_file(stem.with_suffix(".jsonl")) as file:
                for outcome in outcomes:
                    if not _is_error(outcome):
                        file.write(atomic.json_line(outcome.line))
            return
        with atomic.new_file(stem.with_suffix(".parquet")) as file:
            pyarrow.parquet.write_table(_scored_table(content.table, outcomes), file)


def _name(part: Part) -> str:
    return f"part-{part.number:06d}"


def _is_error(outcome: ScoredRow) -> bool:
    """Whether a row goes to the error file: one that is merely too long for the model is nobody's error."""
    return outcome.unscored not in (None, OVERLONG)


def _error_line(part: Part, outcome: ScoredRow) -> dict[str, Any]:
    return {
        "file": part.file,
        "row": outcome.row.number,
        "reason": outcome.unscored,
        "detail": outcome.detail,
        "value": outcome.row.value,
    }


def _scored_table(table: pyarrow.Table, outcomes: Sequence[ScoredRow]) -> pyarrow.Table:
    """A part's rows with columns of rewards, of the same types in every part of a file."""
    kept = [place for place, outcome in enumerate(outcomes) if not _is_error(outcome)]
    found = table.take(pyarrow.array(kept, pyarrow.int64())).drop_columns(
        [name for name in RESULTS if name in table.column_names]
    )
    for name in reward_names(dict.fromkeys(table.column_names)):
        rewards = [outcomes[place].rewards[name] for place in kept]
        found = found.append_column(name, pyarrow.array(rewards, pyarrow.float64()))
    reasons = [outcomes[place].unscored for place in kept]
    return found.append_column("unscored", pyarrow.array(reasons, pyarrow.string()))
