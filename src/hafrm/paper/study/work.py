"""Do what is missing of the study: train, score, keep the journal, stop in time.

Several processes may work on one study, each started by the same command; a lock assigns each run to one of them. A
failed run is logged with its reason, and the study continues.
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
from hafrm.data import DataOptions, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError, HafrmError, UnwritableError, first_line
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.scoring import SCORES_FILE, score_pairs, write_scores
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import PreferencePair
from hafrm.paper.plans import Job, Plan
from hafrm.paper.runs import Run, data_prints, require_same_options, train_config, train_missing, write_data
from hafrm.paper.study.costs import Costs, is_local
from hafrm.paper.study.planning import SEARCH, Todo, journal_of, missing, stages, study_folder
from hafrm.paper.study.words import fit_words

Say = Callable[[str], None]

WORDS = "words"
"""Model name of the bag-of-words baseline in its scores."""


_DEPENDS_ON = "depends_on.json"
"""File next to the bag-of-words scores with the fingerprints of the pairs they come from."""


def words_file(job: Job, name: str) -> Path:
    """Return the file of a set's bag-of-words scores, named by what they depend on."""
    depends_on = f"{name}{job.scale.cap_suffix}-{job.scale.max_length}tokens"
    return study_folder(job) / "scores" / WORDS / depends_on / SCORES_FILE


def execute(job: Job, plan: Plan, say: Say) -> None:
    """Do what is missing within the time limit, in the study's own order.

    Args:
        job: The reproduction job.
        plan: Result of `plan`.
        say: Called with a progress line before each run, and with a summary of what is missing.

    Raises:
        ConfigError: a run's folder contains a run with other options (raised before any training at the chosen rates),
            or its options can't work.
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
        say(f"the time of {job.study.hours:g} hours is up; the same command resumes")
    for line in missing(job):
        say(line)


def _score_words(job: Job, name: str, say: Say) -> None:
    """Fit the bag-of-words model on the pairs available to the backbones for training, and score the test pairs."""
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
            _fitting(load_pairs(data, split=split).pairs, encoder, config.data_options)
            for data, split in ((config.data, "train"), (config.eval_data, "validation"))
        )
        data = job.scale.sets[name].test
        test = load_pairs(data, split="test").pairs
        path.with_name(_DEPENDS_ON).unlink(missing_ok=True)
        write_scores(score_pairs(fit_words(train, validation), test, model=WORDS, data=data), path)
        atomic.write_json(path.with_name(_DEPENDS_ON), depends_on)


def _fitting(pairs: list[PreferencePair], encoder: ConversationEncoder, options: DataOptions) -> list[PreferencePair]:
    """Return the pairs within the length limit."""
    return [pairs[index] for index in encode_pairs(pairs, encoder, options).kept]


def _test_print(job: Job, name: str) -> str:
    return load_pairs(job.scale.sets[name].test, split="test").reports[0].sha256


def _read_json(path: Path) -> Any:
    """Read a JSON file; return None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock_file(job: Job, name: str) -> Path:
    path = study_folder(job) / "locks" / f"{name.replace('/', '@')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _leftovers(todo: Todo) -> list[Path]:
    """Return the checkpoints of a run, which are not needed once it is finished."""
    return [] if todo.run.keep_checkpoints else list(todo.folder.glob("checkpoint-*"))


class _OutOfTimeError(Exception):
    """Raised if the next run would end after the time limit."""


class _Worker:
    """Works through the study's stages.

    Args:
        job: The reproduction job.
        say: Called with a progress line before each run.
    """

    def __init__(self, job: Job, say: Say) -> None:
        self.job, self.say = job, say
        self.journal = journal_of(job)
        self.known = self.journal.length
        self.start = time.monotonic()
        self.costs = Costs(job) if is_local(job) else None

    def require_same_options(self) -> None:
        """Check all runs with known rates up front: if time runs out, results include runs that were never reached.

        Raises:
            ConfigError: a folder contains a run with other options.
        """
        for stage in stages(self.job):
            for todo in stage.todos if stage.ready else ():
                require_same_options(todo.job.scale, todo.run, todo.job.out)

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
            else:
                held += left
        for todo in held:
            self._do(todo, "what another process held", wait=True)

    def _do(self, todo: Todo, stage: str, *, wait: bool) -> bool:
        """Train and score one run; return False if another process is working on it and `wait` is false.

        Raises:
            ConfigError: the existing run was trained with other options.
        """
        require_same_options(todo.job.scale, todo.run, todo.job.out)
        if todo.done and not _leftovers(todo):
            return True
        if not self.job.study.retry and todo.failure(self.journal.last()):
            return True
        try:
            with FileLock(_lock_file(self.job, todo.name), timeout=-1 if wait else 0):
                if not todo.failure(self.journal.last(since=self.known)):  # unless another process just failed at it
                    self._try(todo, stage)
        except Timeout:
            return False
        return True

    def _try(self, todo: Todo, stage: str) -> None:
        if not todo.trained:
            self._train(todo, stage)
        if todo.trained:
            for checkpoint in _leftovers(todo):  # two checkpoints take three times the model's size
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
        """Log the start and the end of the block; a failure does not end the study.

        Raises:
            _OutOfTimeError: the block would end after the time limit.
            ConfigError, UnwritableError: the cause is not specific to this run and would affect all others.
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
            ends_all = isinstance(error, ConfigError | UnwritableError)  # not the run's fault
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
