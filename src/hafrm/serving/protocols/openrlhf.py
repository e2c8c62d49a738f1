"""OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`): rendered texts in, rewards out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.bodies import route_class
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import AnyForm, Columns, ConsumerRequest, input_of
from hafrm.serving.reading import Input, PromptedText
from hafrm.serving.service import RewardService

__all__ = ["router"]


class GetRewardRequest(ConsumerRequest, Columns):
    """Whole rendered conversations; token ids and messages will do as well. Labels are not read.

    Prompts say where the responses begin: where a text begins with its prompt, or with what decoding makes of it.
    """

    query: Annotated[list[AnyForm], Field(max_length=MAX_ITEMS, fail_fast=True)]
    prompts: Annotated[list[Any], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    labels: Annotated[list[Any], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None

    def inputs(self) -> list[Input]:
        """The texts, each with its prompt where the request says which that is."""
        inputs = [input_of(form, self.columns()) for form in self.query]
        prompts = self.prompts or []
        if len(prompts) != len(self.query):  # which prompt is whose is unknown
            prompts = [None] * len(self.query)
        return [
            PromptedText(found, prompt) if isinstance(found, str) and isinstance(prompt, str) else found
            for found, prompt in zip(inputs, prompts, strict=True)
        ]


class GetRewardResponse(BaseModel):
    """The rewards, twice: `scores` is what OpenRLHF filters by."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def router(service: RewardService) -> APIRouter:
    """`POST /get_reward`."""
    routes = APIRouter(tags=["OpenRLHF"], route_class=route_class(service))

    @routes.post("/get_reward")
    async def get_reward(request: GetRewardRequest) -> GetRewardResponse:
        """Score rendered texts."""
        rewards = [reward for reward, _ in await service.scored(request.inputs)]
        return GetRewardResponse(rewards=rewards, scores=rewards, extra_logs={})

    return routes
