"""Format numbers, names and untrusted texts for the page: pure functions from values to strings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

_MINUS = "\u2212"

# Characters that are invisible or that reorder the text around them: C0 and C1 controls except tab and line ends, the
# soft hyphen, direction marks and overrides, zero-width space and word joiner, line and paragraph separators, the
# byte-order mark, lone surrogates, and tag characters. `page.js` has the same list. The joiners U+200C and U+200D are
# kept, because Persian and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def percent(share: float) -> str:
    """Format a share in percent, with one decimal: 0.7512 is "75.1"."""
    return f"{100 * share:.1f}"


def signed(value: float, decimals: int) -> str:
    """Format a number with its sign: -0.0125 with three decimals is "−0.013"."""
    return f"{value:+.{decimals}f}".replace("-", _MINUS)


def points(difference: float) -> str:
    """Format a difference of two shares in points, with its sign: 0.012 is "+1.2"; zero after rounding is "0.0"."""
    worded = signed(100 * difference, 1)
    return worded if worded.strip(f"+{_MINUS}0.") else "0.0"


def interval(ends: tuple[float, float] | None, worded: Callable[[float], str]) -> str:
    """Format an interval, with its ends formatted by `worded`: [75.1, 81.2]; empty if there is none."""
    return f"[{worded(ends[0])}, {worded(ends[1])}]" if ends else ""


def with_interval(value: float, ends: tuple[float, float] | None, worded: Callable[[float], str]) -> str:
    """Format a value with its interval, if it has one: 78.1 [75.1, 81.2]."""
    return f"{worded(value)} {interval(ends, worded)}".strip()


def p_value(p: float) -> str:
    """Format a p value with three decimals; smaller values are "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int, noun: str) -> str:
    """Format a number with its noun: "1 pair", "2,500 pairs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def moment(time: datetime) -> str:
    """Format a time: "29 November 2026, 17:20 UTC"."""
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname()}"


def listed(names: Sequence[str]) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def visible(text: str) -> str:
    """Replace every hidden or reordering character with its code, as in "⟨U+202E⟩"."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Remove the leading folders that all names share: "runs/haf" and "runs/dpo" become "haf" and "dpo".

    Addresses of servers are unchanged.
    """
    parts = [[name] if "://" in name else name.rstrip("/").split("/") for name in names]
    shared = 0
    while parts and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return {name: "/".join(p[shared:]) for name, p in zip(names, parts, strict=True)}


def shortened(text: str, limit: int) -> str:
    """Shorten to `limit` characters with an ellipsis in the middle: the ends of paths and model names tell most."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"
