"""OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`): rendered texts in, rewards out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import ConsumerRequest, Text
from hafrm.serving.reading import Input, PromptedText
from hafrm.serving.service import RewardService

__all__ = ["router"]


class GetRewardRequest(ConsumerRequest):
    """Whole rendered conversations. Labels are not read: the text holds all that is scored.

    Prompts tell of a text that has to be cut whether anything of its response is left.
    """

    query: Annotated[list[Text], Field(max_length=MAX_ITEMS)]
    prompts: Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = None
    labels: Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = None

    def inputs(self) -> list[Input]:
        """The texts, each with its prompt where the request says which that is."""
        prompts = self.prompts or []
        if len(prompts) != len(self.query):  # whose each one is, nobody knows
            return list(self.query)
        return [
            PromptedText(text, prompt) if isinstance(prompt, str) else text
            for text, prompt in zip(self.query, prompts, strict=True)
        ]


class GetRewardResponse(BaseModel):
    """The rewards, twice: `scores` is what OpenRLHF filters by."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def router(service: RewardService) -> APIRouter:
    """`POST /get_reward`."""
    routes = APIRouter(tags=["OpenRLHF"])

    @routes.post("/get_reward")
    async def get_reward(request: GetRewardRequest) -> GetRewardResponse:
        """Score rendered texts."""
        rewards = [reward for reward, _ in await service.scored(request.inputs())]
        return GetRewardResponse(rewards=rewards, scores=rewards, extra_logs={})

    return routes
