"""OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`): takes rendered texts, returns
rewards.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.bodies import route_class
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import AnyForm, Columns, ConsumerRequest, input_of
from hafrm.serving.reading import Input, PromptedText
from hafrm.serving.service import RewardService


class GetRewardRequest(ConsumerRequest, Columns):
    """Whole rendered conversations; token ids and messages are accepted too. Labels are ignored.

    A prompt shows where its response begins, if the text begins with the prompt or its decoded form.
    """

    query: Annotated[list[AnyForm], Field(max_length=MAX_ITEMS, fail_fast=True)]
    prompts: Annotated[list[Any], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    labels: Annotated[list[Any], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None

    def inputs(self) -> list[Input]:
        """Return the texts, each with its prompt if the request has one for every text."""
        inputs = [input_of(form, self.columns()) for form in self.query]
        prompts = self.prompts or []
        if len(prompts) != len(self.query):  # prompts can't be assigned to texts
            prompts = [None] * len(self.query)
        return [
            PromptedText(found, prompt) if isinstance(found, str) and isinstance(prompt, str) else found
            for found, prompt in zip(inputs, prompts, strict=True)
        ]


class GetRewardResponse(BaseModel):
    """The rewards, twice: OpenRLHF filters by `scores`."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def router(service: RewardService) -> APIRouter:
    """Return the router of `POST /get_reward`."""
    routes = APIRouter(tags=["OpenRLHF"], route_class=route_class(service))

    @routes.post("/get_reward")
    async def get_reward(request: GetRewardRequest) -> GetRewardResponse:
        """Score rendered texts."""
        rewards = [reward for reward, _ in await service.scored(request.inputs)]
        return GetRewardResponse(rewards=rewards, scores=rewards, extra_logs={})

    return routes
