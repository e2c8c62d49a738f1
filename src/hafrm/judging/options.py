"""Options of the judge."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from hafrm.errors import ConfigError
from hafrm.http import api_key, split_address

JudgeKind = Literal["openai", "local", "reward", "oracle"]

_OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Choose a judge and how to ask it. All options from `base_url` on apply only to `openai`."""

    kind: JudgeKind
    """`openai`: any endpoint of OpenAI's chat API; `local`: a causal LM in this process, for pairs; `reward`: a reward
    model, the higher reward wins; `oracle`: the true reward of a set of the simulated world.
    """

    model: str
    """The model's name at the endpoint, a folder or hub id, or the name of a set of the world."""

    base_url: str = _OPENAI
    """The endpoint's address, up to and including /v1. Replies from different addresses are cached separately."""

    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the API key; the key itself is never an option and never written."""

    temperature: float | None = 0.0
    """Sampling temperature; `null` omits it from requests, for models that don't accept it."""

    max_reply_tokens: int | None = 256
    """Maximum tokens of a reply; `null` omits it from requests, for models that don't accept it."""

    concurrency: int = 4
    """Number of requests in flight."""

    timeout: float = 60.0
    """Seconds to wait for a reply, or for its next part, before a request counts as failed."""

    retries: int = 5
    """Number of retries of a failed request, after Retry-After or a growing random wait."""

    max_requests: int | None = None
    """Budget of this run: requests, including retries. The next run continues where the budget ended this one."""

    max_tokens: int | None = None
    """Budget of this run: tokens of prompts and replies."""

    max_cost: float | None = None
    """Budget of this run: money, by `prices`."""

    prices: str | None = None
    """A JSON file with the cost per million tokens: {"MODEL": {"prompt": 2.5, "completion": 10}}."""

    cache: str | None = None
    """The file of replies, by default one for all runs in hafrm's cache folder. Cached questions are not asked again.
    """

    def __post_init__(self) -> None:
        least_of = {"concurrency": 1, "retries": 0, "max_requests": 0, "max_tokens": 0, "max_reply_tokens": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"judge.{name} must be at least {least}, got {value}")
        if not self.timeout > 0:
            raise ConfigError(f"judge.timeout must be positive, got {self.timeout}")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"judge.temperature must be a number of at least 0, got {self.temperature}")
        if self.max_cost is not None and not self.max_cost >= 0:
            raise ConfigError(f"judge.max_cost must be at least 0, got {self.max_cost}")
        split_address(
            self.base_url,
            name="judge.base_url",
            example="http://localhost:8000/v1",
            key_variable=self.api_key_env,
        )
        if self.kind != "openai":
            self._refuse_endpoint_options()

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

    def _refuse_endpoint_options(self) -> None:
        for field in fields(self):
            if field.name not in ("kind", "model") and getattr(self, field.name) != field.default:
                raise ConfigError(f"judge.{field.name} is for `judge.kind: openai`, not for {self.kind}.")
