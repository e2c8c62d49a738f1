"""From a judge's reply to ranks: what it thought is taken off, and what it states is read; nothing is guessed.

A reply that is cut counts only if it is nothing but the verdict, as what was cut off could take back the rest.
"""

from __future__ import annotations

import re

from hafrm.errors import printable
from hafrm.judging.choices import bare_choice, read_choice
from hafrm.judging.judges import Answer, Unscored
from hafrm.judging.rankings import is_bare_ranking, read_ranking

__all__ = ["parse_reply", "shown"]

_THINKING = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)"
_MARK = re.compile(
    rf"(?P<opens><{_THINKING}>|\[{_THINKING}\]|\u25c1{_THINKING}\u25b7|<\|begin_of_{_THINKING}\|>|<\|channel\|>analysis)"
    rf"|</{_THINKING}>|\[/{_THINKING}\]|\u25c1/{_THINKING}\u25b7|<\|end_of_{_THINKING}\|>|<\|channel\|>final",
    re.IGNORECASE,
)
"""Where thinking opens and closes, as the model families write it."""
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")

_CUT = ("length", "max_tokens")
_FILTERED = "content_filter"
_LONGEST = 500_000
"""Characters of a reply that is read; reading takes about a second for so many."""
_SHOWN = 300
"""Characters of a reply that are shown."""


def parse_reply(
    reply: str,
    responses: int,
    *,
    thought: bool = False,
    finish_reason: str | None = None,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> Answer:
    """What a reply says about so many responses.

    Args:
        reply: The judge's whole reply.
        responses: How many it was asked about: two are a pair, more a ranking.
        thought: Whether the endpoint kept the judge's reasoning apart from its reply.
        finish_reason: Why the endpoint ended the reply, where it says so.
        prompt_tokens: What asking took, for the answer.
        completion_tokens: What replying took, for the answer.
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
    """A reply as it can be printed: its beginning and end, with control characters escaped."""
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
    """A reply without its thinking, which may lack its opening mark; None where it never closes."""
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
