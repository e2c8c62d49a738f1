"""Options of `hafrm serve`. They do not load the web framework, so `--help` works without it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from hafrm.errors import ConfigError
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.options import option

MAX_ITEMS = 2**14
"""Maximum length of any list in a request; `max_conversations` is the lower limit for conversations."""

_NAMED = re.compile(r"([\w.-]+)=(.+)")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ScorerChoice):
    """Serve the rewards of one or several models over HTTP.

    If the environment variable HAFRM_API_KEY is set, every scoring request needs `Authorization: Bearer KEY`.
    """

    models: list[str]
    """Runs, stock reward models, or causal models with their reference, each as FOLDER or NAME=FOLDER. Responses show
    the name, by default the last part of the folder, or the hub id. Requests to a server with several models choose one
    by its name, in the field `model` or at the start of the path: http://HOST:PORT/NAME/get_reward.
    """

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can connect."""

    port: int = option(8000, least=0, most=2**16 - 1)
    """Port to listen on; 0 picks a free one."""

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

    batch_wait: float = option(0.0, least=0)
    """Seconds that a request waits for others to share its forward pass if the model is idle: the latency that you
    accept for it. Useful if clients send the responses to one prompt at about the same time, each in its own request.
    """

    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sources

    @property
    def sources(self) -> dict[str, str]:
        """Return the models' folders or hub ids by their names.

        Raises:
            ConfigError: two models have the same name.
        """
        found: dict[str, str] = {}
        for given in self.models:
            name, source = _named(given)
            if name in found:
                raise ConfigError(f"{found[name]} and {source} are both named {name}. Name them: NAME={source}.")
            found[name] = source
        return found


def _named(given: str) -> tuple[str, str]:
    """Split NAME=FOLDER; existing folders may contain an equals sign."""
    found = _NAMED.fullmatch(given)
    if found and not Path(given).exists():
        return found[1], found[2]
    return Path(given).resolve().name if Path(given).exists() else given, given
