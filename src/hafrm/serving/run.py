"""Load a model and serve it until told to stop."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from typing import Any

from hafrm.errors import ConfigError, MissingExtraError
from hafrm.serving.config import ServeConfig, is_loopback

__all__ = ["API_KEY", "serve"]

API_KEY = "HAFRM_API_KEY"
"""The environment variable that holds the key which clients must send."""

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_GRACE = 30  # seconds for requests in flight, once told to stop


def serve(config: ServeConfig) -> None:
    """Serve a model until interrupted; what is in flight then is answered.

    Raises:
        MissingExtraError: the web framework is not installed.
        ConfigError: the key can't be sent in a header, or the model runs elsewhere.
        ModelError: nothing that scores loads from there.
        OSError: the address can't be listened on.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"hafrm serve needs {', '.join(missing)}: pip install 'hafrm[serve]'")
    key = _api_key()
    listener = _listen(config.host, config.port)
    try:
        _serve(config, listener, key)
    finally:
        listener.close()


def _serve(config: ServeConfig, listener: socket.socket, key: str | None) -> None:
    import uvicorn

    from hafrm.serving.app import build_app
    from hafrm.serving.service import RewardService

    app: Any = build_app(RewardService(config.load(config.model, config.score), config), api_key=key)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    if key is None and not is_loopback(config.host):
        print(f"hafrm serve: anybody who reaches {shown} can use this server: set {API_KEY}.", file=sys.stderr)  # noqa: T201
    print(f"{config.name} at http://{shown}:{listener.getsockname()[1]}", flush=True)  # noqa: T201
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE,
        limit_concurrency=4 * config.max_requests + 64,  # connections; a request over the limit is met by the gate
    )
    uvicorn.Server(settings).run(sockets=[listener])


def _api_key() -> str | None:
    key = os.environ.get(API_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{API_KEY} holds characters that no header can carry. Use printable ASCII.")
    return key or None


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, before the model is loaded: a port that is taken shows at once.

    Its connections send at once: an answer goes out as head and body, and the body would wait for the head's receipt,
    40 ms. asyncio sees to that only for sockets that name their protocol, which `create_server` makes none of.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
