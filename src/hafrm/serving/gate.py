"""Check every request's key, host, capacity and size before its body is parsed."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hafrm.serving.batcher import ClosedError
from hafrm.serving.config import ServeConfig, is_loopback
from hafrm.serving.errors import RequestError, error_response, not_ready
from hafrm.serving.lines import traceback_text
from hafrm.serving.metrics import Metrics

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/health", "/ready"})
"""Paths that need no key, as they reveal nothing about the model."""

log = logging.getLogger("hafrm.serving")


class Gate:
    """ASGI middleware that admits requests, reads their bodies within limits, and catches errors of the app.

    Args:
        app: The application.
        config: The limits.
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
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        answer = _Answer(send)
        start = time.perf_counter()
        try:
            self._check(scope)
            await (
                self._score(scope, receive, answer) if scope["method"] == "POST" else self.app(scope, receive, answer)
            )
        except _DisconnectedError:
            answer.status = 499
        except RequestError as error:
            await error.response()(scope, receive, answer)
        except Exception as error:
            await self._fail(error, answer)(scope, receive, answer)
        finally:
            self.metrics.requests.labels(path, str(answer.status)).inc()
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

    async def _score(self, scope: Scope, receive: Receive, send: _Answer) -> None:
        if self._open >= self.config.max_requests:
            raise RequestError(429, "queue_full", "The server has as many requests as it takes. Try again later.")
        self._open += 1
        self.metrics.open_requests.set(self._open)
        try:
            body = await self._body(scope, receive)
            await self._answer(scope, body, receive, send)
        finally:
            self._open -= 1
            self.metrics.open_requests.set(self._open)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body.

        Raises:
            RequestError: it is too large, or does not arrive in time.
        """
        most = self.config.max_request_bytes
        too_large = RequestError(413, "too_large", f"The request's body is over {most} bytes.")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and len(announced) < 20 and int(announced) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestError(408, "too_slow", "The request's body did not arrive in time.") from None
        return bytes(body)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: _Answer) -> None:
        """Let the app answer, unless the client disconnects first, which cancels the work."""
        gone = asyncio.create_task(_disconnected(receive))
        work = asyncio.create_task(self._run(scope, _Replay(body, gone), send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not (work.done() or send.started):  # the connection also counts as closed after the answer
                raise _DisconnectedError
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def _fail(self, error: Exception, answer: _Answer) -> ASGIApp:
        if answer.started:
            raise error
        if isinstance(error, ClosedError):
            return not_ready()
        request_id = uuid.uuid4().hex
        log.error("request %s failed\n%s", request_id, traceback_text(error))
        return error_response(500, "failed", "The request failed on the server.", request_id=request_id)


class _DisconnectedError(Exception):
    """The client has disconnected."""


class _Answer:
    """Sends an answer with the headers common to all answers, and records its status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.started = send, 500, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
        await self._send(message)


class _Replay:
    """Replays a body that has been read to the app; after that, waits for the client to disconnect."""

    def __init__(self, body: bytes, gone: asyncio.Task[None]) -> None:
        self._body: bytes | None = body
        self._gone = gone

    async def __call__(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_HOST = re.compile(rb"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/]+))(?::\d*)?", re.IGNORECASE)


def _host(header: bytes) -> str:
    """Return the host name in a Host header, without its port; empty if the header is not a valid name."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).decode("latin-1") if found else ""
