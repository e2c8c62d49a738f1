"""Assemble the web application from protocols, health checks, metrics and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hafrm.serving.errors import RequestError, error_response, not_ready
from hafrm.serving.gate import Gate
from hafrm.serving.protocols import router
from hafrm.serving.requests import invalid
from hafrm.serving.service import RewardService

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
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

    # FastAPI's documentation pages load scripts from other sites, so only the OpenAPI document itself is served.
    app = FastAPI(title="hafrm reward server", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(router(service))
    _add_state(app, service)
    _add_page(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestError, _request_error)
    paths = [*app.openapi()["paths"], *_PAGE, "/v1/rerank", "/v2/rerank", "/openapi.json"]
    app.add_middleware(Gate, config=service.config, metrics=service.metrics, api_key=api_key, paths=paths)
    return app


def _add_state(app: FastAPI, service: RewardService) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Return whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"])
    async def ready() -> JSONResponse:
        """Return whether requests can be scored: 200, or 503 once the thread that runs the model has died.

        During shutdown the server accepts no connections at all, including those of this check.
        """
        if not service.batcher.ready:
            return not_ready()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Return counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    for path, (name, kind) in _PAGE.items():
        content = resources.files("hafrm.serving").joinpath(name).read_bytes()
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Referrer-Policy": "no-referrer"}
        answer = Response(content, media_type=kind, headers=headers)
        app.add_route(path, _always(answer), include_in_schema=False)


def _always(answer: Response):  # type: ignore[no-untyped-def]
    async def endpoint(request: Request) -> Response:
        return answer

    return endpoint


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # raised for a body that is not JSON
    return invalid(error.errors()[0]).response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, "http", str(error.detail)[:300])


async def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return error.response()
