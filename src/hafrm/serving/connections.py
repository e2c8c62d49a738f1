"""Limits of connections: how many there are, how long each may be silent, and what happens when a client closes one.

Uvicorn's server accepts every connection; `Server` accepts one only if it has a free slot, so that neither files nor
memory run out, and the others wait in the system's queue. Uvicorn treats the end of a client's data as a disconnect;
`Connection` still answers complete requests.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from hafrm.serving.config import ServeConfig

_FILES = 2**16  # open files, if the system sets no limit
_GRACE = 30  # seconds for requests in flight on shutdown
_HEAD = 5.0  # seconds for a request's head, which clients send in one piece
_LOOK = 0.5  # seconds between checks whether a client that has finished sending is still connected
_PAUSE = 0.2  # seconds until the next attempt if the system is out of files or memory
_SELDOM = 60.0  # seconds between warnings in the log

log = logging.getLogger("hafrm.serving")


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        most = _FILES if soft == resource.RLIM_INFINITY else max(soft, _FILES)
    else:
        most = hard
    if soft not in (most, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


class Server(uvicorn.Server):
    """Serves an application on a listening socket, which it closes when it ends, with at most `most` connections."""

    def __init__(self, app: ASGIApp, listener: socket.socket, config: ServeConfig, most: int) -> None:
        settings = uvicorn.Config(
            app,
            loop="asyncio",
            http=Connection,
            ws="none",
            log_level="error",  # lower levels log a line for each request that is not HTTP
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE,
        )
        super().__init__(settings)
        self._listener, self._limits, self._most = listener, config, most
        self._places = asyncio.Semaphore(most)
        self._said = -_SELDOM

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections."""
        await super().startup(sockets=[])
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and answer requests in flight."""
        self._accepting.cancel()
        self._listener.close()
        await super().shutdown(sockets)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._places.locked():
                self._say(f"all {self._most} connections are in use; others wait")
            await self._places.acquire()
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # the client left at once, or the system is out of files or memory
                self._places.release()
                self._say(f"a connection can't be accepted ({error.strerror})")
                await asyncio.sleep(_PAUSE)
                continue
            await loop.connect_accepted_socket(self._connection, accepted)

    def _connection(self) -> Connection:
        return Connection(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            patience=self._limits.body_timeout,
            on_lost=self._places.release,
        )

    def _say(self, line: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said >= _SELDOM:
            self._said = now
            log.warning("%s", line)


class Connection(H11Protocol):
    """A connection that is closed if a request's head arrives too slowly, or the client reads a response too slowly.

    Args:
        patience: Seconds for either; at most five for a head.
        on_lost: Called once the connection has ended.
        **arguments: Arguments of uvicorn's class.
    """

    def __init__(self, *, patience: float, on_lost: Callable[[], None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._patience, self._on_lost = patience, on_lost
        self._head_due: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def _idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the slot for another connection."""
        super().connection_lost(exc)
        self._unwatch()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Read more of a request; the timeout of its head starts at the first byte."""
        super().data_received(data)
        if self._idle:
            self._watch()
        else:
            self._unwatch()

    def on_response_complete(self) -> None:
        """Read the next request; close the connection if the client has finished sending or does not read."""
        super().on_response_complete()
        if self._ended and (self._idle or self.cycle.more_body):
            self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._patience, self._abort_unread)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open (True) if a complete request is still to be answered."""
        if self._idle or self.cycle.more_body:
            return False
        if not self._ended:
            self._ended = True
            self.loop.call_later(_LOOK, self._look)
        return True

    def _look(self) -> None:
        """Check whether a client that has finished sending still waits for the response.

        This can only be found out by sending something: an interim response, which every HTTP 1.1 client skips. If the
        client has left, its system answers with a reset, and the next write fails.
        """
        if self.transport.is_closing():
            return
        if self.scope["http_version"] == "1.0":
            self.transport.abort()
        elif not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(_LOOK, self._look)

    def _watch(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(min(self._patience, _HEAD), self.transport.abort)

    def _unwatch(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _abort_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
