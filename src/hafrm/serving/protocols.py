"""The protocols: a table whose entries have paths, a request, a response, and the function between them.

- hafrm's own, `/v1/rewards`: takes conversations, returns rewards, tokens, and reasons for missing rewards.
- OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`): takes rendered texts.
- LLaMA-Factory's (`reward_model_type: api`, `reward_model: http://HOST:PORT/v1/score/evaluation`): LLaMA-Factory posts
  to exactly this URL, whose path is that of its own server.
- those of vLLM, SGLang and text-embeddings-inference: see `vllm` and `tei`.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.messages import (
    AnyForm,
    Bare,
    Columns,
    ConsumerRequest,
    ScoringRequest,
    StrictBody,
    Text,
    Turns,
    conversation,
    input_of,
)
from hafrm.serving.protocol import Protocol
from hafrm.serving.reading import Input, PromptedText
from hafrm.serving.requests import route_class
from hafrm.serving.service import Outcome, RewardService, Scored
from hafrm.serving.tei import TEI
from hafrm.serving.vllm import VLLM


class ConversationBody(StrictBody, Columns):
    """A prompt and one response to it; the response begins and ends with an assistant turn."""

    prompt: Turns
    response: Turns
    system: Text | None = None
    """The system turn, if the prompt does not begin with one, as in rows on disk."""


class RewardsRequest(StrictBody, ScoringRequest):
    """Conversations to score. A prompt that several of them share is encoded once."""

    conversations: Annotated[list[ConversationBody], Field(max_length=MAX_ITEMS, fail_fast=True)]
    tokens: bool = False
    """Whether rewards are also divided among the responses' tokens; needs `--head policy` or `combined`."""

    @property
    def divides(self) -> bool:
        """Whether rewards per token are wanted."""
        return self.tokens

    def inputs(self, bare: Bare) -> list[Input]:
        """Return the inputs to score."""
        return [
            conversation(item.prompt, item.response, {**item.columns(), "system": item.system})
            for item in self.conversations
        ]


class TokenRewardsBody(BaseModel):
    """A reward divided among the response's tokens, as by `hafrm score --tokens`."""

    turns: list[list[tuple[str, float | None]]]
    """The text of each message of the response in pieces, each with its part of the reward; null for text without a
    token that the model read.
    """
    template: float
    """The part of the chat template's tokens, such as the end of a turn."""
    reward: float
    """The whole reward. Its difference from the sum of the parts comes from the reward head."""


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


class DividedRewardBody(RewardBody):
    """One conversation's reward, as a request with `tokens` gets it."""

    token_rewards: TokenRewardsBody | None
    """The divided reward; null if there is no reward."""


class RewardsResponse(BaseModel):
    """One reward per conversation, in the request's order."""

    model: str
    rewards: list[DividedRewardBody | RewardBody]


def _rewards(request: RewardsRequest, scored: Scored) -> RewardsResponse:
    """Score conversations."""
    bodies = [_reward_body(outcome, divided=request.tokens) for outcome in scored.outcomes]
    return RewardsResponse(model=scored.model.name, rewards=bodies)


def _reward_body(outcome: Outcome, *, divided: bool) -> RewardBody:
    reading = outcome.reading
    body = RewardBody(
        reward=outcome.reward,
        tokens=reading.tokens,
        truncated=reading.truncated,
        unscored=reading.unscored,
        fault=reading.fault or None,
    )
    if not divided:
        return body
    tokens = None if outcome.divided is None else TokenRewardsBody(**asdict(outcome.divided))
    return DividedRewardBody(**body.model_dump(), token_rewards=tokens)


class GetRewardRequest(ConsumerRequest, Columns):
    """Whole rendered conversations; token ids and messages are accepted too. Labels are ignored.

    If a text begins with its prompt, rendered or decoded, the prompt shows where the response begins.
    """

    query: Annotated[list[AnyForm], Field(max_length=MAX_ITEMS, fail_fast=True)]
    prompts: Annotated[list[Any], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    labels: Annotated[list[Any], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None

    def inputs(self, bare: Bare) -> list[Input]:
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


def _get_reward(request: GetRewardRequest, scored: Scored) -> GetRewardResponse:
    """Score rendered texts."""
    return GetRewardResponse(rewards=scored.rewards, scores=scored.rewards, extra_logs={})


class EvaluationRequest(ConsumerRequest, Columns):
    """Whole rendered conversations; token ids and messages are accepted too."""

    messages: Annotated[list[AnyForm], Field(max_length=MAX_ITEMS, fail_fast=True)]

    def inputs(self, bare: Bare) -> list[Input]:
        """Return the inputs to score."""
        return [input_of(form, self.columns()) for form in self.messages]


class EvaluationResponse(BaseModel):
    """One score per text."""

    model: str
    scores: list[float]


def _evaluation(request: EvaluationRequest, scored: Scored) -> EvaluationResponse:
    """Score rendered texts."""
    return EvaluationResponse(model=scored.model.name, scores=scored.rewards)


_TURNS = {
    "prompt": [{"role": "user", "content": "How are you?"}],
    "response": [{"role": "assistant", "content": "Fine, thanks."}],
}

PROTOCOLS = (
    Protocol("hafrm", ["/v1/rewards"], _rewards, {"conversations": [_TURNS], "tokens": False}),
    Protocol("OpenRLHF", ["/get_reward"], _get_reward, {"query": ["rendered text"], "prompts": None}),
    Protocol("LLaMA-Factory", ["/v1/score/evaluation"], _evaluation, {"messages": ["rendered text"]}),
    *VLLM,
    *TEI,
)


def router(service: RewardService) -> APIRouter:
    """Return the routes of all protocols, and those of each model, whose paths begin with its name.

    The former win: for a model named `v1`, `/v1/score` is vLLM's path, not `/score` of that model.
    """
    routes = APIRouter(route_class=route_class(service))
    for name in (None, *filter(_PLAIN.fullmatch, service.models)):
        for protocol in PROTOCOLS:
            for path in protocol.paths:
                protocol.add(routes, path if name is None else f"/{name}{path}", service, name)
    return routes


_PLAIN = re.compile(r"[\w./-]+")
"""Names that can begin a path."""
