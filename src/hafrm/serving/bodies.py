"""Bodies become requests off the event loop, and the first fault of one refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from hafrm.serving.errors import RequestError
from hafrm.serving.service import RewardService

__all__ = ["invalid", "route_class"]


def route_class(service: RewardService) -> type[APIRoute]:
    """Routes whose parameter `request` is parsed and validated on the service's threads."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            model = get_type_hints(self.endpoint)["request"]

            class Parsed(Request):
                async def json(self) -> Any:  # FastAPI takes a whole model as it is
                    body = await self.body()
                    return await service.aside(partial(_parsed, model, body), size=len(body))

            async def parsing(request: Request) -> Response:
                return await handle(Parsed(request.scope, request.receive))

            return parsing

    return Route


def invalid(fault: Mapping[str, Any]) -> RequestError:
    """The refusal of a body by pydantic's account of its fault: the place, without the body's own text."""
    place = ".".join(str(part)[:100] for part in fault["loc"][:12])
    return RequestError(422, "invalid", f"{place}: {fault['msg'][:300]}")


def _parsed(model: type[BaseModel], body: bytes) -> BaseModel:
    try:
        return model.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise invalid({**first, "loc": ("body", *first["loc"])}) from None
