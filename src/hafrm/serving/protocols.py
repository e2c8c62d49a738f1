"""The protocols, each with its requests, responses and routes.

- hafrm's own, `/v1/rewards`: takes conversations, returns rewards, tokens, and reasons for missing rewards.
- OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`): takes rendered texts.
- LLaMA-Factory's (`reward_model_type: api`, `reward_model: http://HOST:PORT/v1/score/evaluation`): LLaMA-Factory posts
  to exactly this URL, whose path is that of its own server.
- vLLM's `/classify`, `/pooling` and `/rerank`, as called by verl and rerankers. `/classify` and `/rerank` return
  sigma(reward), or the reward itself if the request has `use_activation: false`; `/pooling` returns the reward unless
  the field is true. The defaults of vLLM depend on its version and on the model (it does not activate models whose
  config has `problem_type: regression`, such as hafrm's exports), so clients should always send the field.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Field

from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.errors import RequestError
from hafrm.serving.messages import (
    AnyForm,
    Columns,
    ConsumerRequest,
    Ids,
    Name,
    StrictBody,
    Text,
    Tools,
    Turn,
    Turns,
    conversation,
    input_of,
)
from hafrm.serving.reading import Input, PromptedText
from hafrm.serving.requests import route_class
from hafrm.serving.service import Outcome, RewardService

Activation = Annotated[bool | None, Field(validation_alias=AliasChoices("use_activation", "activation", "softmax"))]


class ConversationBody(StrictBody, Columns):
    """A prompt and one response to it; the response begins and ends with an assistant turn."""

    prompt: Turns
    response: Turns
    system: Text | None = None
    """The system turn, if the prompt does not begin with one, as in rows on disk."""


class RewardsRequest(StrictBody):
    """Conversations to score. A prompt that several of them share is encoded once."""

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


class GetRewardRequest(ConsumerRequest, Columns):
    """Whole rendered conversations; token ids and messages are accepted too. Labels are ignored.

    If a text begins with its prompt, rendered or decoded, the prompt shows where the response begins.
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


class _Request(ConsumerRequest):
    """Common fields of vLLM's requests. Unsupported fields that would change a reward are declared to be refused."""

    model: Name | None = None
    use_activation: Activation = None
    truncate_prompt_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Text | None = None

    def require_supported(self) -> None:
        """Raise for fields that would change the reward.

        Raises:
            RequestError: a field is neither left out nor at its default.
        """
        for name in _UNSUPPORTED:
            value = getattr(self, name)
            if value is not None and value is not False:
                raise RequestError(
                    400,
                    "unsupported",
                    f"`{name}` is not supported: conversations are scored whole, with the model's own template and "
                    f"limit. {_INSTEAD.get(name, 'Leave it out.')}",
                )


_UNSUPPORTED = (
    "truncate_prompt_tokens",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
)
_INSTEAD = {
    "truncate_prompt_tokens": "Leave it out: with `--score.overlong truncate`, the server truncates.",
    "chat_template": "Leave it out: start the server with `--score.chat_template` to use another one.",
}


class PoolingRequest(_Request, Columns):
    """Rendered texts, their token ids, or one conversation that ends in an assistant turn."""

    input: Text | Ids | Annotated[list[Text | Ids], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    messages: Turns | None = None

    def inputs(self) -> list[Input]:
        """Return the inputs to score.

        Raises:
            RequestError: there is not exactly one of `input` and `messages`, or an unsupported field.
        """
        self.require_supported()
        if (self.input is None) == (self.messages is None):
            raise RequestError(400, "bad_request", "Send either `input` or `messages`.")
        columns = self.columns()
        if self.messages is not None:
            return [conversation(self.messages[:-1], self.messages[-1:], columns)]
        single = isinstance(self.input, str) or all(isinstance(item, int) for item in self.input or ["none"])
        return [input_of(form, columns) for form in ([self.input] if single else self.input or [])]  # type: ignore[arg-type]


class RerankRequest(_Request, Tools):
    """A prompt and the responses to rank."""

    query: Text | Turns
    documents: Annotated[list[Text], Field(max_length=MAX_ITEMS, fail_fast=True)]
    top_n: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Number of responses to return; 0: all."""

    def inputs(self, bare: Callable[[str], str]) -> list[Input]:
        """Return each document as a response to the query.

        Args:
            bare: Strips the stop token from generated text.

        Raises:
            RequestError: there is an unsupported field.
        """
        self.require_supported()
        prompt = [Turn(role="user", content=self.query)] if isinstance(self.query, str) else self.query
        answers = (Turn(role="assistant", content=bare(text)) for text in self.documents)
        columns = {"tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}
        return [conversation(prompt, [answer], columns) for answer in answers]


class Usage(BaseModel):
    """Tokens of the request, in OpenAI's format."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class _Answer(BaseModel):
    id: str = Field(default_factory=lambda: f"hafrm-{uuid.uuid4().hex}")
    model: str
    usage: Usage


class ClassifyItem(BaseModel):
    """One text's only class."""

    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class ClassifyResponse(_Answer):
    """One class per text, in order."""

    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    data: list[ClassifyItem]


class PoolingItem(BaseModel):
    """One text's pooled output: its reward."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]


class PoolingResponse(_Answer):
    """One output per text, in order."""

    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    data: list[PoolingItem]


class RerankDocument(BaseModel):
    """A document as it was sent."""

    text: str


class RerankItem(BaseModel):
    """One document with its index in the request."""

    index: int
    document: RerankDocument
    relevance_score: float


class RerankResponse(_Answer):
    """The documents, the most relevant first."""

    results: list[RerankItem]


def router(service: RewardService) -> APIRouter:
    """Return the routes of all protocols."""
    routes = APIRouter(route_class=route_class(service))
    scored = partial(_scored, service)

    @routes.post("/v1/rewards", tags=["hafrm"])
    async def rewards(request: RewardsRequest) -> RewardsResponse:
        """Score conversations."""
        found = await service.outcomes(request.inputs)
        return RewardsResponse(model=service.name, rewards=[_reward_body(outcome) for outcome in found])

    @routes.post("/get_reward", tags=["OpenRLHF"])
    async def get_reward(request: GetRewardRequest) -> GetRewardResponse:
        """Score rendered texts."""
        found, _ = await scored(request.inputs)
        return GetRewardResponse(rewards=found, scores=found, extra_logs={})

    @routes.post("/v1/score/evaluation", tags=["LLaMA-Factory"])
    async def score(request: ScoreRequest) -> ScoreResponse:
        """Score rendered texts."""
        found, _ = await scored(request.inputs)
        return ScoreResponse(model=service.name, scores=found)

    _add_vllm(routes, service)
    return routes


def _add_vllm(routes: APIRouter, service: RewardService) -> None:
    scored = partial(_scored, service)

    @routes.post("/classify", tags=["vLLM"])
    async def classify(request: PoolingRequest) -> ClassifyResponse:
        """Score texts as a classifier with one class."""
        found, usage = await scored(request.inputs)
        shown = _shown(found, activated=request.use_activation is not False)
        items = [ClassifyItem(index=i, probs=[value]) for i, value in enumerate(shown)]
        return ClassifyResponse(model=service.name, usage=usage, data=items)

    @routes.post("/pooling", tags=["vLLM"])
    async def pooling(request: PoolingRequest) -> PoolingResponse:
        """Score texts."""
        found, usage = await scored(request.inputs)
        shown = _shown(found, activated=request.use_activation is True)
        items = [PoolingItem(index=i, data=[value]) for i, value in enumerate(shown)]
        return PoolingResponse(model=service.name, usage=usage, data=items)

    @routes.post("/rerank", tags=["vLLM"])
    @routes.post("/v1/rerank", include_in_schema=False)
    @routes.post("/v2/rerank", include_in_schema=False)
    async def rerank(request: RerankRequest) -> RerankResponse:
        """Order responses to a prompt, the best first."""
        found, usage = await scored(lambda: request.inputs(service.bare_response))
        shown = _shown(found, activated=request.use_activation is not False)
        order = sorted(range(len(found)), key=lambda i: (-found[i], i))  # sigma rounds to 1 for all large rewards
        items = [
            RerankItem(index=i, document=RerankDocument(text=request.documents[i]), relevance_score=shown[i])
            for i in order[: request.top_n or None]
        ]
        return RerankResponse(model=service.name, usage=usage, results=items)


async def _scored(service: RewardService, inputs: Callable[[], list[Input]]) -> tuple[list[float], Usage]:
    """Score inputs, all of which must have a reward; also return their tokens."""
    found = await service.scored(inputs)
    tokens = sum(reading.tokens for _, reading in found)
    return [reward for reward, _ in found], Usage(prompt_tokens=tokens, total_tokens=tokens)


def _reward_body(outcome: Outcome) -> RewardBody:
    reading = outcome.reading
    return RewardBody(
        reward=outcome.reward,
        tokens=reading.tokens,
        truncated=reading.truncated,
        unscored=reading.unscored,
        fault=reading.fault or None,
    )


def _shown(rewards: list[float], *, activated: bool) -> list[float]:
    return [_sigmoid(reward) for reward in rewards] if activated else rewards


def _sigmoid(value: float) -> float:
    """Compute sigma without overflow at either end."""
    small = math.exp(-abs(value))
    return 1 / (1 + small) if value >= 0 else small / (1 + small)
