"""What the protocols' messages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hafrm.errors import BadRowError
from hafrm.pairs import parse_conversation
from hafrm.serving.reading import Input, Unfit

__all__ = ["ConsumerRequest", "Name", "Role", "Text", "Turn", "conversation"]

MAX_CHARACTERS = 2**24

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Name = Annotated[str, Field(max_length=1024)]
"""A model's name in a request, which is not read: the server has one model."""

Role = Literal["system", "user", "assistant", "tool"]


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Role
    content: Text


class ConsumerRequest(BaseModel):
    """A request of another program's making: fields that it has and we don't know are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore")


def conversation(prompt: Sequence[Turn], response: Sequence[Turn]) -> Input:
    """A conversation under hafrm's data contract, or the reason why it is none, as in `hafrm score`."""
    row = {"prompt": [turn.model_dump() for turn in prompt], "response": [turn.model_dump() for turn in response]}
    try:
        return parse_conversation(row, source="request", number=1)
    except BadRowError as error:
        return Unfit(error.reason.value)
