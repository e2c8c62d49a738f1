"""Per-token numbers aligned with a response's text, which is split into pieces, each with the number of its token.

Tokens are not simply pieces of text: a character may be split over several tokens, a tokenizer may exclude spaces from
a token's offsets, and a chat template adds its own text. Therefore a token's text extends from the end of the
previous token to its own end; a token without remaining text, because it completes a character, adds its number to the
previous piece; and everything outside the messages belongs to the template. A reward of the response so far replaces
that of the previous piece instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from hafrm.pairs import Conversation, Message, Prompt
from hafrm.templates import TemplateRefusalError, render

Piece = tuple[str, float | None]
"""A piece of text and its number; None if it contains no token that the model read."""

_Span = tuple[int, int, float]
"""Start and end of a token's text in the rendered conversation, and its number."""


@dataclass(frozen=True)
class TokenRatios:
    """A response's tokens, each with log pi(token) - log pi_ref(token); the sum is the response's log-ratio."""

    turns: tuple[tuple[Piece, ...], ...]
    """Pieces of each message of the response, which join to its content."""
    template: float
    """Sum over the chat template's tokens, such as the end of a turn."""


@dataclass(frozen=True)
class TokenRewards(TokenRatios):
    """A reward, divided among the response's tokens as far as it comes from the policy head."""

    reward: float
    """The reward: the sum over all tokens, plus the reward head's part, which belongs to no token."""

    @property
    def divided(self) -> bool:
        """Whether any piece of text has a number."""
        return any(value is not None for pieces in self.turns for _, value in pieces)


@dataclass(frozen=True)
class PrefixRewards:
    """The reward head's reward of a response so far, after each of its tokens."""

    turns: tuple[tuple[Piece, ...], ...]
    """Pieces of each message of the response, which join to its content."""
    reward: float
    """The reward of the whole response, with what the chat template adds."""


def align_with_text(
    tokenizer: Any, conversation: Conversation, start: int, ids: Sequence[int], values: Sequence[float]
) -> TokenRatios | None:
    """Align the numbers of a response's tokens with its messages; None if `text_pieces` finds no pieces.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        start: Number of tokens before the response.
        ids: The response's tokens, as read by the model.
    """
    turns = text_pieces(tokenizer, conversation, start, ids, values)
    if turns is None:
        return None
    inside = sum(value for pieces in turns for _, value in pieces if value is not None)
    return TokenRatios(turns, sum(values) - inside)


def text_pieces(
    tokenizer: Any,
    conversation: Conversation,
    start: int,
    ids: Sequence[int],
    values: Sequence[float],
    merged: Callable[[float, float], float] = operator.add,
) -> tuple[tuple[Piece, ...], ...] | None:
    """Return the pieces of each message of a response, with the numbers of their tokens.

    Args:
        tokenizer: As for `align_with_text`, as are the arguments up to `values`.
        merged: Computes the number of a piece of several tokens, from those so far and the next one.

    Returns:
        The pieces; None if the tokenizer gives no offsets (those written in Python), or if its template changes
        messages so that they can't be found in the rendered text.
    """
    (rendered,) = render(tokenizer, [(conversation.prompt, conversation.response)])
    places = _places(tokenizer, conversation, rendered)
    if places is None or not getattr(tokenizer, "is_fast", False):
        return None
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    read = slice(start, start + len(ids))
    if list(encoded["input_ids"][read]) != list(ids):
        return None
    ends = [end for _, end in encoded["offset_mapping"]]
    ends[-1] = len(rendered)
    spans = list(_spans(max(ends[:start], default=0), ends[read], values, merged))
    return tuple(
        tuple(_pieces(spans, place, message.content, rendered))
        for place, message in zip(places, conversation.response, strict=True)
    )


def _places(tokenizer: Any, conversation: Conversation, rendered: str) -> list[tuple[int, int]] | None:
    """Locate each message of the response in the rendered text, without white space that templates strip."""
    places: list[tuple[int, int]] = []
    for number, message in enumerate(conversation.response):
        before = (conversation.prompt, conversation.response[:number])
        least = places[-1][1] if places else 0
        core = message.content if message.content in rendered else message.content.strip()
        starts = (rendered.find(core, max(least, at)) for at in _openings(tokenizer, before, rendered))
        begin = next((start for start in starts if start >= 0), None)
        if begin is None:
            return None
        places.append((begin, begin + len(core)))
    return places


def _openings(tokenizer: Any, before: tuple[Prompt, Sequence[Message]], rendered: str) -> Iterator[int]:
    """Yield where the next message may start: after the opening of an assistant turn, or after the previous turns."""
    for opening in (True, False):
        try:
            (text,) = render(tokenizer, [before], opening=opening)
        except TemplateRefusalError:  # the template may refuse these turns alone
            continue
        yield common_beginning(text, rendered)


def common_beginning(first: str, second: str) -> int:
    """Return the length of the common beginning of two texts."""
    if second.startswith(first):
        return len(first)
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))


def _spans(
    begin: int, ends: Sequence[int], values: Sequence[float], merged: Callable[[float, float], float]
) -> Iterator[_Span]:
    """Yield the text of each token; tokens without text are merged into the previous token."""
    waiting: _Span | None = None
    for end, value in zip(ends, values, strict=True):
        if waiting is not None and end > waiting[1]:
            yield waiting
            waiting = (waiting[1], end, value)
        elif waiting is not None:
            waiting = (*waiting[:2], merged(waiting[2], value))
        else:
            waiting = (begin, max(begin, end), value)
    if waiting is not None:
        yield waiting


def _pieces(spans: Sequence[_Span], place: tuple[int, int], content: str, rendered: str) -> Iterator[Piece]:
    """Yield a message's text in pieces; those without a token have no number."""
    low, high = place
    stripped = content.find(rendered[low:high])
    at = low
    if stripped:
        yield content[:stripped], None
    for begin, end, value in spans:
        if begin < high and end > low:
            if begin > at:
                yield rendered[at:begin], None
            at = min(end, high)
            yield rendered[max(begin, low) : at], value
    if rest := content[stripped + at - low :]:
        yield rest, None
