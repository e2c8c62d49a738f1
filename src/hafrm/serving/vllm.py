"""The protocols of vLLM, and those of SGLang that differ, as called by verl, rerankers and OpenAI clients.

`/classify`, `/score` and `/rerank` return sigma(reward), or the reward itself if the request has `use_activation:
false`; `/pooling` returns the reward unless the field is true; `/v1/embeddings` returns the reward. The defaults of
vLLM depend on its version and on the model (it does not activate models whose config has `problem_type: regression`,
such as hafrm's exports), so clients should always send the field.
"""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from hafrm.errors import printable
from hafrm.pairs import Prompt
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.errors import RequestError
from hafrm.serving.messages import (
    Bare,
    Columns,
    ConsumerRequest,
    Ids,
    Text,
    Tools,
    Turns,
    answered,
    conversation,
    input_of,
    prompt_alone,
)
from hafrm.serving.protocol import Protocol, best_first, shown
from hafrm.serving.reading import Input, Reader
from hafrm.serving.service import Scored
from hafrm.serving.tei import TeiRanked, tei_ranking
from hafrm.templates import TemplateRefusalError, render

Activation = Annotated[bool | None, Field(validation_alias=AliasChoices("use_activation", "activation", "softmax"))]


class _Request(ConsumerRequest):
    """Common fields of vLLM's requests."""

    use_activation: Activation = None
    truncate_prompt_tokens: int | None = None

    @property
    def limit(self) -> int | None:
        """See `ScoringRequest`."""
        return self.truncate_prompt_tokens


class PoolingRequest(_Request, Columns):
    """Rendered texts, their token ids, or one conversation, which may end in the prompt."""

    input: Text | Ids | Annotated[list[Text | Ids], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    messages: Turns | None = None

    def inputs(self, bare: Bare) -> list[Input]:
        """Return the inputs to score; raise RequestError unless there is exactly one of `input` and `messages`."""
        if (self.input is None) == (self.messages is None):
            raise RequestError(400, "bad_request", "Send either `input` or `messages`.")
        columns = self.columns()
        if self.messages is None:
            single = isinstance(self.input, str) or all(isinstance(item, int) for item in self.input or ["none"])
            return [input_of(form, columns) for form in ([self.input] if single else self.input or [])]  # type: ignore[arg-type]
        if self.messages and self.messages[-1].role == "user":
            return [prompt_alone(self.messages, columns)]
        return [conversation(self.messages[:-1], self.messages[-1:], columns)]


class Usage(BaseModel):
    """Tokens of the request, in OpenAI's format."""

    prompt_tokens: int
    total_tokens: int


class _Answer(BaseModel):
    id: str = Field(default_factory=lambda: f"hafrm-{uuid.uuid4().hex}")
    model: str
    usage: Usage


class _List(_Answer):
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))


class ClassifyItem(BaseModel):
    """One text's only class."""

    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class ClassifyResponse(_List):
    """One class per text, in order."""

    data: list[ClassifyItem]


class ClassifyRequest(PoolingRequest):
    """As `PoolingRequest`; SGLang's clients send rendered texts as `text`, and get rewards as `embedding`."""

    text: Text | Annotated[list[Text], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None

    def inputs(self, bare: Bare) -> list[Input]:
        """Return the inputs to score."""
        if self.text is None or self.input is not None or self.messages is not None:
            return super().inputs(bare)
        return [self.text] if isinstance(self.text, str) else list(self.text)


class MetaInfo(BaseModel):
    """SGLang's description of an answer."""

    prompt_tokens: int


class SglangItem(BaseModel):
    """One text's reward in SGLang's format."""

    embedding: list[float]
    meta_info: MetaInfo


def _classify(request: ClassifyRequest, scored: Scored) -> ClassifyResponse | list[SglangItem] | SglangItem:
    """Score texts or a conversation as a classifier with one class."""
    if request.text is not None:
        pairs = zip(scored.rewards, scored.outcomes, strict=True)
        sglang = [SglangItem(embedding=[r], meta_info=MetaInfo(prompt_tokens=o.reading.tokens)) for r, o in pairs]
        return sglang[0] if isinstance(request.text, str) else sglang
    values = shown(scored.rewards, activated=request.use_activation is not False)
    items = [ClassifyItem(index=i, probs=[value]) for i, value in enumerate(values)]
    return ClassifyResponse(model=scored.model.name, usage=_usage(scored), data=items)


class PoolingItem(BaseModel):
    """One text's pooled output: its reward."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]


class PoolingResponse(_List):
    """One output per text, in order."""

    data: list[PoolingItem]


def _pooling(request: PoolingRequest, scored: Scored) -> PoolingResponse:
    """Score texts or a conversation."""
    values = shown(scored.rewards, activated=request.use_activation is True)
    items = [PoolingItem(index=i, data=[value]) for i, value in enumerate(values)]
    return PoolingResponse(model=scored.model.name, usage=_usage(scored), data=items)


class EmbeddingsRequest(PoolingRequest):
    """As `PoolingRequest`. OpenAI's client asks for `base64`: little-endian float32."""

    encoding_format: Literal["float", "base64"] | None = None


class EmbeddingItem(BaseModel):
    """One text's reward, as an embedding with one number."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingsResponse(_List):
    """One embedding per text, in order."""

    data: list[EmbeddingItem]


def _embeddings(request: EmbeddingsRequest, scored: Scored) -> EmbeddingsResponse:
    """Score texts or a conversation; an embedding is the reward."""
    coded = request.encoding_format == "base64"
    items = [
        EmbeddingItem(index=i, embedding=base64.b64encode(struct.pack("<f", reward)).decode() if coded else [reward])
        for i, reward in enumerate(scored.rewards)
    ]
    return EmbeddingsResponse(model=scored.model.name, usage=_usage(scored), data=items)


class Document(BaseModel):
    """A document as an object."""

    text: Text


Documents = Annotated[list[Text | Document], Field(max_length=MAX_ITEMS, fail_fast=True)]


def _texts(documents: str | Document | Sequence[str | Document]) -> list[str]:
    """Return the texts of one document or several."""
    several = [documents] if isinstance(documents, str | Document) else documents
    return [document if isinstance(document, str) else document.text for document in several]


class ScoreRequest(_Request, Tools):
    """Prompts and responses: one prompt for all responses, or one for each."""

    queries: Annotated[
        Text | Annotated[list[Text], Field(max_length=MAX_ITEMS, fail_fast=True)],
        Field(validation_alias=AliasChoices("queries", "text_1", "data_1")),
    ]
    documents: Annotated[
        Text | Document | Documents, Field(validation_alias=AliasChoices("documents", "items", "text_2", "data_2"))
    ]

    def inputs(self, bare: Bare) -> list[Input]:
        """Return each document as a response to its query; raise RequestError if their numbers don't fit together."""
        texts = _texts(self.documents)
        queries = [self.queries] if isinstance(self.queries, str) else self.queries
        if len(queries) == 1:
            queries = queries * len(texts)
        if len(queries) != len(texts):
            raise RequestError(
                400,
                "bad_request",
                f"Send one query, or as many as documents: there are {len(queries)} and {len(texts)}.",
            )
        return [answered(query, text, bare, _tools(self)) for query, text in zip(queries, texts, strict=True)]


class ScoreItem(BaseModel):
    """One pair's score."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(_List):
    """One score per pair, in order."""

    data: list[ScoreItem]


def _score(request: ScoreRequest, scored: Scored) -> ScoreResponse:
    """Score responses to prompts."""
    values = shown(scored.rewards, activated=request.use_activation is not False)
    items = [ScoreItem(index=i, score=value) for i, value in enumerate(values)]
    return ScoreResponse(model=scored.model.name, usage=_usage(scored), data=items)


class RerankRequest(_Request, Tools):
    """A prompt and the responses to rank. text-embeddings-inference's clients send them as `texts`."""

    query: Text | Turns
    documents: Text | Document | Documents | None = None
    top_n: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """Number of responses to return; 0: all."""
    texts: Annotated[list[Text], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None

    @property
    def limit(self) -> int | None:
        """See `ScoringRequest`."""
        return -1 if self.truncate else self.truncate_prompt_tokens

    def inputs(self, bare: Bare) -> list[Input]:
        """Return each document as a response; raise RequestError unless either `documents` or `texts` is sent."""
        if (self.documents is None) == (self.texts is None):
            raise RequestError(400, "bad_request", "Send either `documents` or `texts`.")
        return [answered(self.query, text, bare, _tools(self)) for text in self.texts or _texts(self.documents or [])]


class RerankItem(BaseModel):
    """One document with its index in the request."""

    index: int
    document: Document
    relevance_score: float


class RerankResponse(_Answer):
    """The documents, the most relevant first."""

    results: list[RerankItem]


def _rerank(request: RerankRequest, scored: Scored) -> RerankResponse | list[TeiRanked]:
    """Order responses to a prompt, the best first."""
    if request.texts is not None:
        return tei_ranking(request.texts, scored.rewards, raw=request.raw_scores, with_text=request.return_text)
    texts = _texts(request.documents or [])
    values = shown(scored.rewards, activated=request.use_activation is not False)
    items = [
        RerankItem(index=i, document=Document(text=texts[i]), relevance_score=values[i])
        for i in best_first(scored.rewards)[: request.top_n or None]
    ]
    return RerankResponse(model=scored.model.name, usage=_usage(scored), results=items)


class TokenizeRequest(ConsumerRequest, Columns):
    """A text, or messages to render with the model's chat template."""

    prompt: Text | None = None
    messages: Turns | None = None
    add_special_tokens: bool | None = None
    """Default: true for a text, false for messages."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = None


class TokenizeResponse(BaseModel):
    """Token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


def _tokenize(request: TokenizeRequest, reader: Reader) -> TokenizeResponse:
    """Tokenize a text or a conversation."""
    tokenizer: Any = reader.encoder.tokenizer
    if (request.prompt is None) == (request.messages is None):
        raise RequestError(400, "bad_request", "Send either `prompt` or `messages`.")
    text, special = request.prompt, request.add_special_tokens is not False
    if request.messages is not None:
        text, special = _rendered(request, tokenizer), request.add_special_tokens is True
    ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    strings = tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
    return TokenizeResponse(count=len(ids), max_model_len=reader.encoder.max_length, tokens=ids, token_strs=strings)


def _rendered(request: TokenizeRequest, tokenizer: Any) -> str:
    found = prompt_alone(request.messages or [], request.columns())
    if not isinstance(found, Prompt):
        raise RequestError(400, found.reason, f"The messages can't be rendered: {found.fault or found.reason}")
    try:
        (text,) = render(tokenizer, [(found, ())], opening=request.add_generation_prompt)
    except TemplateRefusalError as error:
        raise RequestError(400, "refused_by_template", printable(str(error))) from error
    return text


class DetokenizeRequest(ConsumerRequest):
    """Token ids."""

    tokens: Ids


class DetokenizeResponse(BaseModel):
    """Their text."""

    prompt: str


def _detokenize(request: DetokenizeRequest, reader: Reader) -> DetokenizeResponse:
    """Decode token ids."""
    tokenizer: Any = reader.encoder.tokenizer
    if not all(0 <= token < len(tokenizer) for token in request.tokens):
        raise RequestError(400, "wrong_type", f"Token ids are from 0 to {len(tokenizer) - 1}.")
    return DetokenizeResponse(prompt=tokenizer.decode(request.tokens, skip_special_tokens=False))


def _usage(scored: Scored) -> Usage:
    return Usage(prompt_tokens=scored.tokens, total_tokens=scored.tokens)


def _tools(request: Tools) -> dict[str, Any]:
    return {"tools": request.tools, "chat_template_kwargs": request.chat_template_kwargs}


_MESSAGES = {
    "messages": [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine, thanks."}],
}
_RAW = {"use_activation": False}

VLLM = (
    Protocol("vLLM", ["/classify"], _classify, _MESSAGES | _RAW),
    Protocol("vLLM", ["/pooling"], _pooling, _MESSAGES),
    Protocol("vLLM", ["/v1/embeddings"], _embeddings, {"input": "rendered text"}),
    Protocol("vLLM", ["/score", "/v1/score"], _score, {"queries": "How are you?", "documents": ["Fine."]} | _RAW),
    Protocol(
        "vLLM",
        ["/rerank", "/v1/rerank", "/v2/rerank"],
        _rerank,
        {"query": "How are you?", "documents": ["Fine.", "Go away."]} | _RAW,
    ),
    Protocol("vLLM", ["/tokenize"], _tokenize, {"prompt": "Fine, thanks."}, scores=False),
    Protocol("vLLM", ["/detokenize"], _detokenize, {"tokens": [1, 2, 3]}, scores=False),
)
