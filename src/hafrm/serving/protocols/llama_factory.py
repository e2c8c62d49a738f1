"""LLaMA-Factory's remote reward model (`reward_model_type: api`): takes rendered texts, returns scores.

LLaMA-Factory posts to the exact URL that it is given (`reward_model: http://HOST:PORT/v1/score/evaluation`). The path
is that of its own server.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.bodies import route_class
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import AnyForm, Columns, ConsumerRequest, Name, input_of
from hafrm.serving.reading import Input
from hafrm.serving.service import RewardService


class ScoreRequest(ConsumerRequest, Columns):
    """Whole rendered conversations; token ids and messages are accepted too."""

    model: Name | None = None
    messages: Annotated[list[AnyForm], Field(max_length=MAX_ITEMS, fail_fast=True)]

    def inputs(self) -> list[Input]:
        """Return the inputs to score."""
        return [input_of(form, self.columns()) for form in self.messages]


class ScoreResponse(BaseModel):
    """One score per text."""

    model: str
    scores: list[float]


def router(service: RewardService) -> APIRouter:
    """Return the router of `POST /v1/score/evaluation`."""
    routes = APIRouter(tags=["LLaMA-Factory"], route_class=route_class(service))

    @routes.post("/v1/score/evaluation")
    async def score(request: ScoreRequest) -> ScoreResponse:
        """Score rendered texts."""
        found = await service.scored(request.inputs)
        return ScoreResponse(model=service.name, scores=[reward for reward, _ in found])

    return routes
