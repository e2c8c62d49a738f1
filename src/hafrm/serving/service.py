"""The scoring service that all protocols share: from inputs to rewards, counted for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError
from hafrm.models.scorers import Scorer, TokenScorer
from hafrm.models.sources import stop_tokens
from hafrm.serving.batcher import Batcher, Job
from hafrm.serving.config import ServeConfig
from hafrm.serving.errors import RequestError
from hafrm.serving.reading import OVERLONG, Input, Reader, Reading, pieces

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(2**i for i in range(5, 18))


class Metrics:
    """Counters of a server; clients cannot influence the values of labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("hafrm_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram("hafrm_request_seconds", "Seconds from request to answer", ["path"], registry=registry)
        self.open_requests = Gauge("hafrm_open_requests", "Requests that are read, wait or run", registry=registry)
        self.queue = Gauge("hafrm_queue_requests", "Requests that wait for the model", registry=registry)
        self.tokens = Counter(
            "hafrm_tokens", "Tokens given to the model, shared prompts counted each time", registry=registry
        )
        self.unscored = Counter("hafrm_unscored", "Conversations without a reward", ["reason"], registry=registry)
        self.truncated = Counter("hafrm_truncated", "Conversations whose end was cut off", registry=registry)
        self.special_tokens = Counter(
            "hafrm_special_tokens", "Conversations whose messages contain special tokens", registry=registry
        )
        self.unfinished = Counter(
            "hafrm_unfinished", "Texts that came without a stop token at their end", registry=registry
        )
        self.batch_conversations = Histogram(
            "hafrm_batch_conversations", "Conversations that ran together", buckets=_SIZES, registry=registry
        )
        self.batch_tokens = Histogram(
            "hafrm_batch_tokens", "Tokens that ran together", buckets=_TOKENS, registry=registry
        )

    def batch(self, conversations: int, tokens: int) -> None:
        """Count a batch."""
        self.batch_conversations.observe(conversations)
        self.batch_tokens.observe(tokens)
        self.tokens.inc(tokens)

    def text(self) -> bytes:
        """Return all counters, as Prometheus reads them."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class Outcome:
    """One input's reward, or why it has none."""

    reward: float | None
    reading: Reading


LARGE = 2**16
"""Size of a body, in characters, above which it is read on a separate thread, so that small ones need not wait."""

_T = TypeVar("_T")
_large: ContextVar[bool] = ContextVar("large", default=False)


class _Lane(ThreadPoolExecutor):
    """A thread that reads requests, with its own tokenizer, because tokenizers are not thread-safe."""

    def __init__(self, name: str, reader: Reader) -> None:
        super().__init__(1, thread_name_prefix=f"hafrm-{name}")
        self.reader = reader


class RewardService:
    """A scorer with a batcher, and two threads that read requests: one for small requests, which never wait for large
    ones, and one for large requests, which take turns piece by piece.

    Raises:
        ConfigError: the scorer's model does not run in this process.
    """

    def __init__(self, scorer: Scorer, config: ServeConfig) -> None:
        if not isinstance(scorer, TokenScorer):
            raise ConfigError(f"{config.model} is a server, which can't be served again. Give a folder or a hub id.")
        self.scorer, self.config, self.name = scorer, config, config.name
        self.metrics = Metrics()
        self.batcher = Batcher(
            scorer.score_tokens,
            tokens_per_batch=scorer.options.tokens_per_batch,
            batch_requests=config.batch_requests,
            observe=self.metrics.batch,
        )
        self.metrics.queue.set_function(lambda: self.batcher.waiting)
        layout = getattr(scorer, "layout", None)
        self._job = partial(Job, share_prompts=layout is not None and layout.packed)
        reader = Reader(scorer.encoder, stop_tokens(config.model))
        self._small, self._large = _Lane("small", reader), _Lane("large", reader.copy())

    def try_out(self) -> None:
        """Score a text, to find out before the first request whether the model works.

        Raises:
            ModelError: its reward is not finite.
        """
        ids = self.scorer.encoder.text_ids(["How are you? Fine, thank you."])[0][: self.scorer.encoder.max_length]
        if len(ids) > 1:
            self.scorer.score_tokens([TokenGroup((ids[0],), (tuple(ids[1:]),))])

    async def aside(self, function: Callable[[], _T], *, size: int | None = None) -> _T:
        """Call a function on the request's thread, outside the event loop.

        Args:
            function: The function.
            size: Length of the request's body; only needed in the request's first call, which selects the thread.
        """
        if size is not None:
            _large.set(size > LARGE)
        return await asyncio.get_running_loop().run_in_executor(self._lane, function)

    @property
    def _lane(self) -> _Lane:
        return self._large if _large.get() else self._small

    async def outcomes(self, make: Callable[[], Sequence[Input]]) -> list[Outcome]:
        """Score a request's inputs, in order.

        Args:
            make: Returns the inputs; called outside the event loop.

        Raises:
            RequestError: there are too many, or the score depends on where a response begins, which is unknown.
        """
        inputs = await self.aside(make)
        most = self.config.max_conversations
        if len(inputs) > most:
            raise RequestError(
                400, "too_many", f"{len(inputs)} conversations in one request; at most {most} are allowed."
            )
        cut = await self.aside(lambda: list(pieces(inputs, LARGE)))
        read = self._lane.reader.read
        readings = [reading for piece in cut for reading in await self.aside(partial(read, piece))]
        if self.scorer.reads_responses and not all(reading.bordered for reading in readings):
            raise RequestError(
                400,
                "needs_messages",
                "This model's score depends on where the response begins, which a rendered text does not show. "
                "Send messages, or the prompts that the texts begin with.",
            )
        groups = [reading.group for reading in readings if reading.group is not None]
        rewards: Iterator[float] = iter(())
        if groups:
            job = await self.aside(partial(self._job, groups))
            found = await asyncio.wrap_future(self.batcher.submit(job))
            rewards = iter(found)
        for reading in readings:
            if reading.unscored:
                self.metrics.unscored.labels(reading.unscored).inc()
            self.metrics.truncated.inc(reading.truncated)
            self.metrics.unfinished.inc(reading.unfinished)
            self.metrics.special_tokens.inc(reading.special_tokens)
        return [Outcome(next(rewards) if reading.group else None, reading) for reading in readings]

    def bare_response(self, text: str) -> str:
        """Return a response's text without the stop token that ended its generation."""
        return self._small.reader.bare_response(text)

    async def scored(self, make: Callable[[], Sequence[Input]]) -> list[tuple[float, Reading]]:
        """Score inputs like `outcomes`, for a protocol without missing rewards.

        Raises:
            RequestError: an input has no reward; says which and why.
        """
        found = []
        for i, outcome in enumerate(await self.outcomes(make)):
            if outcome.reward is None:
                raise self._no_reward(i, outcome.reading)
            found.append((outcome.reward, outcome.reading))
        return found

    def _no_reward(self, number: int, reading: Reading) -> RequestError:
        encoder = self.scorer.encoder
        if reading.unscored != OVERLONG:
            why = f"{reading.unscored}: {reading.fault}" if reading.fault else f"{reading.unscored}."
            return RequestError(400, reading.unscored or "unscored", f"Input {number} has no reward: {why}")
        remedy = (
            "The prompt alone fills the limit, so truncation would leave nothing of the response. Shorten the prompt."
        )
        if encoder.overlong == "drop":
            remedy = "The server truncates over-long inputs if it is started with `--score.overlong truncate`."
        problem = f"{reading.tokens} tokens; the model's limit is {encoder.max_length}"
        return RequestError(400, OVERLONG, f"Input {number} has no reward: {OVERLONG} ({problem}). {remedy}")

    def close(self) -> None:
        """Answer the requests that wait, then stop."""
        for lane in (self._small, self._large):
            lane.shutdown()
        self.batcher.close()
