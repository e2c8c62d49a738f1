"""Micro-batches across requests: one thread owns the model, and what waits when it is free runs together.

Knows token groups and a function that scores them. Knows no protocol and no event loop. There is no timer: a request
that finds the model idle runs at once, and under load batches form by themselves. How many requests can wait is bounded
by who submits them (`Gate`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from hafrm.encoding import TokenGroup

__all__ = ["Batcher", "ClosedError"]

Score = Callable[[Sequence[TokenGroup]], list[float]]


class ClosedError(Exception):
    """The batcher takes no more work."""


@dataclass(frozen=True, eq=False)
class _Job:
    """One request's sequences and where its rewards go."""

    groups: Sequence[TokenGroup]
    future: Future[list[float]] = field(default_factory=Future)

    @property
    def tokens(self) -> int:
        return sum(group.unique_tokens for group in self.groups)


class Batcher:
    """Scores requests in batches, on a thread of its own.

    Args:
        score: Gives each group its reward; called by the batcher's thread alone.
        tokens_per_batch: The most tokens of requests that run together. A request of more runs by itself.
        batch_requests: Whether requests may run together at all.
        observe: Told of each batch before it runs: its conversations and its tokens.
    """

    def __init__(
        self,
        score: Score,
        *,
        tokens_per_batch: int,
        batch_requests: bool = True,
        observe: Callable[[int, int], None] = lambda conversations, tokens: None,
    ) -> None:
        self._score, self._observe = score, observe
        self._tokens_per_batch = tokens_per_batch if batch_requests else 0
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hafrm-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return len(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether work is taken."""
        return not self._closing and self._thread.is_alive()

    def submit(self, groups: Sequence[TokenGroup]) -> Future[list[float]]:
        """Queue a request's sequences.

        Returns:
            Their rewards, in order, or the error that scoring them raised. Cancelling it takes a waiting request back.

        Raises:
            ClosedError: the batcher is closing.
        """
        job = _Job(groups)
        with self._changed:
            if not self.ready:
                raise ClosedError
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Take no more requests, score those that wait, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._next():
            self._observe(sum(len(job.groups) for job in jobs), sum(job.tokens for job in jobs))
            self._answer(jobs)

    def _next(self) -> list[_Job]:
        """The next requests to run together; none once the batcher is closed and has answered all."""
        jobs: list[_Job] = []
        with self._changed:
            while not jobs:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                tokens = 0
                while self._waiting and (not jobs or tokens + self._waiting[0].tokens <= self._tokens_per_batch):
                    job = self._waiting.popleft()
                    if job.future.set_running_or_notify_cancel():  # not of a client that has gone away
                        jobs.append(job)
                        tokens += job.tokens
        return jobs

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Score requests together; where that fails, one by one, so that only the cause of it has an error."""
        try:
            rewards = iter(self._score([group for job in jobs for group in job.groups]))
            answers = [[next(rewards) for _ in job.groups] for job in jobs]
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
