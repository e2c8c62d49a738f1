"""Carry out the unfinished parts of a plan: train, score, and resume where an interrupted command stopped.

An experiment stops at the first failure. The study logs a failed run with its reason and continues, keeps a journal,
and stops in time; several processes may work on it, each started by the same command, and a lock assigns each run to
one of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from filelock import FileLock, Timeout

from hafrm.errors import ConfigError, HafrmError, UnwritableError, first_line
from hafrm.evaluation.scoring import SCORES_FILE, read_scores
from hafrm.paper.costs import QUESTION, Costs, can_estimate
from hafrm.paper.plans import Plan, Scoring
from hafrm.paper.record import journal_of, lock_file, record_of, write_header
from hafrm.paper.references import score_references
from hafrm.paper.resources import needs, require_disk
from hafrm.paper.runs import Policy, Run
from hafrm.paper.samples import unseen
from hafrm.paper.scales import Job
from hafrm.paper.stages import SEARCH, Stage, Todo, at_chosen_rates, missing, stages
from hafrm.training.manifest import read_manifest

Say = Callable[[str], None]


def described(job: Job, plan: Plan) -> Iterator[str]:
    """Describe the plan line by line: what there is to do, with its state and the equivalent command, and its needs."""
    if plan == Plan():
        yield "There is nothing to train: the command itself computes the numbers."
        return
    finished = sum(run.state(job) == "finished" for run in plan.runs)
    kinds: Mapping[str, Sequence[Run | Scoring | Policy]] = {
        f"training runs, of which {finished} are finished": plan.runs,
        "evaluations": plan.scorings,
        "policies": plan.policies,
    }
    for kind, works in kinds.items():
        if works:
            yield f"{len(works)} {kind}:"
        for work in works:
            yield f"  [{work.state(job)}] {work.name}"
            yield f"    {work.command(job)}"
    if plan.commands:
        yield "then:" if plan.runs else "nothing to train; the numbers are those of:"
        yield from (f"    {command}" for command in plan.commands)
    yield from costs_of(job, plan)


def costs_of(job: Job, plan: Plan) -> Iterator[str]:
    """Describe the time, disk and memory of what is not finished, as far as they can be estimated here."""
    if can_estimate(job):
        costs = Costs(job)
        every: tuple[Run | Scoring | Policy, ...] = (*plan.runs, *plan.scorings, *plan.policies)
        works = [work for work in every if work.state(job) != "finished"]
        if seconds := sum(map(costs.seconds, works)):
            yield f"time: about {seconds / 3600:.2g} hours of training and evaluation on {costs.machine}"
        left = [each for each in plan.responses if not any(job.root.glob(each.made))]
        if seconds := sum(map(costs.responses, left)):
            yield f"      about {seconds / 3600:.2g} hours of sampling and scoring responses"
        if questions := sum(map(costs.questions, left)):
            at_once = 1 if job.judge is None else job.judge.concurrency
            hours = QUESTION * questions / at_once / 3600
            rate = f"{questions:,} questions of {QUESTION:g} s, {at_once} at once"
            yield f"      up to {hours:.2g} hours of judging: {rate}"
    yield from needs(job, (*plan.runs, *plan.policies))


def execute(job: Job, plan: Plan, say: Say) -> None:
    """Train and score all that is missing, with a progress line by `say` before each run and scoring.

    Raises:
        ConfigError: a folder contains a run with other options, or the disk is too small; raised before any training.
        HafrmError: a run or a scoring failed.
    """
    require_disk(job, (*plan.runs, *plan.policies))
    for name in plan.backbones:
        if job.in_world:
            say(f"backbone {name}: taken from the cache, or pretrained first (some minutes)")
        job.model(name)
    for run in plan.runs:
        run.require_same(job)
    kinds: Mapping[str, Sequence[Run | Scoring | Policy]] = {
        "run": plan.runs,
        "evaluation": plan.scorings,
        "policy": plan.policies,
    }
    for kind, works in kinds.items():
        for number, work in enumerate(works, 1):
            if work.state(job) != "finished":
                say(f"{kind} {number}/{len(works)}: {work.name}")
            if isinstance(work, Scoring):
                work.make(job, say)
            else:
                work.make(job)


def execute_study(job: Job, plan: Plan, say: Say) -> None:
    """Do the missing work within the time limit, in the order of the stages, with progress lines by `say`.

    Raises:
        ConfigError: a run's folder contains a run with other options (raised before any training at the chosen rates),
            its options can't work, or the disk is too small.
    """
    require_disk(job, plan.runs, keeps_weights=job.keep is None)
    for name in plan.backbones:
        say(f"backbone {name}: {job.model(name)}")
    worker = Worker(job, say)
    worker.require_same_options()
    write_header(job)
    for name in job.sets:
        score_references(job, name, say)
    try:
        worker.work()
    except _OutOfTimeError:
        say(f"the time of {job.hours:g} hours is up; the same command resumes")
    for line in missing(job):
        say(line)


class _OutOfTimeError(Exception):
    """The next run would end after the time limit."""


class Worker:
    """Works through the study's stages, with progress lines by `say`."""

    def __init__(self, job: Job, say: Say) -> None:
        self.job, self.say = job, say
        self.journal = journal_of(job)
        self.known = self.journal.length
        self.start = time.monotonic()
        self.costs = Costs(job) if can_estimate(job) else None

    def require_same_options(self) -> None:
        """Check all runs with known rates up front: if time runs out, results include runs that were never reached.

        Raises:
            ConfigError: a folder contains a run with other options.
        """
        for stage in stages(self.job):
            for todo in stage.todos if stage.ready else ():
                todo.require_same()

    def work(self) -> None:
        """Do all work that is possible; wait for other processes only if the next stage needs their results.

        Raises:
            ConfigError: a folder contains a run with other options.
            _OutOfTimeError: the time limit is reached.
        """
        held: list[Todo] = []
        for stage in stages(self.job):
            if not stage.ready:
                self.say(f"left out: {stage.name}, {stage.backbone}: every learning rate of a method failed")
                continue
            left = [todo for todo in stage.todos if not self._do(todo, f"{stage.name}, {stage.backbone}", wait=False)]
            if stage.name == SEARCH:
                for todo in left:
                    self._do(todo, stage.name, wait=True)
                self.require_same_options()  # now that the choice has determined more folders
                self._drop_other_rates(stage)
            else:
                held += left
        for todo in held:
            self._do(todo, "what another process held", wait=True)

    def _do(self, todo: Todo, stage: str, *, wait: bool) -> bool:
        """Train and score one run; return False if another process is working on it and `wait` is false.

        Raises:
            ConfigError: the existing run was trained with other options.
        """
        todo.require_same()
        if todo.done and not todo.leftovers:
            return True
        if not self.job.retry and todo.failure(self.journal.last()):
            return True
        try:
            with FileLock(lock_file(self.job, todo.name), timeout=-1 if wait else 0):
                if not todo.failure(self.journal.last(since=self.known)):  # another process may just have failed at it
                    self._try(todo, stage)
        except Timeout:
            return False
        return True

    def _try(self, todo: Todo, stage: str) -> None:
        record = record_of(todo.job)
        if not todo.trained:
            with self._logged(todo.name, stage, todo.run):
                manifest = read_manifest(todo.run.make(todo.job)) or {}
                if not todo.recorded:
                    record.add_run(todo.name, todo.run.options(todo.job), manifest)
        if todo.trained:
            for checkpoint in todo.leftovers:  # two checkpoints take three times the model's size
                shutil.rmtree(checkpoint)
            for scoring in todo.unscored:
                with self._logged(todo.scoring_name(scoring), stage, scoring):
                    scores = read_scores(scoring.make(todo.job) / SCORES_FILE)
                    kept = unseen(todo.job.scale, todo.run.sets, scores)
                    record.add_scores(todo.scores_name(scoring), "+".join(scoring.tested_on), scores, kept=kept)
            for folder in todo.leftovers:
                shutil.rmtree(folder)

    def _drop_other_rates(self, search: Stage) -> None:
        """Delete the runs of rates that were not chosen, if the study keeps only results."""
        at = at_chosen_rates(self.job, search.backbone)
        for todo in search.todos if self.job.keep is not None and at is not None else ():
            if at is not None and todo.recorded and todo.folder != todo.run.folder(at):
                shutil.rmtree(todo.folder, ignore_errors=True)

    @contextmanager
    def _logged(self, what: str, stage: str, work: Run | Scoring) -> Iterator[None]:
        """Log the start and the end of the block; a failure does not end the study.

        Raises:
            _OutOfTimeError: the block would end after the time limit.
            ConfigError, UnwritableError: the cause is not specific to this run and would affect all others.
        """
        hours, foretold = self.job.hours, self.costs.seconds(work) if self.costs else 0.0
        if hours is not None and self._spent + foretold * self.journal.slowness() > 3600 * hours:
            raise _OutOfTimeError
        self.say(f"{self._spent / 60:.0f} min, {stage}: {what}")
        self.journal.write(what, "started")
        begun = time.monotonic()
        try:
            yield
        except (HafrmError, RuntimeError, MemoryError) as error:
            seconds = round(time.monotonic() - begun, 2)
            ends_all = isinstance(error, ConfigError | UnwritableError)  # the cause affects all runs
            reason = first_line(error).replace(f"{self.job.root}/", "")
            self.journal.write(what, "stopped" if ends_all else "failed", reason=reason, seconds=seconds)
            if ends_all:
                raise
            self.say(f"failed: {what}: {error}")
        else:
            seconds = round(time.monotonic() - begun, 2)
            self.journal.write(what, "finished", seconds=seconds, foretold=round(foretold, 2))

    @property
    def _spent(self) -> float:
        return time.monotonic() - self.start
