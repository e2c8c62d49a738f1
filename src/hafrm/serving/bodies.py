"""Parse bodies into requests off the event loop; the first fault refuses the request."""

from __future__ import annotations

import json
import json.decoder
import json.scanner
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from hafrm.serving.errors import RequestError
from hafrm.serving.service import LARGE, RewardService


def route_class(service: RewardService) -> type[APIRoute]:
    """Return a route class whose parameter `request` is parsed and validated on the service's threads."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            model = get_type_hints(self.endpoint)["request"]

            class Parsed(Request):
                async def json(self) -> Any:  # FastAPI accepts a model instance
                    body = await self.body()
                    return await service.aside(partial(_parsed, model, body), size=len(body))

            async def parsing(request: Request) -> Response:
                return await handle(Parsed(request.scope, request.receive))

            return parsing

    return Route


def invalid(fault: Mapping[str, Any]) -> RequestError:
    """Convert pydantic's description of a fault to a refusal that gives the place, without the body's own text."""
    place = ".".join(str(part)[:100] for part in fault["loc"][:12])
    return RequestError(422, "invalid", f"{place}: {fault['msg'][:300]}")


_PYTHON: Any = json.decoder  # its internals, which type checkers don't know
_SCANNERS: Any = json.scanner
_Scan = Callable[[str, int], tuple[Any, int]]
_OUTER = 3  # levels of a body decoded in Python; with one more, a million iterations would be slow


class _Decoder(json.JSONDecoder):
    """Reads JSON like `json`, but lets other threads run in between: C code decodes the body in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_once = self._scan(_OUTER)

    def _scan(self, levels: int) -> _Scan:
        in_c: _Scan = _SCANNERS.make_scanner(self)
        if not levels:
            return in_c
        inner = self._scan(levels - 1)

        def scan(text: str, place: int) -> tuple[Any, int]:
            found: tuple[Any, int]
            match text[place : place + 1]:
                case "[":
                    found = _PYTHON.JSONArray((text, place + 1), inner)
                case "{":
                    found = _PYTHON.JSONObject((text, place + 1), self.strict, inner, None, None, {})
                case _:
                    found = in_c(text, place)
            return found

        return scan


def _parsed(model: type[BaseModel], body: bytes) -> BaseModel:
    try:
        return model.model_validate(json.loads(body, cls=_Decoder if len(body) > LARGE else None))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        # If a value fits none of several types, a validator's message is more useful than a type error.
        first = next((fault for fault in faults if fault["type"] == "value_error"), faults[0])
        raise invalid({**first, "loc": ("body", *first["loc"])}) from None
