"""The web application: protocols, health checks, metrics and the page, behind a middleware that checks requests."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import metadata, resources
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hafrm.serving.batcher import ClosedError
from hafrm.serving.config import ServeConfig, is_loopback
from hafrm.serving.errors import RequestError, error_response, not_ready, traceback_text
from hafrm.serving.protocols import PROTOCOLS, router
from hafrm.serving.requests import invalid
from hafrm.serving.service import Metrics, RewardService

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/docs", "/health", "/ping", "/ready"})
"""Paths that need no key, because they reveal nothing about the model."""

log = logging.getLogger("hafrm.serving")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_PAGE = {
    "/": ("serving/page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("serving/page.js", "text/javascript"),
}


def build_app(service: RewardService, *, api_key: str | None = None) -> FastAPI:
    """Build the application of a service, which it closes on shutdown.

    Args:
        service: The scorer with its batcher.
        api_key: The bearer token that clients must send; None: no token is required.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # FastAPI's documentation pages load scripts from other sites.
    app = FastAPI(title="hafrm reward server", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(router(service))
    _add_state(app, service)
    _add_page(app, keyed=api_key is not None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    state = [route.path for route in app.routes if isinstance(route, APIRoute)]
    own = [path for each in PROTOCOLS for path in each.paths]
    of_models = (f"/{name}{path}" for name in service.models for path in own)
    paths = [*state, *_PAGE, "/docs", "/openapi.json", *own, *of_models]
    app.add_middleware(Gate, config=service.config, metrics=service.metrics, api_key=api_key, paths=paths)
    return app


class ModelCard(BaseModel):
    """One model, in OpenAI's format with vLLM's limit."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default_factory=lambda: int(time.time()))
    owned_by: Literal["hafrm"] = "hafrm"
    max_model_len: int


class ModelList(BaseModel):
    """The server's models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def _add_state(app: FastAPI, service: RewardService) -> None:
    @app.head("/health", include_in_schema=False)
    @app.head("/ping", include_in_schema=False)
    @app.get("/health", tags=["state"])
    @app.get("/ping", tags=["state"])
    async def health() -> dict[str, str]:
        """Report that the process is running."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"])
    async def ready() -> JSONResponse:
        """Report whether requests can be scored: 200, or 503 once the thread that runs the model has ended.

        During shutdown the server accepts no connections, including those of this check.
        """
        if not service.ready:
            return not_ready()
        return JSONResponse({"status": "ready"})

    @app.get("/v1/models", tags=["state"])
    async def models() -> ModelList:
        """List the models, in OpenAI's format."""
        return ModelList(data=[ModelCard(id=name, max_model_len=m.max_length) for name, m in service.models.items()])

    @app.get("/version", tags=["state"])
    async def version() -> dict[str, str]:
        """Return hafrm's version."""
        return {"version": metadata.version("hafrm")}

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Return counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI, *, keyed: bool) -> None:
    """Serve the page; its field for a key is hidden where none is wanted."""
    contents = {
        path: (resources.files("hafrm").joinpath(name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()
    }
    for path, (content, kind) in (contents | {"/docs": (_reference(), "text/html")}).items():
        if keyed:
            content = content.replace(b'class="key" hidden', b'class="key"')
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Referrer-Policy": "no-referrer"}
        answer = Response(content, media_type=kind, headers=headers)
        app.add_route(path, _always(answer), include_in_schema=False)


def _reference() -> bytes:
    """Render the page that describes the protocols."""
    template = resources.files("hafrm").joinpath("serving/docs.html").read_text(encoding="utf-8")
    page = Environment(undefined=StrictUndefined, autoescape=True).from_string(template)
    rows = [
        {
            "paths": each.paths,
            "client": each.client,
            "summary": each.answer.__doc__,
            "example": json.dumps(each.example),
        }
        for each in PROTOCOLS
    ]
    return page.render(protocols=rows).encode()


def _always(answer: Response):  # type: ignore[no-untyped-def]
    async def endpoint(request: Request) -> Response:
        return answer

    return endpoint


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # raised for an empty body, and for one of another type than JSON
    fault = error.errors()[0]
    if fault["type"] == "missing":
        return invalid(fault).response()
    problem = "Send the body as JSON, with the header `Content-Type: application/json`."
    return RequestError(415, "unsupported", problem).response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, RequestError):
        return error.response()
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, "http", str(error.detail)[:300])
    response.headers.update(error.headers or {})  # such as Allow, if the path has other methods
    return response


class Gate:
    """ASGI middleware that admits requests, counts responses, and catches errors of the app.

    Args:
        app: The application.
        config: Where the server listens.
        metrics: Counts every response.
        api_key: The bearer token that clients must send; None: no token is required.
        paths: The app's paths; all others are counted together as "other".
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
            # A proxy in front of the server may have used the other one.
            raise RequestError(400, "ambiguous", "Send one Authorization header, and one form of the body's length.")
        if self._key is None:
            # DNS rebinding: a web page whose host name resolves to this machine must not read responses through the
            # browser of a visitor.
            if is_loopback(self.config.host) and not is_loopback(_host(headers.get(b"host", b""))):
                raise RequestError(403, "wrong_host", "This server only answers requests to localhost.")
        elif scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not (hmac.compare_digest(given.strip(), self._key) and scheme.lower() == b"bearer"):
                raise RequestError(401, "unauthorized", "Send the server's key as `Authorization: Bearer KEY`.")


def _refusal(error: Exception) -> ASGIApp:
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
