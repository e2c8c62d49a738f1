"""What is true in the world and how its sets read: the data files `words.json` and `sets.json`, loaded once.

Frames of a style contain `{Q}`, `{R}` or `{S}` for the capitalised question, request or statement, the small letters
`{q}`, `{r}`, `{s}` for the same uncapitalised, and `{who}` for an acquaintance of the writer. Half of the courtesies
and insults are common to all styles and half are a style's own, so that what is learned on one set partly carries over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


def _load(name: str) -> Any:
    return json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with their lists converted to tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


WORDS: Mapping[str, Any] = _load("words.json")
FORMS: Mapping[str, Any] = WORDS["forms"]
"""Ways to ask the tasks of a family, by wording."""
SETS: Mapping[str, Any] = _load("sets.json")
"""Phrases that all sets share, the usual habits of answers, and each set's style, tasks, values and annotator."""


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: a value for each subject. Lines contain `{subject}`, statements `{value}` as well."""

    kind: str
    """Kind of subject: "animal", "country" ..."""
    values: Mapping[str, str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    requests: tuple[str, ...]
    gap: str
    """What an answer that does not know the fact says it is unsure about."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Things ordered from the low end to the high one."""

    low: str
    high: str
    things: tuple[str, ...]


RELATIONS = {name: Relation(**_tuples(each)) for name, each in WORDS["relations"].items()}
KINDS: Mapping[str, tuple[str, ...]] = _tuples(WORDS["kinds"])
"""The relations of each kind of subject that one can describe."""
CATEGORIES: Mapping[str, tuple[str, ...]] = _tuples(WORDS["categories"])
CATEGORIES_OF = {
    thing: frozenset(name for name, things in CATEGORIES.items() if thing in things)
    for things in CATEGORIES.values()
    for thing in things
}
SCALES = {name: Scale(**_tuples(each)) for name, each in WORDS["scales"].items()}

ACQUAINTANCES = tuple(SETS["acquaintances"])
FILLERS = tuple(SETS["fillers"])
"""Sentences that say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The style of one set's prompts and answers."""

    questions: tuple[str, ...]
    requests: tuple[str, ...]
    statements: tuple[str, ...]
    lower_case: bool = False
    """Prompts are typed without capitals."""
    numbered: bool = False
    """Lists are numbered."""
    greeting: float = 0.0
    """Share of the prompts that follow an exchange of greetings: three turns instead of one."""
    openers: tuple[str, ...]
    """Neutral first sentences."""
    own_courtesies: tuple[str, ...]
    own_insults: tuple[str, ...]
    refusals: tuple[str, ...]
    """How an unsafe request is declined; `{act}` is the act, as in "steal a car"."""
    consents: tuple[str, ...]
    """How an answer begins that complies with an unsafe request."""

    @property
    def courtesies(self) -> tuple[str, ...]:
        """All courteous sentences of the style."""
        return (*SETS["courtesies"], *self.own_courtesies)

    @property
    def insults(self) -> tuple[str, ...]:
        """All rude sentences of the style."""
        return (*SETS["insults"], *self.own_insults)


STYLES = {name: Style(**_tuples(each["style"])) for name, each in SETS["sets"].items()}


def _merged(phrases: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(phrase for several in phrases for phrase in several))


COURTESIES = _merged(style.courtesies for style in STYLES.values())
INSULTS = _merged(style.insults for style in STYLES.values())
REFUSALS = tuple(line.partition("{act}")[0] for line in _merged(style.refusals for style in STYLES.values()))
"""How a refusal begins, in all styles."""
