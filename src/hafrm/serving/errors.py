"""Error responses, in one JSON form without tracebacks or text of the request, and bounded tracebacks for the log."""

from __future__ import annotations

from itertools import islice
from traceback import TracebackException

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hafrm.errors import printable

_HEADERS: dict[int | str, dict[str, str]] = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
    "ambiguous": {"Connection": "close"},
}


class RequestError(HTTPException):
    """A request that can't be answered: the HTTP status, the error's kind for programs, and a message for people."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message
        super().__init__(status, message)

    def response(self) -> JSONResponse:
        """Return the error as a response."""
        return error_response(self.status, self.kind, self.message)


def error_response(status: int, kind: str, message: str, *, request_id: str | None = None) -> JSONResponse:
    """Return an error as `{"error": {"type", "message", "code", "id"}}`; the id is also in the server's log."""
    valid = message.encode("utf-8", "replace").decode("utf-8")  # field names may contain lone surrogates
    body = {"error": {"type": kind, "message": valid, "code": status, "id": request_id}}
    return JSONResponse(body, status_code=status, headers=_HEADERS.get(kind) or _HEADERS.get(status))


def not_ready() -> JSONResponse:
    """Return the response if the thread that runs the model has ended; it is not restarted."""
    return error_response(503, "not_ready", "The thread that runs the model has ended. Restart the server.")


_LINES, _CHARACTERS = 60, 300


def traceback_text(error: BaseException) -> str:
    """Return an error's traceback in a bounded number of bounded lines, with as many of its causes as fit."""
    lines = (line for part in TracebackException.from_exception(error, limit=-20).format() for line in _split(part))
    return "\n".join(printable(line, _CHARACTERS) for line in islice(lines, _LINES))


def _split(part: str) -> list[str]:
    return part[: _LINES * _CHARACTERS].removesuffix("\n").split("\n")
