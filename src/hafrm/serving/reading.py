"""From what a request holds to token ids: conversations by the encoder's rule, rendered texts as they stand.

A rendered text is tokenized with nothing added, so that what the tokenizer's own chat template renders has exactly the
ids of the conversation. The one exception: a text without the beginning-of-sequence token with which the template
begins gets it, because clients of servers that add this token (verl, for vLLM) take it off before they send.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hafrm.encoding import ConversationEncoder, OverlongError, TemplateRefusalError, TokenGroup, render
from hafrm.errors import BadRowReason
from hafrm.pairs import Conversation

__all__ = ["OVERLONG", "Input", "PromptedText", "Reader", "Reading", "Unfit"]

OVERLONG = "overlong"
"""Why a text over the model's limit has no reward."""


@dataclass(frozen=True)
class Unfit:
    """What is no conversation, and why: a word that stands in answers as `unscored`."""

    reason: str


@dataclass(frozen=True)
class PromptedText:
    """A rendered text whose sender says which rendered prompt it begins with."""

    text: str
    prompt: str


Input = Conversation | str | PromptedText | Unfit
"""What a protocol hands over: a conversation, a rendered text, or the reason why there is neither."""


@dataclass(frozen=True)
class Reading:
    """What became of one input."""

    group: TokenGroup | None = None
    """Its token ids; None where it can't be scored."""
    tokens: int = 0
    """Its tokens before any cut; 0 where it has none."""
    truncated: bool = False
    """Whether its end was cut off."""
    unscored: str | None = None
    """Why it can't be scored."""


class Reader:
    """Reads inputs with a scorer's encoder; one thread at a time, as tokenizers change themselves while they work."""

    def __init__(self, encoder: ConversationEncoder) -> None:
        self.encoder = encoder
        self._strict = replace(encoder, overlong="drop")
        tokenizer: Any = encoder.tokenizer
        self._tokenizer = tokenizer
        self._bos = _template_bos(tokenizer)

    def read(self, inputs: Sequence[Input]) -> list[Reading]:
        """Read a request's inputs, in order."""
        conversations = {i: item for i, item in enumerate(inputs) if isinstance(item, Conversation)}
        items = [(c.prompt, [c.response]) for c in conversations.values()]
        outcomes = dict(zip(conversations, self._strict.encode_many(items), strict=True))
        readings = []
        for i, item in enumerate(inputs):
            if isinstance(item, Unfit):
                readings.append(Reading(unscored=item.reason))
            elif isinstance(item, PromptedText):
                readings.append(self._read_prompted(item))
            elif isinstance(item, str):
                readings.append(self._read_text(item))
            else:
                readings.append(self._read_outcome(item, outcomes[i]))
        return readings

    def _read_outcome(self, conversation: Conversation, outcome: object) -> Reading:
        if isinstance(outcome, TokenGroup):
            return Reading(outcome, outcome.unique_tokens)
        if not isinstance(outcome, OverlongError):
            return Reading(unscored=BadRowReason.REFUSED_BY_TEMPLATE.value)
        if self.encoder.overlong == "drop" or outcome.prompt_alone:
            return Reading(tokens=outcome.tokens, unscored=OVERLONG)
        cut = self.encoder.encode(conversation.prompt, [conversation.response])
        return Reading(cut, outcome.tokens, truncated=True)

    def _read_prompted(self, item: PromptedText) -> Reading:
        """As `_read_text`; but what a cut would leave nothing of the response of has no reward, as in messages."""
        reading = self._read_text(item.text)
        if reading.truncated and len(self._text_ids(item.prompt)) >= self.encoder.max_length:
            return Reading(tokens=reading.tokens, unscored=OVERLONG)
        return reading

    def _read_text(self, text: str) -> Reading:
        ids = self._text_ids(text)
        limit = self.encoder.max_length
        if len(ids) < 2:  # a reward needs a token with something before it
            return Reading(tokens=len(ids), unscored=BadRowReason.EMPTY_RESPONSE.value)
        if len(ids) > limit and self.encoder.overlong == "drop":
            return Reading(tokens=len(ids), unscored=OVERLONG)
        kept = tuple(ids[:limit])
        return Reading(TokenGroup(kept[:-1], (kept[-1:],)), len(ids), truncated=len(ids) > limit)

    def _text_ids(self, text: str) -> list[int]:
        if not text.startswith(self._bos):
            text = self._bos + text
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _template_bos(tokenizer: Any) -> str:
    """The beginning-of-sequence token's text where the chat template begins with it, else nothing."""
    sample = Conversation.of("a", "b")
    try:
        (opening,) = render(tokenizer, [(sample.prompt, sample.response)])
    except TemplateRefusalError:  # of a template that wants other roles: its texts are taken as they come
        return ""
    bos: str | None = tokenizer.bos_token
    return bos if bos and opening.startswith(bos) else ""
