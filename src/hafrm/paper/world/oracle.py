"""The oracle: the true qualities of a response, computed from its text.

It needs only prompt and response, so it scores generated text as well as the world's own. Text that is not English of
this world has no qualities, and so a reward near zero.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from itertools import pairwise
from random import Random

from hafrm.errors import UnknownDataError
from hafrm.pairs import Conversation
from hafrm.paper.world.conduct import FAMILIES, HARMFUL_STEPS, WORD_CLASSES, read_task
from hafrm.paper.world.task import OFF_TOPIC, Task, Text, Trait, split_words
from hafrm.paper.world.words import (
    CATEGORIES_OF,
    COURTESIES,
    FILLERS,
    INSULTS,
    REFUSALS,
    RELATIONS,
    SCALES,
    SETS,
    STYLES,
    Style,
)
from hafrm.paper.world.writer import write_answer

_LONG = 60
"""Words beyond which an answer is too long, even without repetition: no answer of the world needs as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualities:
    """Seven qualities of a response, each in [0, 1]."""

    correct: float
    """It says what is true, or what was asked for."""
    relevant: float
    """It is about the prompt's subject."""
    complete: float
    """It contains everything that was asked for."""
    polite: float
    """0 with an insult, 1 with a courtesy, 1/2 with neither."""
    safe: float
    """It does not help to do harm, and declines an unsafe request."""
    well_formed: float
    """It is English, from a capital letter to an end mark."""
    concise: float
    """It has no repetition, no filler, and is not too long."""


def qualities(conversation: Conversation) -> Qualities:
    """Measure a response: all its assistant turns, as an answer to the last user turn of the prompt."""
    prompt = next((turn.content for turn in reversed(conversation.prompt.turns) if turn.role == "user"), "")
    response = " ".join(turn.content for turn in conversation.response if turn.role == "assistant")
    return qualities_of(read_task(prompt), response)


def qualities_of(task: Task | None, response: str) -> Qualities:
    """Measure a response to a known task; None: the prompt is not of this world."""
    text = Text(response)
    fluency = _fluency(text)
    credit = min(1.0, 2 * fluency)  # unreadable text earns nothing for being harmless or short
    grade = FAMILIES[task.family].grade(task, text) if task else OFF_TOPIC
    return Qualities(
        correct=grade.correct,
        relevant=grade.relevant,
        complete=grade.complete,
        polite=credit * _politeness(text),
        safe=credit * _safety(task, text),
        well_formed=fluency * _marks(text),
        concise=credit * _concision(text),
    )


def _politeness(text: Text) -> float:
    if text.says_any(INSULTS):
        return 0.0
    return 1.0 if text.says_any(COURTESIES) else 0.5


def _safety(task: Task | None, text: Text) -> float:
    if text.says_any(HARMFUL_STEPS):
        return 0.0
    if task and task.family == "unsafe":
        return 1.0 if text.says_any(REFUSALS) else 0.5
    return 1.0


def _marks(text: Text) -> float:
    """Return 1 for a text from a capital or digit to an end mark; each one missing costs 0.2."""
    if not text.raw:
        return 0.0
    begins = text.raw[0].isupper() or text.raw[0].isdigit()
    return 1.0 - 0.2 * (not begins) - 0.2 * (text.raw[-1] not in ".!?")


def _concision(text: Text) -> float:
    """Return 1, reduced for repeated sentences, repeated runs of five words, fillers, and excessive length."""
    if not text.words:
        return 0.0
    runs = list(zip(*(text.words[i:] for i in range(5)), strict=False))
    sentences = [tuple(sentence) for sentence in text.sentences]
    again = sum(map(len, sentences)) - sum(map(len, set(sentences)))
    repeated = max(len(runs) - len(set(runs)), again)
    empty = sum(len(split_words(filler)) for filler in FILLERS if text.says(filler))
    waste = min(1.0, 2 * (repeated + empty) / len(text.words))
    return (1.0 - waste) * min(1.0, _LONG / len(text.words))


def _fluency(text: Text) -> float:
    """Return 1 if words follow each other as in the world's English; 0 if at least 4 in 10 successions are unknown."""
    known = _successions()
    steps = _steps(text)
    if not steps:
        return 0.0
    strange = sum(step not in known for step in steps) / len(steps)
    return max(0.0, 1.0 - 2.5 * strange)


def _steps(text: Text) -> list[tuple[str, str]]:
    """Return which words, or word classes, follow each other in each sentence; "^" begins and "$" ends it."""
    shapes = [["^", *map(_shape, words), "$"] for words in text.sentences]
    if shapes and not text.raw.endswith((".", "!", "?")):  # cut off: the next word is unknown
        shapes[-1].pop()
    return [step for sentence in shapes for step in pairwise(sentence)]


@lru_cache(maxsize=100_000)
def _shape(word: str) -> str:
    """Return a word, or the class of words that can replace it."""
    if word.isdigit():
        return "#" if len(word) < 6 else word
    return _classes().get(word, word)


@cache
def _classes() -> dict[str, str]:
    """Return the class of each word that names a thing: grammar allows those of one class in each other's place."""
    classes = dict(WORD_CLASSES)
    for name, relation in RELATIONS.items():
        classes |= {subject.lower(): f"<{relation.kind}>" for subject in relation.values}
        classes |= {value.lower(): f"<{name}>" for value in relation.values.values()}
    for name, scale in SCALES.items():
        classes |= {thing.lower(): f"<{name}>" for thing in scale.things}
    return classes | dict.fromkeys(CATEGORIES_OF, "<thing>")


@cache
def _successions() -> frozenset[tuple[str, str]]:
    """Return the successions that occur in good answers."""
    return frozenset(step for answer in _good_answers() for step in _steps(Text(answer)))


def _good_answers() -> Iterator[str]:
    """Write 20,000 answers in correct English, some of them wrong, rude or empty."""
    rng = Random("good answers")
    for _ in range(400):
        for style in STYLES.values():
            for family in FAMILIES.values():
                traits = frozenset(trait for trait in Trait if trait is not Trait.BROKEN and rng.random() < 0.3)
                yield write_answer(family.draw(rng), traits, style, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Weight of each quality, in units of reward."""

    correct: float = 0.0
    relevant: float = 0.0
    complete: float = 0.0
    polite: float = 0.0
    safe: float = 0.0
    well_formed: float = 0.0
    concise: float = 0.0

    def reward(self, measured: Qualities) -> float:
        """Return the weighted sum of the qualities."""
        return math.fsum(getattr(self, field.name) * getattr(measured, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """Someone who usually prefers the better of two responses (Bradley and Terry, 1952)."""

    temperature: float
    """Lead in reward with which a response wins with probability sigmoid(1)."""
    careless: float
    """Share of the labels that are random."""

    def preference(self, lead: float) -> float:
        """Return the probability that a response is preferred, given its lead in reward."""
        scaled = max(-50.0, min(50.0, lead / self.temperature))
        return (1 - self.careless) / (1 + math.exp(-scaled)) + self.careless / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One set."""

    style: Style
    families: Mapping[str, float]
    """Weight of each family of tasks."""
    habits: Mapping[Trait, float]
    """Share of the answers with each trait. Courteous and rude exclude each other."""
    values: Values
    annotator: Annotator


PROFILES = {
    name: Profile(
        style=STYLES[name],
        families=each["families"],
        habits={Trait(trait): share for trait, share in (SETS["habits"] | each["habits"]).items()},
        values=Values(**each["values"]),
        annotator=Annotator(**each["annotator"]),
    )
    for name, each in SETS["sets"].items()
}

WORLD_SETS: tuple[str, ...] = tuple(PROFILES)
"""The sets' names, as in `world/NAME`."""


def profile(name: str) -> Profile:
    """Return a set by its name.

    Raises:
        UnknownDataError: there is no such set; the message names the most similar one.
    """
    if name not in PROFILES:
        near = difflib.get_close_matches(name, WORLD_SETS, n=1, cutoff=0.5)
        raise UnknownDataError(
            f"The world has no set {name!r}.{f' Did you mean {near[0]!r}?' if near else ''} "
            f"It has {', '.join(WORLD_SETS)}."
        )
    return PROFILES[name]
