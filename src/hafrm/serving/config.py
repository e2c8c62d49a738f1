"""Options of `hafrm serve`. They do not load the web framework, so `--help` works without it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.options import check, option

MAX_ITEMS = 2**14
"""Maximum length of any list in a request; `max_conversations` is the lower limit for conversations."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ScorerChoice):
    """Serve a model's rewards over HTTP.

    If the environment variable HAFRM_API_KEY is set, every scoring request needs `Authorization: Bearer KEY`.
    """

    model: str
    """A run, a stock reward model, or a causal model with its reference."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can connect."""

    port: int = option(8000, least=0, most=2**16 - 1)
    """Port to listen on; 0 picks a free one."""

    served_name: str | None = None
    """The model's name in responses; by default the last part of its folder, or its hub id."""

    max_requests: int = option(256, least=1)
    """Maximum number of requests being read, waiting or running; further ones are answered with 429."""

    max_request_bytes: int = option(4 * 2**20, least=1)
    """Maximum size of a request's body, in bytes."""

    max_conversations: int = option(1024, least=1, most=MAX_ITEMS)
    """Maximum number of conversations per request."""

    body_timeout: float = option(30.0, above=0)
    """Seconds for a request's body to arrive, and for the client to read the response. The head of a request, or the
    first byte of a new connection, must arrive within five seconds. Slower connections are closed.
    """

    batch_requests: bool = True
    """Let waiting requests share forward passes. If off, each request runs separately, for comparison."""

    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @property
    def name(self) -> str:
        """The model's name in responses."""
        if self.served_name:
            return self.served_name
        return Path(self.model).resolve().name if Path(self.model).exists() else self.model
