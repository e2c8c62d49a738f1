"""One protocol: the function that answers it, whose annotations are the types of request and response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

from fastapi import APIRouter
from scipy import special

from hafrm.serving.service import RewardService


@dataclass(frozen=True)
class Protocol:
    """An entry of the table of protocols."""

    client: str
    """The program whose protocol it is."""
    paths: Sequence[str]
    """The paths; all but the first are aliases."""
    answer: Callable[[Any, Any], Any]
    """Converts a request and its scores, or the reader if nothing is scored, to a response."""
    example: Mapping[str, Any]
    """A request, for the documentation."""
    scores: bool = True
    """Whether the request's inputs are scored."""

    def add(self, routes: APIRouter, path: str, service: RewardService, name: str | None = None) -> None:
        """Add the route of a path, for the model of this name, or for the one that a request names."""

        async def endpoint(request):  # type: ignore[no-untyped-def]
            served = service.model(request.model, path=name)
            if not self.scores:
                return await service.read(served, partial(self.answer, request))
            inputs = partial(request.inputs, served.bare_response)
            scored = await service.score(served, inputs, limit=request.limit, divides=request.divides)
            return self.answer(request, scored)

        hints = get_type_hints(self.answer)
        endpoint.__annotations__ = {"request": hints["request"]}
        routes.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            tags=[self.client],
            name=path,
            summary=self.answer.__doc__,
            response_model=hints["return"],
            include_in_schema=path == self.paths[0],
        )


def shown(rewards: Sequence[float], *, activated: bool) -> list[float]:
    """Return the rewards, or sigma of each."""
    return [float(special.expit(reward)) for reward in rewards] if activated else list(rewards)


def best_first(rewards: Sequence[float]) -> list[int]:
    """Return indices of rewards in descending order; sigma would round all large ones to 1."""
    return sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
