"""hafrm's own protocol: conversations in, rewards out, each with its tokens and the reason where there is none."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.bodies import route_class
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import Columns, StrictBody, Text, Turns, conversation
from hafrm.serving.reading import Input
from hafrm.serving.service import RewardService

__all__ = ["RewardsRequest", "RewardsResponse", "router"]


class ConversationBody(StrictBody, Columns):
    """A prompt and one response to it; the response begins and ends with an assistant turn."""

    prompt: Turns
    response: Turns
    system: Text | None = None
    """The system turn of a prompt that begins with none, as in rows on disk."""


class RewardsRequest(StrictBody):
    """Conversations to score. Those under one prompt share its computation."""

    conversations: Annotated[list[ConversationBody], Field(max_length=MAX_ITEMS, fail_fast=True)]

    def inputs(self) -> list[Input]:
        """What is to be scored."""
        return [
            conversation(item.prompt, item.response, {**item.columns(), "system": item.system})
            for item in self.conversations
        ]


class RewardBody(BaseModel):
    """One conversation's reward."""

    reward: float | None
    """The reward; null where the conversation has none."""
    tokens: int
    """The conversation's tokens, before any cut; 0 where it could not be rendered."""
    truncated: bool
    """Whether the response's end was cut off."""
    unscored: str | None
    """Why there is no reward: `overlong`, `refused_by_template`, `empty_response`, ..."""
    fault: str | None
    """What is wrong with the conversation and what to do about it, where more is known."""


class RewardsResponse(BaseModel):
    """One reward a conversation, in the request's order."""

    model: str
    rewards: list[RewardBody]


def router(service: RewardService) -> APIRouter:
    """`POST /v1/rewards`."""
    routes = APIRouter(tags=["hafrm"], route_class=route_class(service))

    @routes.post("/v1/rewards")
    async def rewards(request: RewardsRequest) -> RewardsResponse:
        """Score conversations."""
        found = await service.outcomes(request.inputs)
        return RewardsResponse(
            model=service.name,
            rewards=[
                RewardBody(
                    reward=outcome.reward,
                    tokens=outcome.reading.tokens,
                    truncated=outcome.reading.truncated,
                    unscored=outcome.reading.unscored,
                    fault=outcome.reading.fault or None,
                )
                for outcome in found
            ],
        )

    return routes
