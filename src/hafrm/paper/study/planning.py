"""The study as an ordered list of work, with what is done and how long the rest will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hafrm.errors import ConfigError
from hafrm.evaluation.scoring import RESULTS_FILE
from hafrm.paper.plans import Job, Plan
from hafrm.paper.runs import OTHER_OPTIONS, Run, shown_state
from hafrm.paper.study.costs import Costs, is_local
from hafrm.paper.study.journal import JOURNAL_FILE, Entry, Journal
from hafrm.paper.study.rates import at_chosen_rates, search
from hafrm.paper.study.trials import Scoring, choosing_job, stage_order, trials
from hafrm.training.manifest import is_finished

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
        return self.run.folder(self.job.scale, self.job.out)

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
        return tuple(
            each for each in self.scorings if not (self.chosen and (self.scores(each) / RESULTS_FILE).exists())
        )

    @property
    def done(self) -> bool:
        """Whether the run and all its scorings are finished."""
        return self.trained and not self.unscored

    def scores(self, scoring: Scoring) -> Path:
        """Return the folder of a scoring."""
        return scoring.folder(self.job.scale, self.job.out)

    def scoring_name(self, scoring: Scoring) -> str:
        """Return a scoring's name in the journal."""
        return f"scores of {self.scores(scoring).relative_to(study_folder(self.job) / 'scores')}"

    def failure(self, journal: Mapping[str, Entry]) -> Entry | None:
        """Return the entry of the latest failure that prevents completion, or None."""
        if not self.chosen:
            return None
        names = [*([] if self.trained else [self.name]), *map(self.scoring_name, self.unscored)]
        return next((journal[name] for name in names if name in journal and journal[name].event == "failed"), None)


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


def study_folder(job: Job) -> Path:
    """Return the folder of the study's own files."""
    return job.root / "study"


def journal_of(job: Job) -> Journal:
    """Return the study's journal."""
    return Journal(study_folder(job) / JOURNAL_FILE)


def plan(job: Job) -> Plan:
    """Return every run of the study once; their learning rates are known only after some have run.

    Raises:
        ConfigError: there are no runs, because the requested parts need other sets.
    """
    found = Plan(())
    for part, backbone in stage_order(job):
        found += Plan(tuple(trials(job, part, backbone)))
    if not found.runs:
        raise ConfigError(
            f"parts: on {', '.join(job.sets)} alone there is nothing to do for {', '.join(job.study.parts)}. A mixture "
            "takes two sets, and out of domain a second one of the same category. Name more sets."
        )
    return found


def stages(job: Job) -> Iterator[Stage]:
    """Yield the study's stages in order, each backbone's starting with the choice of rates; reads the disk lazily."""
    searched: set[str] = set()
    for part, backbone in stage_order(job):
        if backbone not in searched:
            searched.add(backbone)
            if tried := tuple(Todo(at, run) for at, run in search(job, backbone)):
                yield Stage(SEARCH, backbone, tried)
        at = at_chosen_rates(job, backbone, journal_of(job).last())
        found = trials(job, part, backbone).items()
        todos = tuple(Todo(at or job, run, scorings, chosen=at is not None) for run, scorings in found)
        yield Stage(part, backbone, todos)


def described(job: Job, plan: Plan) -> Iterator[str]:
    """Describe the study line by line: each stage with its runs and their states, and the remaining time."""
    last, refused = journal_of(job).last(), 0
    yield f"{len(plan.runs)} training runs, and those that choose learning rates"
    for stage in stages(job):
        count = f"{stage.name}, {stage.backbone}: {len(stage.todos)} runs"
        if not stage.ready:
            yield f"{count} at rates that are still to be chosen"
            yield from (f"  [missing] {todo.run.name}" for todo in stage.todos)
            continue
        states = [_state(todo, last) for todo in stage.todos]
        refused += sum(state.startswith(OTHER_OPTIONS) for state in states)
        yield f"{count}, of which {states.count('finished')} are finished"
        yield from (f"  [{state}] {todo.name}" for todo, state in zip(stage.todos, states, strict=True))
    if refused:
        yield f"{refused} runs were made with other options, which the command refuses. Choose another --out."
    else:
        yield from missing(job)


def _state(todo: Todo, journal: Mapping[str, Entry]) -> str:
    """Return the state of a run and its scorings, as shown in the plan."""
    state = shown_state(todo.job.scale, todo.run, todo.job.out)
    if state.startswith(OTHER_OPTIONS):
        return state
    if todo.done:
        return "finished"
    failure = todo.failure(journal)
    return f"failed: {failure.reason}" if failure else "missing"


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
            counted.update(
                todo.name for todo in left if todo.run in trials(choosing_job(job), "table2", stage.backbone)
            )
        tried = left if job.study.retry else [todo for todo in left if todo not in failed]
        counted.update(todo.name for todo in left if todo not in tried)
        seconds = sum(_seconds(todo, costs, counted) for todo in tried)
        total += seconds
        if left:
            told = f", {len(failed)} of which failed (--retry tries them again)" if failed else ""
            count = f"{len(left)} of {len(stage.todos)} runs"
            yield f"missing: {count} of {stage.name}, {stage.backbone}{told}{_about(seconds)}"
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
