"""Numbers of tokens laid over the text that people read: a response in pieces, each with the number of its token.

Knows tokenizers through their public methods, and messages. Knows no model and no tensor.

Tokens are not pieces of text: a character of several bytes may be split over tokens, a tokenizer may leave spaces out
of what it says of a token's place, and a chat template adds marks of its own. So a token has the text from where the
token before it ended to where it ends itself; one that has no text left, as it completes a character, adds its number
to the piece before it; and what lies outside the messages counts as the template's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from hafrm.pairs import Conversation, Message, Prompt
from hafrm.templates import TemplateRefusalError, render

__all__ = ["Piece", "TokenRatios", "lay_over_text"]

Piece = tuple[str, float | None]
"""A piece of text and its number; None where the model read no token of it."""

_Span = tuple[int, int, float]
"""Where a token's text begins and ends in the rendered conversation, and its number."""


@dataclass(frozen=True)
class TokenRatios:
    """A response's tokens, each with log pi(token) - log pi_ref(token); they add up to the response's log-ratio."""

    turns: tuple[tuple[Piece, ...], ...]
    """For each message of the response its pieces, which join to its content."""
    template: float
    """The sum over tokens that are the chat template's: the end of a turn, for one."""


def lay_over_text(
    tokenizer: Any, conversation: Conversation, start: int, ids: Sequence[int], values: Sequence[float]
) -> TokenRatios | None:
    """Lay the numbers of a response's tokens over its messages.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        conversation: The conversation.
        start: How many of its tokens come before the response's.
        ids: The response's tokens, as the model read them.
        values: Their numbers.

    Returns:
        The pieces; None where the tokenizer does not say where its tokens lie (those written in Python do not), or
        where its template changes messages so that they are not found in the rendered text.
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
    spans = list(_spans(max(ends[:start], default=0), ends[read], values))
    turns = tuple(
        tuple(_pieces(spans, place, message.content, rendered))
        for place, message in zip(places, conversation.response, strict=True)
    )
    inside = sum(value for pieces in turns for _, value in pieces if value is not None)
    return TokenRatios(turns, sum(values) - inside)


def _places(tokenizer: Any, conversation: Conversation, rendered: str) -> list[tuple[int, int]] | None:
    """Where each message of the response stands in the rendered text, without the white space that templates strip."""
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
    """Where the next message may begin: behind the opening of an assistant's turn, or else behind the turns before."""
    for opening in (True, False):
        try:
            (text,) = render(tokenizer, [before], opening=opening)
        except TemplateRefusalError:  # these turns alone may be none that the template knows
            continue
        yield sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(text, rendered, strict=False)))


def _spans(begin: int, ends: Sequence[int], values: Sequence[float]) -> Iterator[_Span]:
    """The text of each token; tokens without text are one with the token before them."""
    waiting: _Span | None = None
    for end, value in zip(ends, values, strict=True):
        if waiting is not None and end > waiting[1]:
            yield waiting
            waiting = (waiting[1], end, value)
        elif waiting is not None:
            waiting = (*waiting[:2], waiting[2] + value)
        else:
            waiting = (begin, max(begin, end), value)
    if waiting is not None:
        yield waiting


def _pieces(spans: Sequence[_Span], place: tuple[int, int], content: str, rendered: str) -> Iterator[Piece]:
    """A message's text in pieces; what no token covers is a piece without a number."""
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
