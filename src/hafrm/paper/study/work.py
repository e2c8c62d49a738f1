"""Doing what is missing of the study: train, score, keep the journal, stop in time.

Several processes may work on one study, each started by the same command: a run belongs to whoever holds its lock. A
run that fails is written down with its reason, and the study goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hafrm import atomic
from hafrm.data import encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError, HafrmError, UnwritableError, first_line
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.scoring import SCORES_FILE, score_pairs, write_scores
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.plans import Job, Plan
from hafrm.paper.runs import Run, data_prints, require_same_options, train_config, train_missing, write_data
from hafrm.paper.study.costs import Costs, is_local
from hafrm.paper.study.planning import SEARCH, Todo, journal_of, missing, stages, study_folder
from hafrm.paper.study.words import fit_words

__all__ = ["WORDS", "execute", "words_file"]

Say = Callable[[str], None]

WORDS = "words"
"""How the scores of the bag-of-words model call it."""


_DEPENDS_ON = "depends_on.json"
"""Beside the scores of the bag of words: the fingerprints of the pairs that they come from."""


def words_file(job: Job, name: str) -> Path:
    """Where the bag-of-words scores of a set lie, by what they depend on."""
    depends_on = f"{name}{job.scale.cap_suffix}-{job.scale.max_length}tokens"
    return study_folder(job) / "scores" / WORDS / depends_on / SCORES_FILE


def execute(job: Job, plan: Plan, say: Say) -> None:
    """Do what is missing, as far as the time goes, in the study's own order.

    Args:
        job: What was asked for.
        plan: What `plan` gave.
        say: Called with a line before each run, and for what is left.

    Raises:
        ConfigError: a run's folder holds a run with other options (nothing is trained at the rates that are chosen
            then), or its options can't work.
    """
    for name in dict.fromkeys(run.backbone for run in plan.runs):
        say(f"backbone {name}: {job.scale.backbone(name).model()}")
    worker = _Worker(job, say)
    worker.require_same_options()
    for name in job.sets:
        _score_words(job, name, say)
    try:
        worker.work()
    except _OutOfTimeError:
        say(f"the time of {job.study.hours:g} hours is up; the same command goes on")
    for line in missing(job):
        say(line)


def _score_words(job: Job, name: str, say: Say) -> None:
    """Fit the bag-of-words model on the pairs that the backbones can be trained on, and score the test pairs."""
    path = words_file(job, name)
    run = Run(backbone=job.backbones[0], sets=(name,), method="baseline")
    depends_on = {"pairs": list(data_prints(job.scale, run, job.out).values()), "test": _test_print(job, name)}
    with FileLock(_lock_file(job, f"{WORDS}/{path.parent.name}")):
        if path.exists() and _read_json(path.with_name(_DEPENDS_ON)) == depends_on:
            return
        say(f"bag of words: {name}")
        write_data(job.scale, run, job.out)
        config = train_config(job.scale, run, job.out, model="none")
        encoder = ConversationEncoder(load_tokenizer(job.scale.backbone(run.backbone).model()), job.scale.max_length)
        train, validation = (
            encode_pairs(load_pairs(data, split=split).pairs, encoder, config.data_options).pairs
            for data, split in ((config.data, "train"), (config.eval_data, "validation"))
        )
        data = job.scale.sets[name].test
        test = load_pairs(data, split="test").pairs
        path.with_name(_DEPENDS_ON).unlink(missing_ok=True)
        write_scores(score_pairs(fit_words(train, validation), test, model=WORDS, data=data), path)
        atomic.write_json(path.with_name(_DEPENDS_ON), depends_on)


def _test_print(job: Job, name: str) -> str:
    return load_pairs(job.scale.sets[name].test, split="test").reports[0].sha256


def _read_json(path: Path) -> Any:
    """What a file holds; None where it is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock_file(job: Job, name: str) -> Path:
    path = study_folder(job) / "locks" / f"{name.replace('/', '@')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _leftovers(todo: Todo) -> list[Path]:
    """The checkpoints of a run, which a finished one needs no more."""
    return [] if todo.run.keep_checkpoints else list(todo.folder.glob("checkpoint-*"))


class _OutOfTimeError(Exception):
    """The next run would end after the time that was given."""


class _Worker:
    """Works through the study's stages.

    Args:
        job: What was asked for.
        say: Called with a line before each run.
    """

    def __init__(self, job: Job, say: Say) -> None:
        self.job, self.say = job, say
        self.journal = journal_of(job)
        self.known = self.journal.length
        self.start = time.monotonic()
        self.costs = Costs(job) if is_local(job) else None

    def require_same_options(self) -> None:
        """Look at all runs whose rates are known: where the time is up early, the rest is shown as it is found.

        Raises:
            ConfigError: a folder holds a run with other options.
        """
        for stage in stages(self.job):
            for todo in stage.todos if stage.ready else ():
                require_same_options(todo.job.scale, todo.run, todo.job.out)

    def work(self) -> None:
        """Do all that can be done. What other processes hold is waited for only where the next stage needs it.

        Raises:
            ConfigError: a folder holds a run with other options.
            _OutOfTimeError: the time is up.
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
                self.require_same_options()  # of the folders that the choice has named
            else:
                held += left
        for todo in held:
            self._do(todo, "what another process held", wait=True)

    def _do(self, todo: Todo, stage: str, *, wait: bool) -> bool:
        """Train and score one run; False where another process holds it and it is not to be waited for.

        Raises:
            ConfigError: what is there of it was trained with other options.
        """
        require_same_options(todo.job.scale, todo.run, todo.job.out)
        if todo.done and not _leftovers(todo):
            return True
        if not self.job.study.retry and todo.failure(self.journal.last()):
            return True
        try:
            with FileLock(_lock_file(self.job, todo.name), timeout=-1 if wait else 0):
                if not todo.failure(self.journal.last(since=self.known)):  # else another has just tried it in vain
                    self._try(todo, stage)
        except Timeout:
            return False
        return True

    def _try(self, todo: Todo, stage: str) -> None:
        if not todo.trained:
            self._train(todo, stage)
        if todo.trained:
            for checkpoint in _leftovers(todo):  # two of them are thrice the model's size
                shutil.rmtree(checkpoint)
            self._score(todo, stage)

    def _train(self, todo: Todo, stage: str) -> None:
        seconds = self.costs.run(todo.run) if self.costs else 0.0
        with self._told(todo.name, stage, seconds):
            train_missing(todo.job.scale, todo.run, todo.job.out)

    def _score(self, todo: Todo, stage: str) -> None:
        for scoring in todo.unscored:
            seconds = self.costs.scoring(scoring) if self.costs else 0.0
            with self._told(todo.scoring_name(scoring), stage, seconds):
                evaluate(scoring.config(todo.job.scale, todo.job.out))

    @contextmanager
    def _told(self, what: str, stage: str, foretold: float) -> Iterator[None]:
        """Say and write down that something starts, and how it ended; what fails does not end the study.

        Raises:
            _OutOfTimeError: it would end too late.
            ConfigError, UnwritableError: what stands in the way is not the run's own, and would meet all others.
        """
        hours = self.job.study.hours
        if hours is not None and self._spent + foretold * self.journal.slowness() > 3600 * hours:
            raise _OutOfTimeError
        self.say(f"{self._spent / 60:.0f} min, {stage}: {what}")
        self.journal.write(what, "started")
        begun = time.monotonic()
        try:
            yield
        except (HafrmError, RuntimeError, MemoryError) as error:
            seconds = round(time.monotonic() - begun, 2)
            ends_all = isinstance(error, ConfigError | UnwritableError)  # no failure: the run is not at fault
            self.journal.write(what, "stopped" if ends_all else "failed", reason=first_line(error), seconds=seconds)
            if ends_all:
                raise
            self.say(f"failed: {what}: {error}")
        else:
            seconds = round(time.monotonic() - begun, 2)
            self.journal.write(what, "finished", seconds=seconds, foretold=round(foretold, 2))

    @property
    def _spent(self) -> float:
        return time.monotonic() - self.start
