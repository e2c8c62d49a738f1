"""Batches across requests: one thread runs the model, and requests that arrive while it is busy run together.

Works on token groups and a function that scores them, independent of protocols and event loops. If the model is idle, a
request runs at once, or after a set time in which others can join it; under load batches form by themselves, and a
request that has waited longer than this time delays none. Requests take turns: one with more
tokens than fit into a batch is split, and others run between its parts. The caller limits how many requests can wait.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from hafrm.encoding import TokenGroup

Score = Callable[[Sequence[TokenGroup]], list[float]]


class ClosedError(Exception):
    """The batcher no longer accepts requests."""


class Job:
    """One request's sequences, the progress of their scoring, and the future of their rewards.

    There is at least one sequence. Creating a job with many takes time; submitting it does not.
    """

    def __init__(self, groups: Sequence[TokenGroup]) -> None:
        self.groups = groups
        self.future: Future[list[float]] = Future()
        self.tokens = sum(group.unique_tokens for group in groups)
        self.arrival = 0.0
        self._rewards: dict[int, float] = {}
        prompts: dict[tuple[int, ...], int] = {}
        self._prompts = [prompts.setdefault(group.prompt, place) for place, group in enumerate(groups)]
        # Put sequences of one prompt next to each other to share it within a part, and similar lengths to reduce
        # padding.
        self._rest = deque(sorted(range(len(groups)), key=self._order))

    @property
    def waits(self) -> bool:
        """Whether there is more to score for a client that is still connected."""
        return bool(self._rest) and not self.future.cancelled()

    def _order(self, place: int) -> tuple[int, int, int]:
        group = self.groups[place]
        return len(group.prompt), self._prompts[place], group.unique_tokens

    def take(self, share: int, most: float, prompts: set[tuple[int, ...]] | None = None) -> tuple[Part, int]:
        """Take the next sequences and return them with their number of tokens.

        Args:
            share: Maximum tokens of all sequences together.
            most: Maximum tokens of the first sequence, which may exceed `share`.
            prompts: Prompts that the batch contains, whose tokens don't count again; those taken are added. None:
                the model encodes a prompt for each of its sequences.
        """
        places: list[int] = []
        taken = 0
        while self._rest:
            group = self.groups[self._rest[0]]
            shared = prompts is not None and group.prompt in prompts
            cost = group.unique_tokens - (len(group.prompt) if shared else 0)
            if taken + cost > (share if places else most):
                break
            if prompts is not None:
                prompts.add(group.prompt)
            places.append(self._rest.popleft())
            taken += cost
        return Part(self, places), taken

    def add(self, rewards: dict[int, float]) -> None:
        """Record rewards by index; deliver them once there are rewards for all sequences."""
        self._rewards |= rewards
        if len(self._rewards) == len(self.groups) and self.future.set_running_or_notify_cancel():
            self.future.set_result([self._rewards[place] for place in range(len(self.groups))])

    def fail(self, error: Exception) -> None:
        """Deliver an error; remaining sequences are not scored."""
        self._rest.clear()
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True)
class Part:
    """Sequences of one request that run together."""

    job: Job
    places: list[int]

    @property
    def groups(self) -> list[TokenGroup]:
        """The token groups of this part of the job."""
        return [self.job.groups[place] for place in self.places]


class Batcher:
    """Scores requests in batches, on its own thread.

    Args:
        score: Returns the reward of each group; only called by the batcher's thread.
        tokens_per_batch: Maximum tokens that run together; a longer sequence runs alone.
        batch_requests: Whether requests may run together.
        wait: Maximum seconds that a request waits for others to join its batch; a full batch does not wait.
        share_prompts: Whether the model encodes a common prompt once for all sequences that run together.
        observe: Called before each batch with its numbers of conversations and tokens.
    """

    def __init__(
        self,
        score: Score,
        *,
        tokens_per_batch: int,
        batch_requests: bool = True,
        wait: float = 0.0,
        share_prompts: bool = False,
        observe: Callable[[int, int], None] = lambda conversations, tokens: None,
    ) -> None:
        self._score, self._observe = score, observe
        self._tokens_per_batch, self._batch_requests = tokens_per_batch, batch_requests
        self._share_prompts, self._wait = share_prompts, wait if batch_requests else 0.0
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hafrm-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that wait for the model."""
        with self._changed:
            return sum(job.waits for job in self._waiting)

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return not self._closing and self._thread.is_alive()

    def submit(self, job: Job) -> Future[list[float]]:
        """Queue a request's sequences and return a future of their rewards, in order; cancelling it drops the rest.

        Raises ClosedError if the batcher is closing.
        """
        with self._changed:
            if not self.ready:
                raise ClosedError
            job.arrival = time.monotonic()
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Stop accepting requests, score those that wait, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while parts := self._next():
            self._observe(
                sum(len(part.places) for part in parts),
                sum(group.unique_tokens for part in parts for group in part.groups),
            )
            self._answer(parts)

    def _next(self) -> list[Part]:
        """Wait for the next parts to run together; return none once the batcher is closed and no request waits."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                self._wait_for_others()
                self._waiting = deque(job for job in self._waiting if job.waits)
                if self._waiting:
                    return self._turns()
                if self._closing:
                    return []

    def _wait_for_others(self) -> None:
        """Wait until the first request has waited long enough, or the waiting ones fill a batch."""
        if self._wait and self._waiting:
            rest = min(job.arrival for job in self._waiting) + self._wait - time.monotonic()
            self._changed.wait_for(
                lambda: self._closing or sum(job.tokens for job in self._waiting) >= self._tokens_per_batch,
                timeout=max(rest, 0),
            )

    def _turns(self) -> list[Part]:
        """Form a batch: an equal share per request, then the remaining room for requests that have more sequences.

        Each batch starts with a different request.
        """
        parts: list[Part] = []
        left = self._tokens_per_batch
        prompts: set[tuple[int, ...]] | None = set() if self._share_prompts else None
        jobs = list(self._waiting)[: None if self._batch_requests else 1]
        for share in (left // len(jobs), left):
            for job in jobs:
                part, taken = job.take(min(share, left), left if parts else math.inf, prompts)
                if part.places:
                    parts.append(part)
                    left -= taken
        self._waiting.rotate(-1)
        return parts

    def _answer(self, parts: Sequence[Part]) -> None:
        """Score parts together; if that fails, score them one by one, so that only the failing one gets the error."""
        try:
            rewards = iter(self._score([group for part in parts for group in part.groups]))
            found = [{place: next(rewards) for place in part.places} for part in parts]
        except Exception as error:
            if len(parts) == 1:
                parts[0].job.fail(error)
                return
            for part in parts:
                self._answer([part])
            return
        for part, values in zip(parts, found, strict=True):
            part.job.add(values)
