"""Check every request's key and host before its body is read, count its answer, and report errors of the app."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hafrm.serving.batcher import ClosedError
from hafrm.serving.config import ServeConfig, is_loopback
from hafrm.serving.errors import RequestError, error_response, not_ready, traceback_text
from hafrm.serving.metrics import Metrics

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/health", "/ready"})
"""Paths that need no key, as they reveal nothing about the model."""

log = logging.getLogger("hafrm.serving")


class Gate:
    """ASGI middleware that admits requests, counts their answers, and catches errors of the app.

    Args:
        app: The application.
        config: Where the server listens.
        metrics: Counts every answer.
        api_key: The bearer token that clients must send; None: no token is required.
        paths: The app's paths; all others are counted as one.
    """

    def __init__(
        self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics, api_key: str | None, paths: Iterable[str]
    ) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self._key = None if api_key is None else api_key.encode()
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status, start = 0, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, answer)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            if status:
                raise
            await _refusal(error)(scope, receive, answer)
        finally:
            self.metrics.requests.labels(path, str(status or 500)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        names = [name for name, _ in scope["headers"]]
        if names.count(b"authorization") > 1 or {b"content-length", b"transfer-encoding"} <= headers.keys():
            # A proxy on the way may have used the other of the two.
            raise RequestError(400, "ambiguous", "Send one Authorization header, and one form of the body's length.")
        if self._key is None:
            # DNS rebinding: a page whose host name resolves to this machine must not read answers through a visitor's
            # browser.
            if is_loopback(self.config.host) and not is_loopback(_host(headers.get(b"host", b""))):
                raise RequestError(403, "wrong_host", "This server answers to localhost alone.")
        elif scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not (hmac.compare_digest(given.strip(), self._key) and scheme.lower() == b"bearer"):
                raise RequestError(401, "unauthorized", "Send the server's key as `Authorization: Bearer KEY`.")


def _refusal(error: Exception) -> ASGIApp:
    """Return the response to a request that raised an error."""
    if isinstance(error, RequestError):
        return error.response()
    if isinstance(error, ClosedError):
        return not_ready()
    request_id = uuid.uuid4().hex
    log.error("request %s failed\n%s", request_id, traceback_text(error))
    return error_response(500, "failed", "The request failed on the server.", request_id=request_id)


_HOST = re.compile(rb"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/]+))(?::\d*)?", re.IGNORECASE)


def _host(header: bytes) -> str:
    """Return the host name in a Host header, without its port; empty if the header is not a valid name."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).decode("latin-1") if found else ""
