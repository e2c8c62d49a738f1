"""The scoring service that all protocols share: from inputs to a model's rewards, counted for Prometheus."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError, ModelError
from hafrm.models.remote import OVERLONG
from hafrm.models.scorers import POLICY_HEAD, HybridScorer, Scorer, TokenScorer, TokenTerms
from hafrm.models.sources import stop_tokens
from hafrm.models.tokens import TokenRewards
from hafrm.pairs import Conversation
from hafrm.serving.batcher import Batcher, Job
from hafrm.serving.config import ServeConfig
from hafrm.serving.errors import RequestError
from hafrm.serving.reading import Input, Reader, Reading, pieces
from hafrm.serving.sharing import regrouped

_AT_ONCE = 32
"""Conversations whose token rewards are computed before other requests have their turn."""
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
    divided: TokenRewards | None = None
    """The reward divided among the response's tokens, if that is wanted."""


class ServedModel:
    """A scorer with its name, the batcher that runs it, and its readers.

    Its `source` is a folder or a hub id. Raises ConfigError if the scorer's model does not run in this process.
    """

    def __init__(self, name: str, source: str, scorer: Scorer, config: ServeConfig, metrics: Metrics) -> None:
        if not isinstance(scorer, TokenScorer):
            raise ConfigError(f"{source} is a server, which can't be served again. Give a folder or a hub id.")
        self.name, self.scorer = name, scorer
        self._running = threading.Lock()
        layout = getattr(scorer, "layout", None)
        self._shares = layout is not None and layout.packed
        self.batcher = Batcher(
            self._score,
            tokens_per_batch=scorer.options.tokens_per_batch,
            batch_requests=config.batch_requests,
            wait=config.batch_wait,
            share_prompts=self._shares,
            observe=metrics.batch,
        )
        reader = Reader(scorer.encoder, stop_tokens(source))
        self.readers = {"small": reader, "large": reader.copy()}
        self.bare_response = reader.frame.without_stop

    @property
    def max_length(self) -> int:
        """Maximum tokens of a conversation."""
        return self.scorer.encoder.max_length

    def try_out(self) -> None:
        """Score a text, to raise ModelError before the first request if the reward is not finite."""
        ids = self.scorer.encoder.text_ids(["How are you? Fine, thank you."])[0][: self.max_length]
        if len(ids) > 1:
            self.scorer.score_tokens([TokenGroup((ids[0],), (tuple(ids[1:]),))])

    def _score(self, groups: Sequence[TokenGroup]) -> list[float]:
        """Score groups; encode a beginning that several have in common only once, if this changes no reward."""
        if self._shares and not self.scorer.reads_responses:
            groups = regrouped(groups)
        with self._running:
            return self.scorer.score_tokens(groups)

    def token_terms(self, groups: Sequence[TokenGroup]) -> list[TokenTerms]:
        """Compute what the tokens add to rewards, between the batches of other requests; see `dividing`."""
        scorer = self.dividing
        found: list[TokenTerms] = []
        for start in range(0, len(groups), _AT_ONCE):
            part = dict(enumerate(groups[start : start + _AT_ONCE]))
            with self._running:
                terms = scorer.token_terms(part)
            found += [terms[place] for place in part]
        return found

    @property
    def dividing(self) -> HybridScorer:
        """The scorer; RequestError is raised if it can't divide rewards among tokens."""
        try:
            if isinstance(self.scorer, HybridScorer):
                self.scorer.require_divisible()
                return self.scorer
            raise ModelError(f"{self.name} gives whole rewards only. Rewards of tokens need {POLICY_HEAD}.")
        except ModelError as error:
            raise RequestError(400, "unsupported", str(error)) from error


@dataclass(frozen=True)
class Scored:
    """The outcomes of a request, one per input, in order."""

    model: ServedModel
    outcomes: list[Outcome]

    @property
    def rewards(self) -> list[float]:
        """The rewards, for protocols in which none may be missing; RequestError says which is missing and why."""
        for i, outcome in enumerate(self.outcomes):
            if outcome.reward is None:
                raise self._no_reward(i, outcome.reading)
        return [outcome.reward for outcome in self.outcomes if outcome.reward is not None]

    @property
    def tokens(self) -> int:
        """Tokens of all inputs, before truncation."""
        return sum(outcome.reading.tokens for outcome in self.outcomes)

    def _no_reward(self, number: int, reading: Reading) -> RequestError:
        if reading.unscored != OVERLONG:
            why = f"{reading.unscored}: {reading.fault}" if reading.fault else f"{reading.unscored}."
            return RequestError(400, reading.unscored or "unscored", f"Input {number} has no reward: {why}")
        remedy = (
            "The prompt alone fills the limit, so truncation would leave nothing of the response. Shorten the prompt."
        )
        if reading.dropped:
            remedy = "The server truncates over-long inputs if it is started with `--score.overlong truncate`."
        problem = f"{reading.tokens} tokens; the model's limit is {self.model.max_length}"
        return RequestError(400, OVERLONG, f"Input {number} has no reward: {OVERLONG} ({problem}). {remedy}")


LARGE = 2**16
"""Size of a body, in characters, above which it is read on a separate thread, so that small ones need not wait."""

_T = TypeVar("_T")
_lane: ContextVar[str] = ContextVar("lane", default="small")


class RewardService:
    """Models with their batchers, and two threads that read requests: one for small requests, which never wait for
    large ones, and one for large requests, which take turns piece by piece. Each has its own tokenizers, because
    tokenizers are not thread-safe.

    Args:
        scorers: The models by their names, as in the config's `sources`.
        config: The server's options.

    Raises:
        ConfigError: a model does not run in this process.
    """

    def __init__(self, scorers: Mapping[str, Scorer], config: ServeConfig) -> None:
        self.config, self.metrics = config, Metrics()
        self.models = {
            name: ServedModel(name, source, scorers[name], config, self.metrics)
            for name, source in config.sources.items()
        }
        self.metrics.queue.set_function(lambda: sum(model.batcher.waiting for model in self.models.values()))
        self._lanes = {name: ThreadPoolExecutor(1, f"hafrm-{name}") for name in ("small", "large")}

    @property
    def ready(self) -> bool:
        """Whether requests can be scored by every model."""
        return all(model.batcher.ready for model in self.models.values())

    def model(self, name: str | None, *, path: str | None = None) -> ServedModel:
        """Return the model of a request by its name.

        A server with one model accepts any name: trainers send their own path, or a fixed word. So does a path that
        begins with a model's name.

        Args:
            name: The name in the request's body.
            path: The name with which the request's path begins.

        Raises:
            RequestError: there are several models, and the name is missing or unknown, or the path names another one.
        """
        if path is not None:
            if name in self.models and name != path:
                problem = f"The path names the model {path}, but the field `model` names {name}. Name one of them."
                raise RequestError(400, "ambiguous", problem)
            return self.models[path]
        first, *others = self.models.values()
        if not others:
            return first
        if name in self.models:
            return self.models[name]
        known = ", ".join(self.models)
        raise RequestError(
            404 if name else 400,
            "unknown_model",
            f"Name one of the models: {known}. Send the name as `model`, or begin the path with it: /NAME/v1/rewards.",
        )

    async def aside(self, function: Callable[[], _T], *, size: int | None = None) -> _T:
        """Call a function on the request's thread, outside the event loop.

        Args:
            function: The function.
            size: Length of the request's body; only needed in the request's first call, which selects the thread.
        """
        if size is not None:
            _lane.set("large" if size > LARGE else "small")
        return await asyncio.get_running_loop().run_in_executor(self._lanes[_lane.get()], function)

    async def read(self, model: ServedModel, function: Callable[[Reader], _T]) -> _T:
        """Call a function with the reader of the request's thread, on that thread."""
        return await self.aside(partial(function, model.readers[_lane.get()]))

    async def score(
        self,
        model: ServedModel,
        make: Callable[[], Sequence[Input]],
        *,
        limit: int | None = None,
        divides: bool = False,
    ) -> Scored:
        """Score a request's inputs, in order.

        Args:
            model: The model.
            make: Returns the inputs; called outside the event loop.
            limit: Truncate conversations to this number of tokens, -1 for the model's limit; None: the server's rule.
            divides: Whether rewards are divided among tokens; the inputs are conversations.

        Raises:
            RequestError: there are too many inputs, the limit is not one, rewards can't be divided, or the score
                depends on where a response begins, which is unknown.
        """
        if divides:
            _ = model.dividing  # before anything is read
        inputs = await self.aside(make)
        most = self.config.max_conversations
        if len(inputs) > most:
            raise RequestError(
                400, "too_many", f"{len(inputs)} conversations in one request; at most {most} are allowed."
            )
        cut = await self.aside(lambda: list(pieces(inputs, LARGE)))
        limit = None if limit is None else _checked(limit, model.max_length)
        readings = [
            reading for piece in cut for reading in await self.read(model, partial(_read, piece=piece, limit=limit))
        ]
        if model.scorer.reads_responses and not all(reading.bordered for reading in readings):
            raise RequestError(
                400,
                "needs_messages",
                "This model's score depends on where the response begins, which a rendered text does not show. "
                "Send messages, or the prompts that the texts begin with.",
            )
        groups = [reading.group for reading in readings if reading.group is not None]
        if divides:
            return await self._divided(model, inputs, readings, groups)
        rewards: Iterator[float] = iter(())
        if groups:
            job = await self.aside(partial(Job, groups))
            found = await asyncio.wrap_future(model.batcher.submit(job))
            rewards = iter(found)
        self._count(readings)
        return Scored(model, [Outcome(next(rewards) if reading.group else None, reading) for reading in readings])

    async def _divided(
        self, model: ServedModel, inputs: Sequence[Input], readings: Sequence[Reading], groups: Sequence[TokenGroup]
    ) -> Scored:
        terms = iter(await asyncio.to_thread(model.token_terms, groups))

        def outcomes(reader: Reader) -> Iterator[Outcome]:
            for talk, reading in zip(inputs, readings, strict=True):
                if reading.group is None or not isinstance(talk, Conversation):
                    yield Outcome(None, reading)
                    continue
                found = model.dividing.divided(next(terms), talk, reader.encoder.tokenizer)
                yield Outcome(found.reward, reading, found)

        self._count(readings)
        return Scored(model, await self.read(model, lambda reader: list(outcomes(reader))))

    def _count(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            if reading.unscored:
                self.metrics.unscored.labels(reading.unscored).inc()
            self.metrics.truncated.inc(reading.truncated)
            self.metrics.unfinished.inc(reading.unfinished)
            self.metrics.special_tokens.inc(reading.special_tokens)

    def close(self) -> None:
        """Answer the requests that wait, then stop."""
        for lane in self._lanes.values():
            lane.shutdown()
        for model in self.models.values():
            model.batcher.close()


def _read(reader: Reader, piece: Sequence[Input], limit: int | None) -> list[Reading]:
    return (reader if limit is None else reader.truncating(limit)).read(piece)


def _checked(limit: int, most: int) -> int:
    """Return a request's limit in tokens; raise RequestError if it is over the model's or leaves no response."""
    if limit == -1:
        return most
    if not 2 <= limit <= most:
        raise RequestError(
            400, "unsupported", f"`truncate_prompt_tokens` must be -1, for the model's limit, or 2 to {most}."
        )
    return limit
