"""The study as an ordered list of work, with what is done, what failed, and how long the rest will take.

Each backbone's stages start with the choice of learning rates: every method tries the same rates with the same steps,
sets and seeds, so all have the same budget. A rate's mark is the validation accuracy of the kept checkpoint, averaged
over these runs; ties go to the lower rate, and a rate with a failed run is not chosen.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hafrm import atomic
from hafrm.errors import ConfigError
from hafrm.paper.costs import Costs, is_local
from hafrm.paper.plans import PARTS, Plan, Scoring, cells
from hafrm.paper.runs import OTHER_OPTIONS, Run
from hafrm.paper.scales import METHODS, Job
from hafrm.training.config import Method
from hafrm.training.manifest import is_finished, read_manifest

SEARCH = "the choice of learning rates"
"""Name of the stage that precedes all others of a backbone."""

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
    """A line for every start and every end of a run or scoring. Several processes may append; lines are never removed.

    Args:
        path: The journal file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str, event: Event, **more: Any) -> None:
        """Append a line with the fields of an `Entry`, in a single write."""
        entry = Entry(what=what, event=event, at=datetime.now(UTC).isoformat(timespec="seconds"), **more)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = atomic.json_line(asdict(entry))
        with atomic.naming(self.path), self.path.open("ab", buffering=0) as file:
            if not self._ends_whole():
                line = b"\n" + line  # separate it from an incomplete line before it
            if (written := file.write(line)) < len(line):
                file.write(line[written:])  # raises if the disk is full

    @property
    def length(self) -> int:
        """Current size in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def _ends_whole(self) -> bool:
        """Return whether the last line is complete. Two writers may both end it: readers skip the empty line."""
        if not self.length:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

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


def journal_of(job: Job) -> Journal:
    """Return the study's journal."""
    return Journal(job.root / "study" / "runs.jsonl")


@dataclass(frozen=True)
class Todo:
    """A run and the scorings that need it."""

    job: Job
    """The study's job, with the learning rates of the run's backbone."""
    run: Run
    scorings: tuple[Scoring, ...] = ()
    chosen: bool = True
    """Whether the learning rate is chosen; if not, `folder` is a placeholder and may belong to another run."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder(self.job)

    @property
    def name(self) -> str:
        """The run's name in the journal."""
        return str(self.folder.relative_to(self.job.root / "runs"))

    @property
    def trained(self) -> bool:
        """Whether the run is finished."""
        return self.chosen and is_finished(self.folder)

    @property
    def unscored(self) -> tuple[Scoring, ...]:
        """Scorings that are still missing."""
        return tuple(each for each in self.scorings if not (self.chosen and each.state(self.job) == "finished"))

    @property
    def done(self) -> bool:
        """Whether the run and all its scorings are finished."""
        return self.trained and not self.unscored

    @property
    def leftovers(self) -> list[Path]:
        """Checkpoints of the run, which are not needed once it is finished."""
        return [] if self.run.keep_checkpoints else list(self.folder.glob("checkpoint-*"))

    def scoring_name(self, scoring: Scoring) -> str:
        """Return a scoring's name in the journal."""
        return f"scores of {scoring.folder(self.job).relative_to(self.job.root / 'study' / 'scores')}"

    def failure(self, journal: Mapping[str, Entry]) -> Entry | None:
        """Return the entry of the latest failure that prevents completion, or None."""
        if not self.chosen:
            return None
        names = [*([] if self.trained else [self.name]), *map(self.scoring_name, self.unscored)]
        return next((journal[name] for name in names if name in journal and journal[name].event == "failed"), None)

    def state(self, journal: Mapping[str, Entry]) -> str:
        """Return the state of the run and its scorings, as shown in the plan."""
        state = self.run.state(self.job)
        if state.startswith(OTHER_OPTIONS):
            return state
        if self.done:
            return "finished"
        failure = self.failure(journal)
        return f"failed: {failure.reason}" if failure else "missing"


@dataclass(frozen=True)
class Stage:
    """One part of the study on one backbone."""

    name: str
    backbone: str
    todos: tuple[Todo, ...]

    @property
    def ready(self) -> bool:
        """Whether the runs' learning rates are chosen; until then, runs are listed with the scale's own rates."""
        return all(todo.chosen for todo in self.todos)


def stage_order(job: Job) -> Iterator[tuple[str, str]]:
    """Yield parts and backbones in the order in which they run, breadth first.

    The first backbone's single sets come first, then parts that need few more runs, then other backbones' single sets.
    """
    first, *others = job.backbones
    early = [part for part in ("table2", "ood", "heads", "mixed") if part in job.parts]
    late = [part for part in PARTS if part in job.parts and part not in early]
    yield from ((part, first) for part in early)
    yield from (("table2", backbone) for backbone in others if "table2" in early)
    yield from ((part, first) for part in late)
    yield from ((part, backbone) for backbone in others for part in (*early, *late) if part != "table2")


def trials(job: Job, part: str, backbone: str) -> dict[Run, tuple[Scoring, ...]]:
    """Return the runs of a part, each with its scorings."""
    found: dict[Run, dict[Scoring, None]] = {}
    for cell in cells(job, part, backbone):
        found.setdefault(cell.run, {})[cell.scoring] = None
    return {run: tuple(scorings) for run, scorings in found.items()}


@dataclass(frozen=True)
class RateChoice:
    """Results of one method's search over learning rates."""

    marks: Mapping[float, float | None]
    """Mean validation accuracy over sets and seeds by rate; None if a run is missing or failed."""
    failed: tuple[float, ...] = ()
    """Rates with a failed run."""

    @property
    def complete(self) -> bool:
        """Whether every rate has a mark or has failed."""
        return all(mark is not None or rate in self.failed for rate, mark in self.marks.items())

    @property
    def rate(self) -> float | None:
        """The chosen rate; None if no rate has a mark, or not all have been tried."""
        marked = {rate: mark for rate, mark in self.marks.items() if mark is not None}
        return min(marked, key=lambda rate: (-marked[rate], rate)) if marked and self.complete else None


def _choosing_runs(job: Job, backbone: str) -> list[Run]:
    """Return the runs of one rate that choose among the rates."""
    return list(trials(replace(job, seeds=job.seeds[: job.rate_seeds]), "table2", backbone))


def search(job: Job, backbone: str) -> Iterator[Todo]:
    """Yield the runs that choose rates, ordered by rate; none if there is only one rate.

    They are not scored here: the chosen rates' runs are scored together with the other seeds.
    """
    for rate in job.rates if len(job.rates) > 1 else ():
        yield from _tries(job, backbone, rate)


def _tries(job: Job, backbone: str, rate: float) -> Iterator[Todo]:
    """Yield the runs that try one rate, each with the job at this rate."""
    for run in _choosing_runs(job, backbone):
        yield Todo(_at(job, backbone, {run.method: rate}), run)


def choices(job: Job, backbone: str) -> dict[Method, RateChoice]:
    """Return the state of the search by method; empty if there is only one rate."""
    found: dict[Method, RateChoice] = {}
    if len(job.rates) < 2:
        return found
    journal = journal_of(job).last()
    for method in METHODS:
        marks: dict[float, float | None] = {}
        failed = []
        for rate in job.rates:
            todos = [todo for todo in _tries(job, backbone, rate) if todo.run.method == method]
            if any(todo.name in journal and journal[todo.name].event == "failed" for todo in todos):
                failed.append(rate)
            manifests = [read_manifest(todo.folder) or {} for todo in todos if is_finished(todo.folder)]
            scores = [manifest["eval_metrics"]["eval_rewards/accuracies"] for manifest in manifests]
            marks[rate] = statistics.fmean(scores) if len(scores) == len(todos) else None
        found[method] = RateChoice(marks, tuple(failed))
    return found


def at_chosen_rates(job: Job, backbone: str) -> Job | None:
    """Return the job with each method's chosen rate on a backbone; None if a method has no rate (yet).

    Without given rates, methods use the scale's own rates and share their runs with other experiments.
    """
    if len(job.rates) < 2:
        return _at(job, backbone, dict.fromkeys(METHODS, job.rates[0])) if job.rates else job
    rates = {method: choice.rate for method, choice in choices(job, backbone).items()}
    known = {method: rate for method, rate in rates.items() if rate is not None}
    return _at(job, backbone, known) if len(known) == len(rates) else None


def _at(job: Job, backbone: str, rates: Mapping[Method, float]) -> Job:
    return replace(job, scale=job.scale.at_rates(backbone, rates))


def stages(job: Job) -> Iterator[Stage]:
    """Yield the study's stages in order; reads the disk lazily, as rates are chosen on the way."""
    searched: set[str] = set()
    for part, backbone in stage_order(job):
        if backbone not in searched:
            searched.add(backbone)
            if tried := tuple(search(job, backbone)):
                yield Stage(SEARCH, backbone, tried)
        at = at_chosen_rates(job, backbone)
        found = trials(job, part, backbone).items()
        yield Stage(
            part, backbone, tuple(Todo(at or job, run, scorings, chosen=at is not None) for run, scorings in found)
        )


def plan_study(job: Job) -> Plan:
    """Return every run of the study once; their learning rates are known only after some have run.

    Raises:
        ConfigError: there are no runs, because the requested parts need other sets.
    """
    runs = dict.fromkeys(run for part, backbone in stage_order(job) for run in trials(job, part, backbone))
    if not runs:
        raise ConfigError(
            f"parts: on {', '.join(job.sets)} alone there is nothing to do for {', '.join(job.parts)}. A mixture "
            "takes two sets, and out of domain a second one of the same category. Name more sets."
        )
    return Plan(tuple(runs))


def described_study(job: Job, plan: Plan) -> Iterator[str]:
    """Describe the study line by line: each stage with its runs and their states, and the remaining time."""
    last, refused = journal_of(job).last(), 0
    yield f"{len(plan.runs)} training runs, and those that choose learning rates"
    for stage in stages(job):
        count = f"{stage.name}, {stage.backbone}: {len(stage.todos)} runs"
        if not stage.ready:
            yield f"{count} at rates that are still to be chosen"
            yield from (f"  [missing] {todo.run.name}" for todo in stage.todos)
            continue
        states = [todo.state(last) for todo in stage.todos]
        refused += sum(state.startswith(OTHER_OPTIONS) for state in states)
        yield f"{count}, of which {states.count('finished')} are finished"
        yield from (f"  [{state}] {todo.name}" for todo, state in zip(stage.todos, states, strict=True))
    if refused:
        yield f"{refused} runs were made with other options, which the command refuses. Choose another --out."
    else:
        yield from missing(job)


def missing(job: Job) -> Iterator[str]:
    """Describe what is missing by stage, with estimated times; a run counts in the first stage that needs it."""
    journal = journal_of(job)
    last, costs = journal.last(), Costs(job, journal.slowness()) if is_local(job) else None
    counted: set[str] = set()
    total = 0.0
    for stage in stages(job):
        left = [todo for todo in stage.todos if not todo.done]
        failed = [todo for todo in left if todo.failure(last) is not None]
        if not stage.ready:  # the choice of rates trains these
            counted.update(todo.name for todo in left if todo.run in _choosing_runs(job, stage.backbone))
        tried = left if job.retry else [todo for todo in left if todo not in failed]
        counted.update(todo.name for todo in left if todo not in tried)
        seconds = sum(_seconds(todo, costs, counted) for todo in tried)
        total += seconds
        if left:
            again = f", {len(failed)} of which failed (--retry tries them again)" if failed else ""
            count = f"{len(left)} of {len(stage.todos)} runs"
            yield f"missing: {count} of {stage.name}, {stage.backbone}{again}{_about(seconds)}"
    yield f"all that is missing{_about(total)}" if counted else "nothing is missing"


def _seconds(todo: Todo, costs: Costs | None, counted: set[str]) -> float:
    new = [name for name in (todo.name, *map(todo.scoring_name, todo.unscored)) if name not in counted]
    counted.update(new)
    if costs is None:
        return 0.0
    train = costs.run(todo.run) if todo.name in new and not todo.trained else 0.0
    return train + sum(costs.scoring(each) for each in todo.unscored if todo.scoring_name(each) in new)


def _about(seconds: float) -> str:
    return f": about {seconds / 3600:.2g} hours of one process" if seconds else ""
