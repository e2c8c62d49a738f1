"""OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`): rendered texts in, rewards out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import ConsumerRequest, Text
from hafrm.serving.service import RewardService

__all__ = ["router"]


class GetRewardRequest(ConsumerRequest):
    """Whole rendered conversations. Prompts and labels are not read: the text holds all that is scored."""

    query: Annotated[list[Text], Field(max_length=MAX_ITEMS)]
    prompts: Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = None
    labels: Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = None


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
        rewards = [reward for reward, _ in await service.scored(request.query)]
        return GetRewardResponse(rewards=rewards, scores=rewards, extra_logs={})

    return routes
