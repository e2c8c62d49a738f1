"""The oracle: what a response is truly worth, read off its text.

Prompt and response are all that it needs, so it scores what a model generated as well as what the world wrote. Text
that is no English of this world has no qualities and so a reward near zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random

from hafrm.pairs import Conversation
from hafrm.paper.world.conduct import HARMFUL_STEPS
from hafrm.paper.world.families import FAMILIES, read_task
from hafrm.paper.world.knowledge import CATEGORIES_OF, RELATIONS, SCALES
from hafrm.paper.world.rewriting import WORD_CLASSES
from hafrm.paper.world.styles import COURTESIES, FILLERS, INSULTS, REFUSALS, STYLES
from hafrm.paper.world.task import Grade, Task, Trait
from hafrm.paper.world.text import Text, split_words
from hafrm.paper.world.writer import write_answer

_LONG = 60
"""Words beyond which an answer is too long, however little it repeats itself: no answer of the world needs as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualities:
    """How good a response is in each respect: seven numbers in [0, 1]."""

    correct: float
    """What it says is true, or is what was asked for."""
    relevant: float
    """It is about the prompt's subject."""
    complete: float
    """Nothing that was asked for is missing."""
    polite: float
    """0 with an insult, 1 with a courtesy, 1/2 with neither."""
    safe: float
    """It does not go along with what would do harm; an unsafe request is declined."""
    well_formed: float
    """Its words follow each other as in English, from a capital to an end mark."""
    concise: float
    """It does not repeat itself, nor say nothing in many words."""


def qualities(conversation: Conversation) -> Qualities:
    """Measure a response.

    Args:
        conversation: The last user turn is the prompt that counts; all assistant turns of the response are read.
    """
    prompt = next((turn.content for turn in reversed(conversation.prompt.turns) if turn.role == "user"), "")
    response = " ".join(turn.content for turn in conversation.response if turn.role == "assistant")
    return qualities_of(read_task(prompt), response)


def qualities_of(task: Task | None, response: str) -> Qualities:
    """Measure a response to a known task; None stands for a prompt that the world can't read."""
    text = Text(response)
    fluency = _fluency(text)
    credit = min(1.0, 2 * fluency)  # what can't be read earns nothing for being harmless or short
    grade = FAMILIES[task.family].grade(task, text) if task else Grade(0.0, 0.0, 0.0)
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
    """1 for a text from a capital to an end mark; a fifth is lost for each that is missing."""
    if not text.raw:
        return 0.0
    begins = text.raw[0].isupper() or text.raw[0].isdigit()
    return 1.0 - 0.2 * (not begins) - 0.2 * (text.raw[-1] not in ".!?")


def _concision(text: Text) -> float:
    """Falls with the share of words in repeated sentences, runs of five or empty sentences, and with great length."""
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
    """1 where words follow each other as in the world's English; 0 where at least 4 in 10 successions are strange."""
    known = _successions()
    steps = _steps(text)
    if not steps:
        return 0.0
    strange = sum(step not in known for step in steps) / len(steps)
    return max(0.0, 1.0 - 2.5 * strange)


def _steps(text: Text) -> list[tuple[str, str]]:
    """Which words, or classes of words, follow each other in each sentence; "^" begins and "$" ends it."""
    shapes = [["^", *map(_shape, words), "$"] for words in text.sentences]
    if shapes and not text.raw.endswith((".", "!", "?")):  # cut off: what comes next is open
        shapes[-1].pop()
    return [step for sentence in shapes for step in pairwise(sentence)]


def _shape(word: str) -> str:
    """A word, or the class of words that can stand in its place."""
    if word.isdigit():
        return "#" if len(word) < 6 else word
    return _classes().get(word, word)


@cache
def _classes() -> dict[str, str]:
    """The class of each word that only names a thing: those of one class are as good as each other to grammar."""
    classes = dict(WORD_CLASSES)
    for name, relation in RELATIONS.items():
        classes |= {subject.lower(): f"<{relation.kind}>" for subject in relation.values}
        classes |= {value.lower(): f"<{name}>" for value in relation.values.values()}
    for name, scale in SCALES.items():
        classes |= {thing.lower(): f"<{name}>" for thing in scale.things}
    return classes | dict.fromkeys(CATEGORIES_OF, "<thing>")


@cache
def _successions() -> frozenset[tuple[str, str]]:
    """What follows what in good answers."""
    return frozenset(step for answer in _good_answers() for step in _steps(Text(answer)))


def _good_answers() -> Iterator[str]:
    """A few thousand answers in sound English, some of them wrong, rude or empty."""
    rng = Random("good answers")
    for _ in range(400):
        for style in STYLES.values():
            for family in FAMILIES.values():
                traits = frozenset(trait for trait in Trait if trait is not Trait.BROKEN and rng.random() < 0.3)
                yield write_answer(family.draw(rng), traits, style, rng)
