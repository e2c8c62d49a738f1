"""The study as an ordered list of work, with what is done, what failed, and how long the rest will take.

Each backbone's stages start with the choice of learning rates: every method tries the same rates with the same steps,
sets and seeds, so all have the same budget. A rate's mark is the validation accuracy of the kept checkpoint, averaged
over these runs; ties go to the lower rate, and a rate with a failed run is not chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hafrm.errors import ConfigError
from hafrm.paper.costs import Costs, can_estimate
from hafrm.paper.plans import PARTS, Plan, Scoring, cells
from hafrm.paper.record import Entry, journal_of, record_of
from hafrm.paper.resources import needs
from hafrm.paper.runs import OTHER_OPTIONS, Run
from hafrm.paper.scales import METHODS, Job
from hafrm.training.manifest import is_finished, refuse_other_options

SEARCH = "the choice of learning rates"
"""Name of the stage that precedes all others of a backbone."""


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
    def recorded(self) -> bool:
        """Whether the run's validation accuracy is recorded."""
        return self.chosen and record_of(self.job).validation(self.name) is not None

    @property
    def unscored(self) -> tuple[Scoring, ...]:
        """Scorings that are still missing."""
        record = record_of(self.job)
        return tuple(each for each in self.scorings if not (self.chosen and record.has_scores(self.scores_name(each))))

    @property
    def trained(self) -> bool:
        """Whether no training is missing: the run is recorded, and its weights exist if they are still to be scored."""
        return self.recorded and (not self.unscored or is_finished(self.folder))

    @property
    def done(self) -> bool:
        """Whether the run and all its scorings are recorded."""
        return self.recorded and not self.unscored

    @property
    def leftovers(self) -> list[Path]:
        """What is no longer needed: checkpoints of a finished run, or all of a run whose results are kept elsewhere."""
        if self.job.keep is not None and self.scorings and self.done:
            return [self.folder] if self.folder.exists() else []
        return list(self.folder.glob("checkpoint-*")) if is_finished(self.folder) else []

    def scores_name(self, scoring: Scoring) -> str:
        """Return a scoring's name in the record."""
        return str(scoring.folder(self.job).relative_to(self.job.root / "study" / "scores"))

    def scoring_name(self, scoring: Scoring) -> str:
        """Return a scoring's name in the journal."""
        return f"scores of {self.scores_name(scoring)}"

    def require_same(self) -> None:
        """Raise if the run's folder or record has other options or pairs.

        Raises:
            ConfigError: names what differs.
        """
        self.run.require_same(self.job)
        refuse_other_options(self._changed_record, record_of(self.job).path)

    @property
    def _changed_record(self) -> str:
        return record_of(self.job).changes(self.name, self.run.options(self.job)) if self.recorded else ""

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
        if changed := self._changed_record:
            return f"{OTHER_OPTIONS}: {changed}"
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
    early = [part for part in ("table2", "sft", "ood", "transfer", "heads", "mixed") if part in job.parts]
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
    """Return the runs at one rate that are compared to choose the rate."""
    asked = replace(job, seeds=job.seeds[: job.rate_seeds], sets=job.rate_sets or job.sets)
    parts = ("table2", "sft") if "sft" in job.parts else ("table2",)
    return list(dict.fromkeys(run for part in parts for run in trials(asked, part, backbone)))


def search(job: Job, backbone: str) -> Iterator[Todo]:
    """Yield the runs on which the choice of rates is based, ordered by rate; none if there is only one rate.

    They are not scored here: the chosen rates' runs are scored together with the other seeds.
    """
    for rate in job.rates if len(job.rates) > 1 else ():
        for run in _choosing_runs(job, backbone):
            yield Todo(_at(job, backbone, {run.recipe: rate}), run)


def choices(job: Job, backbone: str) -> dict[str, RateChoice]:
    """Return the state of the search by recipe; empty if there is only one rate."""
    tried: dict[str, dict[float, list[str]]] = {}
    for todo in search(job, backbone):
        by_rate = tried.setdefault(todo.run.recipe, {})
        by_rate.setdefault(todo.run.learning_rate(todo.job), []).append(todo.name)
    journal, record = journal_of(job).last(), record_of(job)

    def mark(names: Sequence[str]) -> float | None:
        scores = [score for name in names if (score := record.validation(name)) is not None]
        return statistics.fmean(scores) if len(scores) == len(names) else None

    def failed(names: Sequence[str]) -> bool:
        return any(name in journal and journal[name].event == "failed" for name in names)

    return {
        recipe: RateChoice(
            {rate: mark(names) for rate, names in rates.items()},
            tuple(rate for rate, names in rates.items() if failed(names)),
        )
        for recipe, rates in tried.items()
    }


def at_chosen_rates(job: Job, backbone: str) -> Job | None:
    """Return the job with each method's chosen rate on a backbone; None if a method has no rate (yet).

    Without given rates, methods use the scale's own rates and share their runs with other experiments.
    """
    if len(job.rates) < 2:
        return _at(job, backbone, dict.fromkeys(METHODS, job.rates[0])) if job.rates else job
    rates = {method: choice.rate for method, choice in choices(job, backbone).items()}
    known = {method: rate for method, rate in rates.items() if rate is not None}
    return _at(job, backbone, known) if len(known) == len(rates) else None


def _at(job: Job, backbone: str, rates: Mapping[str, float]) -> Job:
    return replace(job, scale=job.scale.at_rates(backbone, rates))


def stages(job: Job) -> Iterator[Stage]:
    """Yield the study's stages in order; reads the disk lazily, as rates are chosen on the way."""
    searched: set[str] = set()
    scorings: dict[Run, tuple[Scoring, ...]] = {}  # all parts score a run at once, so that its weights can be deleted
    for part, backbone in stage_order(job):
        for run, wanted in trials(job, part, backbone).items():
            scorings[run] = tuple(dict.fromkeys((*scorings.get(run, ()), *wanted)))
    for part, backbone in stage_order(job):
        if backbone not in searched:
            searched.add(backbone)
            if tried := tuple(search(job, backbone)):
                yield Stage(SEARCH, backbone, tried)
        at = at_chosen_rates(job, backbone)
        runs = trials(job, part, backbone)
        yield Stage(part, backbone, tuple(Todo(at or job, run, scorings[run], chosen=at is not None) for run in runs))


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
    clock = _Clock(job)
    yield f"{len(plan.runs)} training runs, and those for choosing learning rates"
    for stage in stages(job):
        count = f"{stage.name}, {stage.backbone}: {len(stage.todos)} runs"
        if not stage.ready:
            clock.skip(stage)
            yield f"{count} at rates that are still to be chosen"
            yield from (f"  [missing] {todo.run.name}{clock.after(todo)}" for todo in stage.todos)
            continue
        states = [todo.state(last) for todo in stage.todos]
        refused += sum(state.startswith(OTHER_OPTIONS) for state in states)
        yield f"{count}, of which {states.count('finished')} are finished"
        yield from (
            f"  [{state}] {todo.name}{clock.after(todo) if state == 'missing' else ''}"
            for todo, state in zip(stage.todos, states, strict=True)
        )
    if refused:
        yield f"{refused} runs were made with other options, which the command refuses. Choose another --out."
    else:
        yield from missing(job)
        yield from needs(job, plan.runs, keeps_weights=job.keep is None)


def missing(job: Job) -> Iterator[str]:
    """Describe what is missing by stage, with estimated times; a run counts in the first stage that needs it."""
    last, clock = journal_of(job).last(), _Clock(job)
    counted = clock.counted
    for stage in stages(job):
        left = [todo for todo in stage.todos if not todo.done]
        failed = [todo for todo in left if todo.failure(last) is not None]
        if not stage.ready:
            clock.skip(stage)
        tried = left if job.retry else [todo for todo in left if todo not in failed]
        counted.update(todo.name for todo in left if todo not in tried)
        seconds = sum(map(clock.seconds, tried))
        if left:
            again = f", {len(failed)} of which failed (--retry tries them again)" if failed else ""
            count = f"{len(left)} of {len(stage.todos)} runs"
            yield f"missing: {count} of {stage.name}, {stage.backbone}{again}{_about(seconds)}"
    yield f"all that is missing{_about(clock.total)}" if counted else "nothing is missing"


class _Clock:
    """Adds up the estimated seconds of work, each run and scoring once; all are 0 if they can't be estimated."""

    def __init__(self, job: Job) -> None:
        self.job, self.total = job, 0.0
        self.costs = Costs(job, journal_of(job).slowness()) if can_estimate(job) else None
        self.counted: set[str] = set()

    def skip(self, stage: Stage) -> None:
        """Don't count the stage's runs that are trained for the choice of rates."""
        chosen_from = set(_choosing_runs(self.job, stage.backbone))
        self.counted.update(todo.name for todo in stage.todos if todo.run in chosen_from)

    def seconds(self, todo: Todo) -> float:
        """Return the estimated seconds of what is missing and not counted yet."""
        new = [name for name in (todo.name, *map(todo.scoring_name, todo.unscored)) if name not in self.counted]
        self.counted.update(new)
        if self.costs is None:
            return 0.0
        train = self.costs.run(todo.run) if todo.name in new and not todo.trained else 0.0
        scored = sum(self.costs.scoring(each) for each in todo.unscored if todo.scoring_name(each) in new)
        self.total += train + scored
        return train + scored

    def after(self, todo: Todo) -> str:
        """Describe how long the run takes, and how long all takes up to and including it."""
        seconds = self.seconds(todo)
        return f": {seconds / 3600:.2f} hours, {self.total / 3600:.1f} with all above" if seconds else ""


def _about(seconds: float) -> str:
    return f": about {seconds / 3600:.2g} hours of one process" if seconds else ""
