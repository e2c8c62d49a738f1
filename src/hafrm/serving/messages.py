"""Parts of requests that several protocols share: texts, token ids, turns, and further input of chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hafrm.contract import parse_conversation
from hafrm.errors import BadRowError, printable
from hafrm.pairs import TEMPLATE_COLUMNS, Prompt
from hafrm.rows import MEDIA_COLUMNS, TEXT_PARTS, UNRENDERED_COLUMNS, Row
from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.errors import RequestError
from hafrm.serving.reading import Input, TokenIds, Unfit

Text = Annotated[str, Field(max_length=2**24)]
Name = Annotated[str, Field(max_length=1024)]
"""A model's name in a request; only a server with several models reads it."""
Ids = Annotated[list[int], Field(max_length=2**20, fail_fast=True)]
"""A conversation as token ids of the served model's tokenizer."""

Bare = Callable[[str], str]
"""Strips the stop token from generated text."""

_Values = dict[str, Any]
Values = Annotated[list[_Values], Field(max_length=MAX_ITEMS, fail_fast=True)]


class StrictBody(BaseModel):
    """A body that refuses unknown fields. Only the first of them is reported."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_more_strangers(cls, sent: Any) -> Any:
        if not isinstance(sent, dict) or len(sent) <= len(cls.model_fields):
            return sent
        first = next(name for name in sent if name not in cls.model_fields)
        return {name: value for name, value in sent.items() if name == first or name in cls.model_fields}


class ScoringRequest(BaseModel):
    """A request of any protocol that scores."""

    model: Name | None = None

    @property
    def limit(self) -> int | None:
        """Number of tokens to which conversations are truncated, -1: the model's limit; None: the server's rule."""
        return None

    @property
    def divides(self) -> bool:
        """Whether rewards per token are wanted; inputs are then conversations."""
        return False

    def inputs(self, bare: Bare) -> list[Input]:
        """Return the inputs to score; raise RequestError if the request can't be answered."""
        raise NotImplementedError


class TextPart(StrictBody):
    """A text part of a turn's content; other kinds are not supported."""

    type: Literal["text", "input_text", "output_text"]
    text: Text


class Turn(StrictBody):
    """One turn of a conversation, with the keys that rows on disk may have."""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, sent: Any) -> Any:
        """Treat null as absent, also for unknown keys, as in rows on disk. Refuse images and audio."""
        if not isinstance(sent, dict):
            return sent
        parts = sent.get("content")
        for part in parts if isinstance(parts, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in TEXT_PARTS:
                raise ValueError(
                    f"a content part is of type {printable(kind, 40)!r}: only text is "
                    "scored, not images, audio or video. Leave out the conversation, or the part."
                )
        return {key: value for key, value in sent.items() if value is not None}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    name: Text | None = None
    tool_calls: Values | None = None
    tool_call_id: Text | None = None
    tool_responses: Values | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    thinking: Text | None = None

    def as_row(self) -> _Values:
        """Return the turn as a row's message."""
        row: _Values = {name: getattr(self, name) for name in type(self).model_fields}
        if isinstance(self.content, list):
            row["content"] = [{"type": "text", "text": part.text} for part in self.content]
        return row


Turns = Annotated[list[Turn], Field(max_length=MAX_ITEMS, fail_fast=True)]


class Tools(BaseModel):
    """Input of the chat template other than documents, as values or as JSON text, as in rows on disk."""

    tools: Values | Text | None = None
    chat_template_kwargs: _Values | Text | None = None


class Columns(Tools):
    """All further input of the chat template, as values or as JSON text, as in rows on disk."""

    documents: Values | Text | None = None

    def columns(self) -> _Values:
        """Return the columns that were sent."""
        return {name: getattr(self, name) for name in TEMPLATE_COLUMNS}


class ConsumerRequest(ScoringRequest):
    """A request in another program's format, whose unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _loses_nothing(cls, sent: Any) -> Any:
        """Refuse unknown fields that belong to a conversation, or would change the reward or the response's form."""
        for name in sent if isinstance(sent, dict) else ():
            if name in cls.model_fields:
                continue
            if name in _OF_CONVERSATIONS and sent[name]:
                raise ValueError(f"`{name}` is not read here: put its text into the messages, or leave it out.")
            if name in _NEUTRAL and sent[name] not in (None, *_NEUTRAL[name]):
                raise _unsupported(name)
        return sent


_OF_CONVERSATIONS = {"system", *UNRENDERED_COLUMNS, *MEDIA_COLUMNS}
"""Fields that are part of a conversation, and must not be ignored."""

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (False,),
    "chat_template": (),
    "continue_final_message": (False,),
    "dimensions": (),
    "embed_dtype": ("float32",),
    "encoding_format": ("float",),
    "endianness": ("native", "little"),
    "max_chunks_per_doc": (),
    "max_length": (),
    "max_tokens_per_doc": (0,),
    "max_tokens_per_query": (0,),
    "normalize": (False,),
    "rank_fields": (["text"],),
    "task": ("classify", "embed", "reward", "score"),
    "truncation_direction": ("right", "Right"),
    "truncation_side": ("right",),
}
"""Fields of vLLM, Cohere, text-embeddings-inference and LLaMA-Factory, with the values that change nothing here."""
_INSTEAD = {
    "chat_template": ": start the server with `--score.chat_template` to use another one",
    "max_length": ": start the server with `--score.overlong truncate` to cut long texts",
}


def _unsupported(name: str) -> RequestError:
    other = "".join(f", or send {json.dumps(value)}" for value in _NEUTRAL[name][:1])
    return RequestError(
        400,
        "unsupported",
        f"`{name}` is not supported: conversations are scored whole, with the model's own template, and have one "
        f"reward, a float. Leave it out{_INSTEAD.get(name, other)}.",
    )


AnyForm = Text | Ids | Turns
"""A conversation as rendered text, as token ids, or as messages that end in the response."""


def input_of(form: str | list[int] | list[Turn], columns: Mapping[str, Any]) -> Input:
    """Convert any form of a conversation to the input to score; raise RequestError for columns of a rendered text."""
    turns = [] if isinstance(form, str) else [turn for turn in form if isinstance(turn, Turn)]
    if form and len(turns) == len(form):
        return conversation(turns[:-1], turns[-1:], columns)
    if given := [name for name, value in columns.items() if value]:
        raise RequestError(400, "unsupported", f"`{given[0]}` has no effect on rendered text. Send messages instead.")
    if isinstance(form, str):
        return form
    return TokenIds(tuple(token for token in form if isinstance(token, int)))


def answered(query: str | Sequence[Turn], text: str, bare: Bare, columns: Mapping[str, Any] | None = None) -> Input:
    """Build the conversation of a query, as text or messages, and a generated response."""
    prompt = [Turn(role="user", content=query)] if isinstance(query, str) else query
    return conversation(prompt, [Turn(role="assistant", content=bare(text))], columns)


def prompt_alone(turns: Sequence[Turn], columns: Mapping[str, Any]) -> Prompt | Unfit:
    """Build a prompt to score without a response, or return why it is invalid."""
    try:
        return Row({"prompt": [turn.as_row() for turn in turns], **columns}, "request").prompt()
    except BadRowError as error:
        return Unfit(error.reason.value, printable(error.fault))


def conversation(prompt: Sequence[Turn], response: Sequence[Turn], columns: Mapping[str, Any] | None = None) -> Input:
    """Build a conversation under hafrm's data contract, or return why it is invalid, as in `hafrm score`."""
    row = {"prompt": [turn.as_row() for turn in prompt], "response": [turn.as_row() for turn in response]}
    try:
        return parse_conversation(row | dict(columns or {}), source="request", number=1)
    except BadRowError as error:
        return Unfit(error.reason.value, printable(error.fault))
