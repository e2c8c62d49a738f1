"""Parse a judge's reply into ranks: its thinking is removed, and only explicit statements are read.

A truncated reply only counts if it is nothing but the verdict, as the missing text could contradict the rest.
"""

from __future__ import annotations

import re

from hafrm.errors import printable
from hafrm.judging.choices import bare_choice, read_choice
from hafrm.judging.judges import Answer, Unscored
from hafrm.judging.rankings import is_bare_ranking, read_ranking

_THINKING = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)"
_MARK = re.compile(
    rf"(?P<opens><{_THINKING}>|\[{_THINKING}\]|\u25c1{_THINKING}\u25b7|<\|begin_of_{_THINKING}\|>|<\|channel\|>analysis)"
    rf"|</{_THINKING}>|\[/{_THINKING}\]|\u25c1/{_THINKING}\u25b7|<\|end_of_{_THINKING}\|>|<\|channel\|>final",
    re.IGNORECASE,
)
"""Opening and closing marks of thinking in various model families."""
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")

_CUT = ("length", "max_tokens")
_FILTERED = "content_filter"
_LONGEST = 500_000
"""Longest reply that is parsed, in characters; parsing it takes about a second."""
_SHOWN = 300
"""Maximum characters of a reply that are shown."""


def parse_reply(
    reply: str,
    responses: int,
    *,
    thought: bool = False,
    finish_reason: str | None = None,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> Answer:
    """Parse a reply about the given number of responses.

    Args:
        reply: The judge's whole reply.
        responses: The number of responses in the question: two are a pair, more a ranking.
        thought: Whether the endpoint separated the judge's reasoning from its reply.
        finish_reason: Why the endpoint ended the reply, if it says so.
        prompt_tokens: Tokens of the prompt, for the answer.
        completion_tokens: Tokens of the reply, for the answer.
    """
    cut = (finish_reason or "").lower() in _CUT
    found = Unscored.TOO_LONG if len(reply) > _LONGEST else _read(reply, responses, thought=thought, cut=cut)
    if isinstance(found, Unscored) and finish_reason == _FILTERED:
        found = Unscored.FILTERED
    return Answer(
        ranks=None if isinstance(found, Unscored) else found,
        unscored=found if isinstance(found, Unscored) else None,
        reply=shown(reply) if isinstance(found, Unscored) else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def shown(reply: str) -> str:
    """Return a printable form of a reply: its beginning and end, with control characters escaped."""
    half = _SHOWN // 2
    short = reply if len(reply) <= _SHOWN else f"{reply[:half]} [...] {reply[-half:]}"
    return printable(short, _SHOWN + len(" [...] "))


def _read(reply: str, responses: int, *, thought: bool, cut: bool) -> tuple[int, ...] | Unscored:
    answer = _without_thinking(reply)
    if answer is None or not answer.strip():
        if cut:
            return Unscored.CUT_OFF
        return Unscored.ONLY_THINKING if thought or reply.strip() else Unscored.EMPTY_REPLY
    bare = bare_choice(answer) is not None if responses == 2 else is_bare_ranking(answer)
    if cut and not bare:
        return Unscored.CUT_OFF
    if responses > 2:
        ranks = read_ranking(answer, responses)
        return Unscored.CUT_OFF if cut and isinstance(ranks, Unscored) else ranks
    choice = read_choice(answer)
    if isinstance(choice, Unscored):
        return choice
    return (1, 2) if choice == "a" else (2, 1)


def _without_thinking(reply: str) -> str | None:
    """Remove the thinking from a reply; its opening mark may be missing. None if it never closes."""
    parts: list[str] = []
    inside, start = False, 0
    for mark in _MARK.finditer(reply):
        if mark["opens"] is None:
            parts = parts if inside else []
            inside, start = False, mark.end()
        elif not inside:
            parts.append(reply[start : mark.start()])
            inside = True
    return None if inside else _SPECIAL.sub("", "".join([*parts, reply[start:]]))
