"""The server's options. Knows no web framework, so that `hafrm serve --help` needs none."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from hafrm.errors import ConfigError
from hafrm.models.loading import ScorerChoice
from hafrm.models.scorers import ScoreOptions

__all__ = ["MAX_ITEMS", "ServeConfig", "is_loopback"]

MAX_ITEMS = 2**14
"""The most entries of any list in a request; `max_conversations` bounds conversations more tightly."""


def is_loopback(host: str) -> bool:
    """Whether a host is one that only this machine reaches."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ScorerChoice):
    """Serve a model's rewards over HTTP.

    With the environment variable HAFRM_API_KEY set, every request that scores needs `Authorization: Bearer KEY`.
    """

    model: str
    """A run, a stock reward model, or a causal model with its reference."""

    host: str = "127.0.0.1"
    """Where to listen; by default this machine alone can connect."""

    port: int = 8000
    """The port; 0 takes a free one."""

    served_name: str | None = None
    """The model's name in answers; by default the last part of its folder, or its hub id."""

    max_requests: int = 256
    """Requests that are read, wait or run at one time; one more is answered 429."""

    max_request_bytes: int = 4 * 2**20
    """The largest body of a request, in bytes."""

    max_conversations: int = 1024
    """The most conversations of one request."""

    body_timeout: float = 30.0
    """Seconds in which a request's head, and then its body, must have arrived, and an answer been read. A connection
    that takes longer is closed, a silent one too."""

    batch_requests: bool = True
    """Let waiting requests share forward passes. Off, every request has its own: for comparison."""

    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_requests", "max_request_bytes", "max_conversations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_conversations > MAX_ITEMS:
            raise ConfigError(f"max_conversations must be at most {MAX_ITEMS}, got {self.max_conversations}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must be from 0 to 65535, got {self.port}")
        if not 0 < self.body_timeout < float("inf"):
            raise ConfigError(f"body_timeout must be a positive number of seconds, got {self.body_timeout}")

    @property
    def name(self) -> str:
        """The model's name in answers."""
        if self.served_name:
            return self.served_name
        return Path(self.model).resolve().name if Path(self.model).exists() else self.model
