"""hafrm's own protocol: takes conversations, returns their rewards, tokens, and reasons for missing rewards."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.bodies import route_class
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.protocols.common import Columns, StrictBody, Text, Turns, conversation
from hafrm.serving.reading import Input
from hafrm.serving.service import RewardService


class ConversationBody(StrictBody, Columns):
    """A prompt and one response to it; the response begins and ends with an assistant turn."""

    prompt: Turns
    response: Turns
    system: Text | None = None
    """The system turn, if the prompt does not begin with one, as in rows on disk."""


class RewardsRequest(StrictBody):
    """Conversations to score. Those with the same prompt share its computation."""

    conversations: Annotated[list[ConversationBody], Field(max_length=MAX_ITEMS, fail_fast=True)]

    def inputs(self) -> list[Input]:
        """Return the inputs to score."""
        return [
            conversation(item.prompt, item.response, {**item.columns(), "system": item.system})
            for item in self.conversations
        ]


class RewardBody(BaseModel):
    """One conversation's reward."""

    reward: float | None
    """The reward; null if the conversation has none."""
    tokens: int
    """The conversation's tokens, before truncation; 0 if it could not be rendered."""
    truncated: bool
    """Whether the response's end was cut off."""
    unscored: str | None
    """Why there is no reward: `overlong`, `refused_by_template`, `empty_response`, ..."""
    fault: str | None
    """Details of what is wrong with the conversation and how to fix it, if available."""


class RewardsResponse(BaseModel):
    """One reward per conversation, in the request's order."""

    model: str
    rewards: list[RewardBody]


def router(service: RewardService) -> APIRouter:
    """Return the router of `POST /v1/rewards`."""
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
