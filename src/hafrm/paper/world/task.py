"""The world's English and its tasks: what reading and writing share, and what a family of tasks can do.

A `Task` is what a prompt asks, apart from its wording. Each family of tasks can draw one, word it, read it back from a
prompt, write an answer with given traits, and grade any text as an answer.
"""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from random import Random
from typing import ClassVar

from hafrm.paper.world.words import Style

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_END = re.compile(r"[.!?]+")


def split_words(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=100_000)
def _searched(phrase: str) -> str:
    """Return a phrase's words, separated and enclosed by single spaces, as `Text.says` searches for it."""
    return f" {' '.join(split_words(phrase))} "


class Text:
    """A response as the oracle reads it."""

    def __init__(self, raw: str) -> None:
        self.raw = raw.strip()
        self.words = split_words(self.raw)
        self._line = f" {' '.join(self.words)} "

    def says(self, phrase: str) -> bool:
        """Return whether the phrase occurs, word by word, ignoring case and punctuation."""
        return _searched(phrase) in self._line

    def says_any(self, phrases: Iterable[str]) -> bool:
        """Return whether any of the phrases occurs."""
        return any(map(self._line.__contains__, map(_searched, phrases)))  # the oracle's hottest line

    def count(self, phrases: Iterable[str]) -> int:
        """Return how many of the phrases occur."""
        return sum(map(self._line.__contains__, map(_searched, phrases)))

    @cached_property
    def sentences(self) -> list[list[str]]:
        """The words of each sentence."""
        return [words for part in _END.split(self.raw) if (words := split_words(part))]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The distinct words."""
        return frozenset(self.words)


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def uncapital(text: str) -> str:
    """Return the text with a small first letter, except for the word "I"."""
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]


def sentence(text: str) -> str:
    """Return the text as a sentence: with a capital, and a full stop unless it has an end mark."""
    return capital(text) + ("" if text.endswith((".", "!", "?")) else ".")


def join_items(items: Sequence[str]) -> str:
    """Join items as in an English list: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


Slots = Mapping[str, Sequence[str] | str]
"""For each slot its possible values, or a regular expression for values that can't be listed."""


class Template:
    """A line with named slots that can be filled in, or read back from a text.

    Args:
        line: The line, with `{slot}` for each value; without end mark.
        slots: The slots' values.
    """

    def __init__(self, line: str, slots: Slots) -> None:
        self.line = line
        parts = [(literal.lower(), name) for literal, name, _, _ in string.Formatter().parse(line)]
        self._values = {
            name: {value.lower(): value for value in slots[name]}
            for _, name in parts
            if name and not isinstance(slots[name], str)
        }
        self._anchor = max((literal for literal, _ in parts), key=len)
        self._pattern = re.compile("".join(re.escape(literal) + self._group(name, slots) for literal, name in parts))

    def _group(self, name: str | None, slots: Slots) -> str:
        if not name:
            return ""
        values = slots[name]
        choice = values if isinstance(values, str) else "|".join(map(re.escape, sorted(self._values[name])[::-1]))
        return rf"(?P<{name}>{choice})(?![a-z0-9])"

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the line with its slots filled in."""
        return self.line.format_map(values)

    def read(self, lowered: str) -> dict[str, str] | None:
        """Return the slots' values if the line occurs in a lower-case text, else None."""
        if self._anchor not in lowered:  # a plain search is many times faster than the pattern
            return None
        found = self._pattern.search(lowered)
        if not found:
            return None
        return {name: self._values.get(name, {}).get(value, value) for name, value in found.groupdict().items()}


WORDINGS = ("questions", "requests", "statements")
"""Ways to word a task; requests are imperatives: "name the capital of Peru"."""

Forms = Mapping[str, tuple[Template, ...]]
"""Templates by wording, uncapitalised and without end marks."""


def make_forms(lines: Mapping[str, Sequence[str]], slots: Slots, **words: str) -> Forms:
    """Compile lines by wording, with `{slot}` for each slot and `<word>` for each word."""

    def compiled(line: str) -> Template:
        return Template(re.sub(r"<(\w+)>", lambda found: words[found[1]], line), slots)

    return {wording: tuple(map(compiled, lines.get(wording, ()))) for wording in WORDINGS}


@dataclass(frozen=True, slots=True)
class Task:
    """What a prompt asks, apart from its wording."""

    family: str
    kind: str
    """Kind of task within the family: a relation, an operation, a category ..."""
    items: tuple[str, ...]
    """What it is about: a subject, operands, things to put in order ..."""


class Trait(StrEnum):
    """How an answer is written. Without any, it is correct, complete, safe and plain."""

    COURTEOUS = "courteous"
    RUDE = "rude"
    WRONG = "wrong"
    PARTIAL = "partial"
    ASTRAY = "astray"
    """Answers another prompt."""
    HARMFUL = "harmful"
    """Complies with an unsafe request."""
    TIMID = "timid"
    """Refuses a harmless request."""
    BROKEN = "broken"
    """Not well-formed English: words out of order, cut off, or missing."""
    RAMBLING = "rambling"
    """Repeats itself, or says nothing in many words."""


@dataclass(frozen=True, slots=True)
class Grade:
    """How well a text does what the task asks; each in [0, 1]."""

    correct: float
    relevant: float
    complete: float


OFF_TOPIC = Grade(0.0, 0.0, 0.0)


class Family(ABC):
    """One family of tasks."""

    name: ClassVar[str]
    traits: ClassVar[frozenset[Trait]]
    """Traits that change what an answer of this family says; the writer applies the others."""
    slot_names: ClassVar[tuple[str, ...]]
    """Names of the templates' slots for a task's items."""
    forms: Mapping[str, Forms]
    """The wordings of each kind of task."""

    def asks(self, task: Task) -> dict[str, list[str]]:
        """Return all wordings of a task."""
        values = self.slots(task)
        return {wording: [each.fill(values) for each in lines] for wording, lines in self.forms[task.kind].items()}

    def read(self, lowered: str) -> Task | None:
        """Return the task that a prompt, given in lower case, asks; None if it is not of this family."""
        for kind, forms in self.forms.items():
            for template in (template for wording in WORDINGS for template in forms[wording]):
                values = template.read(lowered)
                task = self.task(kind, values) if values is not None else None
                if task:
                    return task
        return None

    def slots(self, task: Task) -> dict[str, str]:
        """Return the task's values for its templates' slots."""
        return dict(zip(self.slot_names, task.items, strict=True))

    def task(self, kind: str, values: Mapping[str, str]) -> Task | None:
        """Return the task for slots read from a prompt: the inverse of `slots`. None if they make no sense."""
        return Task(self.name, kind, tuple(values[name] for name in self.slot_names))

    @abstractmethod
    def draw(self, rng: Random) -> Task:
        """Draw a task."""

    @abstractmethod
    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Write the sentences of an answer."""

    @abstractmethod
    def grade(self, task: Task, text: Text) -> Grade:
        """Grade any text as an answer to the task."""

    @abstractmethod
    def tell(self, rng: Random) -> list[str]:
        """Write sentences of plain prose from which the family's knowledge can be learned."""
