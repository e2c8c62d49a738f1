"""The permanent record of a study: its journal and the results of its runs, without weights or texts.

Both are files of JSON lines in the study's folder, which a repository can keep: several processes append to them, lines
are never changed, and a line that a kill left incomplete is skipped. The study's numbers are computed from them alone,
and recorded work is not repeated, on this machine or another. Other experiments write a record too, so that their
results can be recomputed; it may also contain values of single prompts.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from hafrm import atomic
from hafrm.errors import ConfigError, DataError
from hafrm.evaluation.scoring import PairScore
from hafrm.models.options import LoraOptions
from hafrm.paper.scales import Backbone, Job, Scale, SetFiles
from hafrm.store import changed_values, parsed_lines, read_json
from hafrm.training.manifest import processor

_HEADER = "study.json"

Event = Literal["started", "finished", "failed", "stopped"]
""""failed" runs are not repeated without --retry; "stopped" ones are: an option can't work, or the disk was full."""


@dataclass(frozen=True)
class _Lines:
    """A file of JSON lines that several processes append to."""

    path: Path

    @property
    def length(self) -> int:
        """Current size in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a line in a single write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = atomic.json_line(row, separators=(",", ":"))
        with atomic.naming(self.path), self.path.open("ab", buffering=0) as file:
            if not self._ends_whole():
                line = b"\n" + line  # separate it from an incomplete line before it
            if (written := file.write(line)) < len(line):
                file.write(line[written:])  # raises if the disk is full

    def _ends_whole(self) -> bool:
        """Return whether the last line is complete. If two writers both end it, readers skip the empty line."""
        if not self.length:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def rows(self, since: int = 0) -> Iterator[Any]:
        """Yield the values of all complete lines after the first `since` bytes."""
        if self.path.exists():
            yield from parsed_lines(self.path, lambda row: row, remedy=None, since=since)


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


class Journal(_Lines):
    """A line for every start and every end of a run or scoring."""

    def write(self, what: str, event: Event, **more: Any) -> None:
        """Append a line with the fields of an `Entry`."""
        entry = Entry(what=what, event=event, at=datetime.now(UTC).isoformat(timespec="seconds"), **more)
        self.append(asdict(entry))

    def entries(self, *, since: int = 0) -> Iterator[Entry]:
        """Yield all entries in order, after the first `since` bytes of the file."""
        for row in self.rows(since):
            try:
                yield Entry(**row)
            except TypeError:
                continue

    def last(self, *, since: int = 0) -> dict[str, Entry]:
        """Return the latest entry of each run and scoring, overall or since an earlier `length`."""
        return {entry.what: entry for entry in self.entries(since=since)}

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


_Kind = Literal["run", "test", "scores"]


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, length: int) -> dict[_Kind, dict[str, dict[str, Any]]]:
    """Parse a record into its lines by kind and name; its length changes with every line, so this can be cached."""
    found: dict[_Kind, dict[str, dict[str, Any]]] = {kind: {} for kind in get_args(_Kind)}
    for row in _Lines(path).rows():
        for kind, by_name in found.items():
            if isinstance(row, dict) and kind in row:
                by_name[row[kind]] = row
    return found


class Record:
    """The results of a study's runs: how each was made, and its scores.

    Margins, the reward of the better response minus that of the worse, are kept with five significant digits; a test
    set is kept once, as the numbers of each pair's row and prompt, and the lengths of its responses. Prompts are
    numbered in the order of their groups' names, so that a seeded bootstrap over the numbers has the same draws.
    """

    def __init__(self, folder: Path) -> None:
        self._lines = _Lines(folder / "record.jsonl")

    @property
    def path(self) -> Path:
        """The file."""
        return self._lines.path

    def _found(self, kind: _Kind, name: str) -> dict[str, Any] | None:
        return _parsed(self.path, self._lines.length)[kind].get(name)

    def validation(self, run: str) -> float | None:
        """Return the validation accuracy of a run's best checkpoint; None if the run is not recorded."""
        found = self._found("run", run)
        return None if found is None else float(found["validation"]["accuracy"])

    def changes(self, run: str, options: Mapping[str, Any]) -> str:
        """Describe the options and data in which a recorded run differs; empty if it does not, or is not recorded.

        Options that only one of the two versions of hafrm has are ignored, because a record may be from an older
        version.
        """
        found = self._found("run", run)
        if found is None:
            return ""
        before, now = found["options"], json.loads(json.dumps(options))
        return changed_values(before, now, free=lambda name: not (_has(before, name) and _has(now, name)))

    def add_run(self, run: str, options: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Record a finished run by its manifest, with the options that determine its result, without folders."""
        effective = manifest["effective"]
        measured = manifest["eval_metrics"]
        validation = {"accuracy": measured["eval_rewards/accuracies"]}  # the metric of the head that scores
        more = {"margins": "eval_rewards/margins", "eval_loss": "eval_loss"}
        validation |= {name: measured[metric] for name, metric in more.items() if metric in measured}
        made_by = {name: manifest[name] for name in ("started", "git_revision", "versions")}
        precision = next((name for name in ("bf16", "fp16") if effective[name]), effective["dtype"])
        machine = {"device": effective["device"], "processor": processor(), "threads": torch.get_num_threads()}
        self._lines.append(
            {"run": run, "validation": validation, "options": options, "precision": precision, "machine": machine}
            | made_by
        )

    def has_scores(self, name: str, depends_on: Mapping[str, Any] | None = None) -> bool:
        """Return whether scores are recorded, and, if they are of a model without a run, depend on the same data."""
        found = self._found("scores", name)
        return found is not None and found.get("depends_on") == depends_on

    def add_scores(
        self,
        name: str,
        test: str,
        scores: Sequence[PairScore],
        *,
        kept: Sequence[PairScore] | None = None,
        depends_on: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a model's scores of a test set.

        Args:
            name: Name of the scores.
            test: Name of the test set.
            scores: A score for every pair.
            kept: Those of pairs whose prompt was not trained on; None: all.
            depends_on: What the scores of a model without a run depend on.

        Raises:
            ConfigError: the test set is recorded with other pairs.
        """
        groups = {group: number for number, group in enumerate(sorted({score.group for score in scores}))}
        pairs = {
            "rows": [int(score.id.rpartition(":")[2]) for score in scores],
            "prompts": [groups[score.group] for score in scores],
            "lengths": [[score.length_chosen, score.length_rejected] for score in scores],
        }
        before = self._found("test", test)
        changed = before is None or not _same_pairs(before, pairs)
        if before is not None and depends_on is None and changed:
            raise ConfigError(f"{self.path}: {test} is recorded with other test pairs. Choose another --keep or --out.")
        if changed:
            self._lines.append({"test": test, **pairs})
        fair = None if kept is None else {score.id for score in kept}
        seen = [] if fair is None else [place for place, score in enumerate(scores) if score.id not in fair]
        margins = [None if score.margin is None else float(f"{score.margin:.5g}") for score in scores]
        line = {"scores": name, "on": test, "margins": margins, "seen": seen}
        self._lines.append(line if depends_on is None else line | {"depends_on": depends_on})

    def add_values(self, line: Mapping[str, Any]) -> None:
        """Append a result of `values_line`."""
        self._lines.append(line)

    def scores(self, name: str) -> tuple[list[PairScore], int] | None:
        """Return recorded scores, of pairs whose prompt was not trained on, and the number of pairs left out.

        Returns:
            The scores, with the margin as the better response's reward; None if there are none.
        """
        row = self._found("scores", name)
        if row is None:
            return None
        label, seen = row["on"], set(row["seen"])
        test, found = _parsed(self.path, self._lines.length)["test"][label], []
        for place, (number, prompt, lengths, margin) in enumerate(
            zip(test["rows"], test["prompts"], test["lengths"], row["margins"], strict=True)
        ):
            if place not in seen:
                rewards = (None, None) if margin is None else (margin, 0.0)
                found.append(PairScore("", label, f"{label}:{number}", f"{label}:{prompt}", *rewards, *lengths))
        return found, len(seen)


def values_line(row: str, columns: Mapping[str, Iterable[float]], **of: Any) -> dict[str, Any]:
    """Return a line of a record with the values from which an experiment's means and intervals follow.

    Args:
        row: What the values belong to, named as in `results.json`.
        columns: Values by name, one for each prompt, or for each pair of the test set `on`; kept with five significant
            digits.
        of: What else identifies the line, such as `seed`, `step` or `on`.
    """
    return {"values": row, **of, **{name: list(map(_short, values)) for name, values in columns.items()}}


def _short(value: float) -> float:
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() else short


def _same_pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two test sets have the same pairs; prompts may be numbered in different orders."""

    def comparable(test: Mapping[str, Any]) -> tuple[Any, ...]:
        first: dict[int, int] = {}
        prompts = [first.setdefault(number, place) for place, number in enumerate(test["prompts"])]
        return test["rows"], test["lengths"], prompts

    return comparable(one) == comparable(other)


def _has(values: Any, name: str) -> bool:
    """Return whether nested values have a dotted name."""
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def journal_of(job: Job) -> Journal:
    """Return the study's journal."""
    return Journal(job.study / "runs.jsonl")


def record_of(job: Job) -> Record:
    """Return the study's record."""
    return Record(job.study)


def lock_file(job: Job, name: str) -> Path:
    """Return the file that is locked by whoever works on a run or scoring."""
    path = job.root / "study" / "locks" / f"{name.replace('/', '@')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_header(job: Job) -> None:
    """Write what `recorded_job` needs to compute the study's numbers again."""
    scale = job.scale
    backbones = {
        name: {"paper_name": own.paper_name, "lora": asdict(own.lora), "learning_rates": dict(own.learning_rates)}
        for name, own in scale.backbones.items()
        if name in job.backbones
    }
    of_the_scale: dict[str, Any] = {name: getattr(scale, name) for name in _OF_A_SCALE}
    of_the_job = {name: getattr(job, name) for name in _OF_A_JOB}
    atomic.write_json(job.study / _HEADER, of_the_scale | of_the_job | {"backbones": backbones})


_OF_A_SCALE = ("name", "training", "max_length", "early_stopping", "cap")
_OF_A_JOB = ("sets", "seeds", "rates", "rate_seeds", "rate_sets", "parts")
"""What the header contains of a scale and of a job."""


def recorded_job(folder: Path) -> Job:
    """Rebuild a study's job from its folder, to compute its numbers from the record; nothing can be trained with it.

    Raises:
        DataError: the folder contains no study.
    """
    header = read_json(folder / _HEADER)
    if header is None:
        raise DataError(f"{folder} has no {_HEADER}, so it is not a study's folder.")

    def no_model() -> str:
        raise ConfigError(f"{folder} contains results only: a study that trains needs --scale and its options.")

    backbones = {
        name: Backbone(name, own["paper_name"], no_model, name, LoraOptions(**own["lora"]), own["learning_rates"])
        for name, own in header["backbones"].items()
    }
    scale = Scale(
        backbones=backbones,
        sets={name: SetFiles.named(name) for name in header["sets"]},
        **{name: header[name] for name in _OF_A_SCALE},
    )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value := header[name], list) else value for name in _OF_A_JOB
    }
    return Job(scale=scale, backbones=tuple(backbones), out=folder, keep=folder, **values)
