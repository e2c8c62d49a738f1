"""Format untrusted text (of clients, templates, models) for the log and the terminal: escaped, on one line, and
bounded.
"""

from __future__ import annotations

from itertools import islice
from traceback import TracebackException

_LINES, _CHARACTERS = 60, 300


def shown(text: str, most: int = _CHARACTERS) -> str:
    """Return a text's beginning as one line, with unprintable characters escaped."""
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def traceback_text(error: BaseException) -> str:
    """Return an error's traceback in a bounded number of bounded lines, with as many of its causes as fit."""
    lines = (line for part in TracebackException.from_exception(error, limit=-20).format() for line in _split(part))
    return "\n".join(shown(line) for line in islice(lines, _LINES))


def _split(part: str) -> list[str]:
    return part[: _LINES * _CHARACTERS].removesuffix("\n").split("\n")
