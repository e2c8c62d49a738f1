"""Options of `hafrm judge`, and the budget that limits a run's spending in requests, tokens and money."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hafrm.data import ReadOptions
from hafrm.errors import ConfigError, first_line
from hafrm.http import api_key, split_address
from hafrm.models.options import ScoreOptions, ScorerChoice, require_server_options
from hafrm.models.remote import is_server
from hafrm.options import check, option, refuse_unread

JudgeKind = Literal["openai", "local", "reward", "oracle"]

Mode = Literal["pair", "rank"]

_OPENAI = "https://api.openai.com/v1"
_ENDPOINT = ("openai",)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Choose a judge and how to ask it. All options from `base_url` on apply only to `openai`."""

    kind: JudgeKind
    """`openai`: any endpoint of OpenAI's chat API; `local`: a causal LM in this process, for pairs; `reward`: a reward
    model, the higher reward wins; `oracle`: the true reward of a set of the simulated world.
    """

    model: str
    """The model's name at the endpoint, a folder or hub id, or the name of a set of the world."""

    base_url: str = option(_OPENAI, only=_ENDPOINT)
    """The endpoint's address, up to and including /v1. Replies from different addresses are cached separately."""

    api_key_env: str = option("OPENAI_API_KEY", only=_ENDPOINT)
    """The environment variable with the API key; the key itself is never an option and never written."""

    orders: Literal["both", "one"] = option("both", only=("openai", "local"))
    """Ask about two responses in both orders, where a disagreement is a tie, or once in a random order, as the paper
    does.
    """

    temperature: float | None = option(0.0, least=0, only=_ENDPOINT)
    """Sampling temperature; `null` omits it from requests, for models that don't accept it."""

    max_reply_tokens: int | None = option(256, least=1, only=_ENDPOINT)
    """Maximum tokens of a reply; `null` omits it from requests, for models that don't accept it."""

    concurrency: int = option(4, least=1, only=_ENDPOINT)
    """Number of requests in flight."""

    timeout: float = option(60.0, above=0, only=_ENDPOINT)
    """Seconds to wait for a reply, or for its next part, before a request counts as failed."""

    retries: int = option(5, least=0, only=_ENDPOINT)
    """Number of retries of a failed request, after Retry-After or a growing random wait."""

    max_requests: int | None = option(None, least=0, only=_ENDPOINT)
    """Budget of this run: requests, including retries. The next run continues where the budget ended this one."""

    max_tokens: int | None = option(None, least=0, only=_ENDPOINT)
    """Budget of this run: tokens of prompts and replies."""

    max_cost: float | None = option(None, least=0, only=_ENDPOINT)
    """Budget of this run: money, by `prices`."""

    prices: str | None = option(None, only=_ENDPOINT)
    """A JSON file with the cost per million tokens: {"MODEL": {"prompt": 2.5, "completion": 10}}."""

    cache: str | None = option(None, only=_ENDPOINT)
    """File of cached replies; default: one in hafrm's cache folder for all runs. Cached questions are not asked again.
    """

    def __post_init__(self) -> None:
        check(self, "judge.")
        split_address(
            self.base_url, name="judge.base_url", example="http://localhost:8000/v1", key_variable=self.api_key_env
        )
        refuse_unread(self, self.kind, f"`judge.kind: {self.kind}`", "judge.")

    def api_key(self) -> str:
        """Return the API key from the environment; empty for an endpoint that needs none.

        Raises:
            ConfigError: OpenAI's own endpoint is asked and there is no key, or the value can't be a key.
        """
        key = api_key(self.api_key_env)
        if not key and self.base_url == _OPENAI:
            raise ConfigError(
                f"The environment variable {self.api_key_env} has no API key. Set it, or name the endpoint to ask "
                "with `--judge.base_url`."
            )
        return key


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(ScorerChoice):
    """Have a judge compare or rank responses."""

    data: str
    """What to judge; two files or folders of `hafrm sample` are joined by prompt, and their responses compared. Rows
    with `prompt` and `responses` (two for --mode pair, four or eight for rank; optional `models` names their
    models), or pairs with `chosen` and `rejected`: a file or, for pairs, also the name of a data set.
    """

    against: str | None = None
    """The samples of another model, to compare with those of data; on the command line, the second file."""

    out: str
    """The folder for verdicts.jsonl and results.json. If it contains a stopped run, that run is resumed."""

    judge: JudgeOptions
    mode: Mode = "pair"
    """`pair` compares two responses in both orders; `rank` ranks four with one question, and finds the best two of
    eight with three (the paper's Figure 10); a judge that gives rewards ranks all eight.
    """

    split: str = "test"
    """Split to use of a named data set; a file is used whole."""

    seed: int = 0
    """Seed for the order in which responses are shown."""

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)
    """How to run the models of `judge.kind: local` and `reward`."""

    def __post_init__(self) -> None:
        check(self)
        if self.against is not None and self.mode != "pair":
            raise ConfigError("against: two models' responses are compared in pairs: use --mode pair.")
        if self.mode == "rank" and self.judge.kind == "local":
            raise ConfigError("judge.kind: local compares two responses. Use --mode pair, or another judge.")
        kind = self.judge.kind
        unread = [] if kind == "reward" else self.chosen()
        if kind not in ("local", "reward"):  # other judges don't run a model
            unread += ["trust_remote_code"] * self.trust_remote_code + self.score.given()
        if unread:
            raise ConfigError(f"--{' and --'.join(unread)} has no effect with `judge.kind: {kind}`. Leave it out.")
        super().__post_init__()
        if kind == "reward" and is_server(self.judge.model):
            require_server_options(self.judge.model, self, self.score)


@dataclass(frozen=True)
class Prices:
    """Cost per million tokens, in the currency of the prices file."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of the given numbers of tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1_000_000

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


_FORM = 'Write {"MODEL": {"prompt": 2.5, "completion": 10}}: the prices of a million tokens.'


class Budget:
    """Counts spending and decides when to stop. Threads, and the runs of one command, may share a budget.

    Requests are allowed until a limit is reached, so tokens and money can exceed their limits by the requests in
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
            raise ConfigError("judge.max_cost needs `judge.prices`, a file with the prices of tokens.")
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
        """Count a request before it is sent; if a limit forbids it, return the reason in words instead."""
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
