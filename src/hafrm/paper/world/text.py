"""Words and sentences: what reading and writing the world's English share. Pure; knows no task and no style."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_END = re.compile(r"[.!?]+")


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case, without marks."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=100_000)
def normal(phrase: str) -> str:
    """A phrase as `Text.says` looks for it: its words, separated by single blanks."""
    return " ".join(split_words(phrase))


class Text:
    """A response as the oracle reads it."""

    def __init__(self, raw: str) -> None:
        self.raw = raw.strip()
        self.words = split_words(self.raw)
        self._line = f" {' '.join(self.words)} "

    def says(self, phrase: str) -> bool:
        """Whether the phrase occurs, word by word, whatever the case and the marks."""
        return f" {normal(phrase)} " in self._line

    def says_any(self, phrases: Iterable[str]) -> bool:
        """Whether any of the phrases occurs."""
        return any(self.says(phrase) for phrase in phrases)

    def count(self, phrases: Iterable[str]) -> int:
        """How many of the phrases occur."""
        return sum(self.says(phrase) for phrase in phrases)

    @cached_property
    def sentences(self) -> list[list[str]]:
        """The words of each sentence."""
        return [words for part in _END.split(self.raw) if (words := split_words(part))]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The distinct words."""
        return frozenset(self.words)


class Template:
    """A line with named slots that can be filled in and, the other way round, read out of a text.

    Args:
        line: The line, with `{slot}` where a value goes; without end mark.
        slots: For each slot the values that it may hold, or a regular expression for values that can't be listed.
    """

    def __init__(self, line: str, slots: Mapping[str, Sequence[str] | str]) -> None:
        self.line = line
        parts = [(literal.lower(), name) for literal, name, _, _ in string.Formatter().parse(line)]
        self._values = {
            name: {value.lower(): value for value in slots[name]}
            for _, name in parts
            if name and not isinstance(slots[name], str)
        }
        self._anchor = max((literal for literal, _ in parts), key=len)
        self._pattern = re.compile("".join(re.escape(literal) + self._group(name, slots) for literal, name in parts))

    def _group(self, name: str | None, slots: Mapping[str, Sequence[str] | str]) -> str:
        if not name:
            return ""
        values = slots[name]
        choice = values if isinstance(values, str) else "|".join(map(re.escape, sorted(self._values[name])[::-1]))
        return rf"(?P<{name}>{choice})(?![a-z0-9])"

    def fill(self, values: Mapping[str, str]) -> str:
        """The line with its slots filled in."""
        return self.line.format_map(values)

    def read(self, lowered: str) -> dict[str, str] | None:
        """The slots' values where the line occurs in a text of lower case; None where it does not."""
        if self._anchor not in lowered:  # a plain search is many times faster than the pattern
            return None
        found = self._pattern.search(lowered)
        if not found:
            return None
        return {name: self._values.get(name, {}).get(value, value) for name, value in found.groupdict().items()}


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def uncapital(text: str) -> str:
    """The text with a small first letter, except for the word "I"."""
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]


def sentence(text: str) -> str:
    """The text as a sentence: a capital, and a full stop where it has no end mark."""
    return capital(text) + ("" if text.endswith((".", "!", "?")) else ".")


def table_rows(table: str) -> list[tuple[str, ...]]:
    """The cells of a table that is written with a row a line and "|" between columns."""
    return [tuple(cell.strip() for cell in line.split("|")) for line in table.strip().splitlines()]


def join_items(items: Sequence[str]) -> str:
    """Items as English lists them: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
