"""From the inputs of a request to token ids: conversations by the encoder, rendered texts and token ids by the frame.

A rendered text is first restored to the form that the tokenizer's chat template writes (`hafrm.frame`), so that it gets
the reward of the same conversation sent as messages: the template's beginning and the ending that generated text lacks
are added, and spaces that decoding added are removed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hafrm.encoding import ConversationEncoder, OverlongError, TokenGroup, common_prefix
from hafrm.errors import BadRowReason, printable
from hafrm.frame import frame_of
from hafrm.models.remote import OVERLONG
from hafrm.pairs import Conversation, Prompt
from hafrm.templates import TemplateRefusalError


@dataclass(frozen=True)
class Unfit:
    """Why a conversation is invalid: the value of `unscored` in responses, and an explanation."""

    reason: str
    fault: str = ""


@dataclass(frozen=True)
class PromptedText:
    """A rendered text, and the rendered prompt with which it begins."""

    text: str
    prompt: str


@dataclass(frozen=True)
class TokenIds:
    """A conversation as token ids of this model's tokenizer."""

    ids: tuple[int, ...]


Input = Conversation | Prompt | str | PromptedText | TokenIds | Unfit
"""An input of a request: a conversation, a prompt to score by itself, a rendered text, its token ids, or the reason why
it is invalid.
"""


def characters(item: Input) -> int:
    """Estimate the size of an input, in characters."""
    match item:
        case str():
            return len(item)
        case PromptedText():
            return len(item.text) + len(item.prompt)
        case TokenIds():
            return len(item.ids)
        case Conversation():
            return characters(item.prompt) + sum(len(turn.content) + len(turn.more) for turn in item.response)
        case Prompt():
            return len(item.arguments) + sum(len(turn.content) + len(turn.more) for turn in item.turns)
    return 0


def pieces(inputs: Sequence[Input], size: int) -> Iterator[Sequence[Input]]:
    """Cut inputs, in order, into pieces of at most `size` characters, or of one longer input."""
    start, filled = 0, 0
    for place, item in enumerate(inputs):
        added = _TURN + characters(item)
        if filled + added > size and place > start:
            yield inputs[start:place]
            start, filled = place, 0
        filled += added
    if inputs[start:]:
        yield inputs[start:]


_TURN = 256  # fixed cost of an input, in characters


@dataclass(frozen=True)
class Reading:
    """The result of reading one input."""

    group: TokenGroup | None = None
    """Its token ids; None if it can't be scored."""
    tokens: int = 0
    """Its tokens before truncation; 0 if it has none."""
    truncated: bool = False
    """Whether its end was cut off to fit the limit."""
    dropped: bool = False
    """Whether it is over the limit, and the server is not set to truncate it."""
    unfinished: bool = False
    """Whether it had no stop token at its end, and is scored unchanged."""
    special_tokens: bool = False
    """Whether its messages contain special tokens; see `ScoreOptions.special_tokens`."""
    bordered: bool = True
    """Whether the start of the response is known."""
    unscored: str | None = None
    """Why it can't be scored."""
    fault: str = ""
    """What is wrong with it and how to fix it, in addition to `unscored`; may be empty."""


class Reader:
    """Reads inputs with a scorer's encoder; for one thread at a time, because tokenizers are not thread-safe.

    `stops` are ids of the model's stop tokens, according to its config.
    """

    def __init__(self, encoder: ConversationEncoder, stops: Sequence[int] = ()) -> None:
        self.encoder, self._stops = encoder, stops
        self._strict = replace(self.encoder, overlong="drop")
        self.frame = frame_of(encoder.tokenizer, stops)

    def copy(self) -> Reader:
        """Return a reader for another thread, with a separate tokenizer."""
        return Reader(replace(self.encoder, tokenizer=copy.deepcopy(self.encoder.tokenizer)), self._stops)

    def truncating(self, limit: int) -> Reader:
        """Return a reader for the same thread that truncates conversations to a number of tokens."""
        other = copy.copy(self)
        other.encoder = replace(self.encoder, max_length=limit, overlong="truncate")
        other._strict = replace(other.encoder, overlong="drop")
        return other

    def read(self, inputs: Sequence[Input]) -> list[Reading]:
        """Read a request's inputs, in order."""
        conversations = {i: item for i, item in enumerate(inputs) if isinstance(item, Conversation)}
        items = [(c.prompt, [c.response]) for c in conversations.values()]
        outcomes = dict(zip(conversations, self._strict.encode_many(items), strict=True))
        return [
            self._read_outcome(item, outcomes[i]) if isinstance(item, Conversation) else self._read(item)
            for i, item in enumerate(inputs)
        ]

    def _read(self, item: Prompt | str | PromptedText | TokenIds | Unfit) -> Reading:
        if isinstance(item, Unfit):
            return Reading(unscored=item.reason, fault=item.fault)
        if isinstance(item, Prompt):
            return self._read_prompt(item)
        if isinstance(item, TokenIds):
            rows = len(self.encoder.tokenizer)  # type: ignore[arg-type]
            if not all(0 <= token < rows for token in item.ids):
                fault = f"Token ids of this model are from 0 to {rows - 1}."
                return Reading(tokens=len(item.ids), unscored=BadRowReason.WRONG_TYPE.value, fault=fault)
            if self.encoder.scored_at == "template":
                return self._of_ids(*self.frame.restored_ids(item.ids), border=None)
            item = str(self.frame.tokenizer.decode(item.ids, skip_special_tokens=False))
        if isinstance(item, PromptedText):
            text, prompt, ended = self.frame.restored(item.text, item.prompt)
        else:
            text, prompt, ended = self.frame.restored(item)
        (ids,) = self.encoder.text_ids([self.encoder.ended(text)])
        border = common_prefix([ids[:-1], *self.encoder.text_ids([prompt])]) if prompt else None
        return self._of_ids(ids, ended, border=border)

    def _read_prompt(self, prompt: Prompt) -> Reading:
        try:
            ids, special_tokens = self.encoder.encode_prompt(prompt)
        except TemplateRefusalError as error:
            return self._refused(error)
        return replace(self._of_ids(ids, True, border=None), special_tokens=special_tokens > 0)

    def _refused(self, error: object) -> Reading:
        return Reading(unscored=BadRowReason.REFUSED_BY_TEMPLATE.value, fault=printable(str(error)))

    def _read_outcome(self, conversation: Conversation, outcome: object) -> Reading:
        if isinstance(outcome, TokenGroup):
            return Reading(outcome, outcome.unique_tokens, special_tokens=outcome.special_tokens > 0)
        if not isinstance(outcome, OverlongError):
            return self._refused(outcome)
        if self.encoder.overlong == "drop" or outcome.prompt_alone:
            return self._overlong(outcome.tokens)
        cut = self.encoder.encode(conversation.prompt, [conversation.response])
        return Reading(cut, outcome.tokens, truncated=True, special_tokens=cut.special_tokens > 0)

    def _overlong(self, tokens: int) -> Reading:
        return Reading(tokens=tokens, unscored=OVERLONG, dropped=self.encoder.overlong == "drop")

    def _of_ids(self, ids: list[int], ended: bool, *, border: int | None) -> Reading:
        """Read a whole conversation's ids, of which the first `border` are the prompt's; None if unknown."""
        limit, tokens = self.encoder.max_length, len(ids)
        if tokens < 2:  # a reward needs a token with another before it
            fault = f"It has {tokens} tokens; a reward needs at least two."
            return Reading(tokens=tokens, unscored=BadRowReason.EMPTY_RESPONSE.value, fault=fault)
        truncated = tokens > limit
        if truncated and (self.encoder.overlong == "drop" or (border or 0) >= limit):
            return self._overlong(tokens)
        kept = tuple(ids[:limit])
        start = border or len(kept) - 1
        group = TokenGroup(kept[:start], (kept[start:],))
        return Reading(group, tokens, truncated=truncated, unfinished=not ended, bordered=border is not None)
