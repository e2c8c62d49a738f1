"""Limit connections: their number, how long one may be silent, and what happens at its end. Works on HTTP, not on
paths.

Uvicorn's server accepts every connection that the system offers; `Server` here accepts one only if it has a free slot,
so that neither files nor memory run out, and others wait in the system's queue. Uvicorn treats the end of a client's
data as a disconnect; `Connection` here still answers complete requests.
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
_HEAD = 5.0  # seconds for a request's head, which clients send at once
_LOOK = 0.5  # seconds between checks of whether a client that sends no more is still connected
_PAUSE = 0.2  # seconds until the next try, if the system is out of files or memory
_SELDOM = 60.0  # seconds between equal lines in the log

log = logging.getLogger("hafrm.serving")


def raise_file_limit() -> int:
    """Raise the limit of open files of this process as far as allowed; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        most = _FILES if soft == resource.RLIM_INFINITY else max(soft, _FILES)
    else:
        most = hard
    if soft not in (most, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


class Server(uvicorn.Server):
    """Serves an application on a listening socket, with a limited number of connections.

    Args:
        app: The application.
        listener: The socket, which the server closes when it ends.
        config: The limits.
        most: Maximum number of open connections.
    """

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
                self._say(f"all {self._most} connections are taken; others wait")
            await self._places.acquire()
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # the client left at once, or the system is out of files or memory
                self._places.release()
                self._say(f"a connection can't be taken ({error.strerror})")
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
    """One connection, which is closed if a request's head, or the client's reading of an answer, takes too long.

    Args:
        patience: Seconds for each of them; a head has no more than five.
        on_lost: Called once the connection has ended.
        **uvicorns: Arguments of uvicorn's connections.
    """

    def __init__(self, *, patience: float, on_lost: Callable[[], None], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._patience, self._on_lost = patience, on_lost
        self._head_due: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def _idle(self) -> bool:
        """Return whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the slot for another connection."""
        super().connection_lost(exc)
        self._unwatch()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Read on; a head's timeout starts at its first byte, not its last."""
        super().data_received(data)
        if self._idle:
            self._watch()
        else:
            self._unwatch()

    def on_response_complete(self) -> None:
        """Read the next request, or close if the client sends no more or does not read."""
        super().on_response_complete()
        if self._ended and (self._idle or self.cycle.more_body):
            self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._patience, self._abort_unread)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a complete request; return whether there is one."""
        if self._idle or self.cycle.more_body:
            return False
        if not self._ended:
            self._ended = True
            self.loop.call_later(_LOOK, self._look)
        return True

    def _look(self) -> None:
        """Check whether a client that sends no more still waits for its answer, or has left.

        The two only differ once something is sent, so an interim response is sent, which every HTTP 1.1 client skips.
        The system of a client that has left answers it with a reset, at which the next one fails.
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
