"""Load models and serve them until interrupted."""

from __future__ import annotations

import gc
import importlib.util
import socket
import sys
from pathlib import Path

from hafrm.errors import ConfigError, MissingExtraError, printable
from hafrm.http import api_key
from hafrm.models.remote import API_KEY
from hafrm.serving.config import ServeConfig, is_loopback

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_FILES_RESERVED = 64  # open files for everything except connections


def serve(config: ServeConfig) -> None:
    """Serve models until interrupted; requests in flight are then answered.

    Raises:
        MissingExtraError: the web framework is not installed.
        ConfigError: the key can't be sent in a header, or a model runs elsewhere.
        ModelError: no scorer can be loaded from there.
        OSError: the address can't be listened on.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"hafrm serve needs {', '.join(missing)}: pip install 'hafrm[serve]'")
    key = api_key(API_KEY) or None
    with _listen(config.host, config.port) as listener:
        _serve(config, listener, key)


def _serve(config: ServeConfig, listener: socket.socket, key: str | None) -> None:
    from hafrm.serving.app import build_app
    from hafrm.serving.connections import Server, raise_file_limit
    from hafrm.serving.service import RewardService

    service = RewardService(
        {name: config.load(source, config.score) for name, source in config.sources.items()}, config
    )
    for model in service.models.values():
        model.try_out()
    app = build_app(service, api_key=key)
    most = _connections(config, raise_file_limit())
    host = f"[{config.host}]" if ":" in config.host else config.host
    if key is None and not is_loopback(config.host):
        warning = f"hafrm serve: anyone who can reach {host} can use this server. Set {API_KEY} to require a key."
        print(warning, file=sys.stderr)  # noqa: T201
    print(f"{printable(', '.join(config.sources))} at http://{host}:{listener.getsockname()[1]}", flush=True)  # noqa: T201
    _tune_runtime()
    Server(app, listener, config, most).run()


def _connections(config: ServeConfig, files: int) -> int:
    """Return the maximum number of connections: enough for every request, and fewer than the files that may be open."""
    wanted = 4 * config.max_requests + 64
    room = files - sum(1 for _ in Path("/dev/fd").iterdir()) - _FILES_RESERVED
    if room < 1:
        raise ConfigError(
            f"This process may open only {files} files, which leaves none for connections. Raise it: ulimit -n 1024."
        )
    if room < wanted:
        print(  # noqa: T201
            f"hafrm serve: at most {room} connections at a time, because this process may open only {files} files; "
            f"others wait. For {wanted}: ulimit -n {wanted + files - room}.",
            file=sys.stderr,
        )
    return min(wanted, room)


def _tune_runtime() -> None:
    """Keep threads and garbage collection from blocking the event loop for long."""
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()  # the model and the libraries are never freed
    gc.set_threshold(20_000, 50, 100)  # a large body creates a million objects without reference cycles


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. It is opened before the model is loaded, to report a port in use at once.

    Its connections disable Nagle's algorithm: an answer is sent as head and body, and the body would wait 40 ms for the
    head's acknowledgement. asyncio only does this for sockets with an explicit protocol, which `create_server` does not
    set.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
