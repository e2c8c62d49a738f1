"""What all protocols share: inputs in, outcomes out. Knows no protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError
from hafrm.models.scorers import Scorer, TokenScorer
from hafrm.serving.batcher import Batcher
from hafrm.serving.config import ServeConfig
from hafrm.serving.errors import RequestError
from hafrm.serving.metrics import Metrics
from hafrm.serving.reading import OVERLONG, Input, Reader, Reading

__all__ = ["Outcome", "RewardService"]


@dataclass(frozen=True)
class Outcome:
    """One input's reward, or why it has none."""

    reward: float | None
    reading: Reading


class RewardService:
    """A scorer behind a batcher and a thread that tokenizes.

    Raises:
        ConfigError: the scorer's model does not run in this process.
    """

    def __init__(self, scorer: Scorer, config: ServeConfig) -> None:
        if not isinstance(scorer, TokenScorer):
            raise ConfigError(f"{config.model} can't be served: its model runs elsewhere. Give a folder or a hub id.")
        self.scorer, self.config, self.name = scorer, config, config.name
        self.metrics = Metrics()
        self.batcher = Batcher(
            scorer.score_tokens,
            tokens_per_batch=scorer.options.tokens_per_batch,
            batch_requests=config.batch_requests,
            observe=self.metrics.batch,
        )
        self.metrics.queue.set_function(lambda: self.batcher.waiting)
        self._reader = Reader(scorer.encoder)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="hafrm-reader")

    async def outcomes(self, inputs: Sequence[Input]) -> list[Outcome]:
        """Score a request's inputs, in order.

        Raises:
            RequestError: there are too many, or the model's score can't be had of rendered text.
        """
        most = self.config.max_conversations
        if len(inputs) > most:
            raise RequestError(400, "too_many", f"{len(inputs)} conversations in one request; the most is {most}.")
        readings = await asyncio.get_running_loop().run_in_executor(self._reading, self._reader.read, inputs)
        if self.scorer.reads_responses and not all(reading.bordered for reading in readings):
            raise RequestError(
                400,
                "needs_messages",
                "This model's score depends on where the response begins, which a rendered text does not show. "
                "Send messages, or the prompts that the texts begin with.",
            )
        groups = [reading.group for reading in readings if reading.group is not None]
        rewards = iter(await self._rewards(groups))
        for reading in readings:
            if reading.unscored:
                self.metrics.unscored.labels(reading.unscored).inc()
            self.metrics.truncated.inc(reading.truncated)
            self.metrics.unfinished.inc(reading.unfinished)
        return [Outcome(next(rewards) if reading.group else None, reading) for reading in readings]

    def bare_response(self, text: str) -> str:
        """A response's text without the stop token at which its generation ended."""
        return self._reader.bare_response(text)

    async def _rewards(self, groups: Sequence[TokenGroup]) -> list[float]:
        return await asyncio.wrap_future(self.batcher.submit(groups)) if groups else []

    async def scored(self, inputs: Sequence[Input]) -> list[tuple[float, Reading]]:
        """Score inputs for a protocol that knows no missing reward.

        Raises:
            RequestError: an input has no reward; says which and why.
        """
        found = []
        for i, outcome in enumerate(await self.outcomes(inputs)):
            if outcome.reward is None:
                raise self._no_reward(i, outcome.reading)
            found.append((outcome.reward, outcome.reading))
        return found

    def _no_reward(self, number: int, reading: Reading) -> RequestError:
        encoder = self.scorer.encoder
        remedy = ""
        if reading.unscored == OVERLONG and encoder.overlong == "drop":
            remedy = " Over-long inputs are cut if the server is started with `--score.overlong truncate`."
        elif reading.unscored == OVERLONG:
            remedy = " The prompt alone fills the limit, so that no cut leaves any of the response: shorten the prompt."
        return RequestError(
            400,
            reading.unscored or "unscored",
            f"Input {number} has no reward: {reading.unscored} ({reading.tokens} tokens; the model's limit is "
            f"{encoder.max_length}).{remedy}",
        )

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._reading.shutdown()
        self.batcher.close()
