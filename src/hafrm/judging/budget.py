"""Limit a run's spending in requests, tokens and money. Threads, and the runs of one command, may share a budget."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafrm.errors import ConfigError, first_line
from hafrm.judging.options import JudgeOptions

_PER = 1_000_000  # vendors quote prices per million tokens


@dataclass(frozen=True)
class Prices:
    """Cost per million tokens, in the currency of the prices file."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of the given numbers of tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _PER

    @classmethod
    def load(cls, path: str, model: str) -> Prices:
        """Read a model's prices: `{"MODEL": {"prompt": 2.5, "completion": 10}}`, per million tokens.

        Raises:
            ConfigError: the file can't be read, or has no prices of this model.
        """
        try:
            entry: Any = json.loads(Path(path).read_text(encoding="utf-8"))[model]
            found = cls(float(entry["prompt"]), float(entry["completion"]))
        except KeyError as error:
            raise ConfigError(f"judge.prices: {path} has no {error} for {model}. {_FORM}") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"judge.prices: {path} can't be read ({first_line(error)}). {_FORM}") from error
        if not all(math.isfinite(price) and price >= 0 for price in (found.prompt, found.completion)):
            raise ConfigError(f"judge.prices: the prices of {model} in {path} must be numbers of at least 0. {_FORM}")
        return found


_FORM = 'Write {"MODEL": {"prompt": 2.5, "completion": 10}}: what a million tokens cost.'


class Budget:
    """Counts spending and decides when to stop.

    A request is allowed as long as no limit is reached, so tokens and money can exceed theirs by the requests in
    flight. Retries count as requests.
    """

    def __init__(
        self,
        *,
        requests: int | None = None,
        tokens: int | None = None,
        money: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        if money is not None and prices is None:
            raise ConfigError("judge.max_cost needs `judge.prices`, a file that says what tokens cost.")
        self.requests, self.tokens = 0, 0
        self.spent = 0.0
        self._limits = (requests, tokens, money)
        self._prices, self._lock = prices, threading.Lock()

    @classmethod
    def of(cls, options: JudgeOptions) -> Budget:
        """Create the budget that a judge's options allow.

        Raises:
            ConfigError: the prices can't be read, or are missing although the cost is limited.
        """
        prices = Prices.load(options.prices, options.model) if options.prices else None
        return cls(requests=options.max_requests, tokens=options.max_tokens, money=options.max_cost, prices=prices)

    @property
    def cost(self) -> float | None:
        """Return the money spent; None if no prices are known."""
        return self.spent if self._prices is not None else None

    def take_request(self) -> str | None:
        """Count a request that is about to be sent, or return the limit that forbids it, in words."""
        with self._lock:
            names = ("requests", "tokens", "of cost")
            for name, spent, limit in zip(names, (self.requests, self.tokens, self.spent), self._limits, strict=True):
                if limit is not None and spent >= limit:
                    return f"the budget of {limit:g} {name} is spent"
            self.requests += 1
        return None

    def add_tokens(self, prompt: int, completion: int) -> None:
        """Count the tokens of a reply and its prompt."""
        with self._lock:
            self.tokens += prompt + completion
            if self._prices is not None:
                self.spent += self._prices.of(prompt, completion)
