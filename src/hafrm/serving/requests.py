"""Reading of requests: within limits, parsed outside the event loop, and cancelled if the client disconnects."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from hafrm.data.arrays import json_problem
from hafrm.rows import unique_keys
from hafrm.serving.config import ServeConfig
from hafrm.serving.errors import RequestError
from hafrm.serving.service import RewardService


def route_class(service: RewardService) -> type[APIRoute]:
    """Return a route class that reads `request` within the service's limits and parses it on its threads."""
    places = _Places(service)

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            model = get_type_hints(self.endpoint)["request"]

            async def limited(request: Request) -> Response:
                with places.taken():
                    body = await _body(request, service.config)
                    parsed = partial(service.aside, partial(_parsed, model, body), size=len(body))
                    return await _unless_gone(handle(_Read(request, body, parsed)), request.receive)

            return limited

    return Route


class _Places:
    """Counts the requests that are being read, waiting or running, and refuses those over the limit."""

    def __init__(self, service: RewardService) -> None:
        self._most, self._gauge, self._taken = service.config.max_requests, service.metrics.open_requests, 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        if self._taken >= self._most:
            raise RequestError(
                429, "queue_full", "The server is handling the maximum number of requests. Try again later."
            )
        self._taken += 1
        self._gauge.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self._gauge.set(self._taken)


class _Read(Request):
    """A request whose body has been read; FastAPI accepts a model instance as its JSON."""

    def __init__(self, request: Request, body: bytes, parsed: Callable[[], Coroutine[Any, Any, BaseModel]]) -> None:
        super().__init__(request.scope, request.receive)
        self._whole, self._parsed = body, parsed

    async def body(self) -> bytes:
        return self._whole

    async def json(self) -> Any:
        return await self._parsed()


_COMPRESSED = re.compile("gzip|deflate|compress|zstd|br")
"""Matches a Content-Encoding that changes the bytes; some clients send their charset in this header."""


async def _body(request: Request, config: ServeConfig) -> bytes:
    """Read the whole body.

    Raises:
        RequestError: it is compressed or too large, or does not arrive in time.
        ClientDisconnect: the client has disconnected.
    """
    if _COMPRESSED.search(request.headers.get("content-encoding", "").lower()):
        raise RequestError(415, "unsupported", "Send the body uncompressed, without the header Content-Encoding.")
    most = config.max_request_bytes
    too_large = RequestError(413, "too_large", f"The request's body is over {most} bytes.")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and len(announced) < 20 and int(announced) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(config.body_timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise RequestError(408, "too_slow", "The request's body did not arrive in time.") from None
    return bytes(body)


async def _unless_gone(work: Coroutine[Any, Any, Response], receive: Receive) -> Response:
    """Await the work, or cancel it and raise ClientDisconnect if the client disconnects first."""
    answering, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, gone):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def invalid(fault: Mapping[str, Any]) -> RequestError:
    """Convert pydantic's description of a fault to an error that names the field but quotes nothing of the body."""
    place = ".".join(str(part)[:100] for part in fault["loc"][:12])
    return RequestError(422, "invalid", f"{place}: {fault['msg'][:300]}")


def _parsed(model: type[BaseModel], body: bytes) -> BaseModel:
    try:
        sent = json.loads(body, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:  # ValueError: also bad UTF-8, a repeated key, or too long an integer
        raise invalid({"loc": ("body",), "msg": f"not valid JSON ({json_problem(error)})"}) from None
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        # If a value fits none of several types, a validator's message is more useful than a type error.
        first = next((fault for fault in faults if fault["type"] == "value_error"), faults[0])
        raise invalid({**first, "loc": ("body", *first["loc"])}) from None
