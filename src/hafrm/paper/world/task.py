"""What the world's families of tasks have in common: how a task is asked, answered, marked and told about.

A `Task` is what a prompt asks, apart from its wording. Each family of tasks can draw one, word it, read it back from a
prompt, write an answer to it with given traits, and mark any text as an answer to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import ClassVar

from hafrm.paper.world.styles import Style
from hafrm.paper.world.text import Template, Text

Slots = Mapping[str, Sequence[str] | str]


@dataclass(frozen=True, slots=True)
class Task:
    """What a prompt asks, apart from its wording."""

    family: str
    kind: str
    """Which sort of task of the family: a relation, an operation, a category ..."""
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
    """Goes along with an unsafe request."""
    TIMID = "timid"
    """Refuses a request in which there is no harm."""
    BROKEN = "broken"
    """Is no well-formed English: words out of order, cut off, marks left out."""
    RAMBLING = "rambling"
    """Repeats itself, or says nothing in many words."""


@dataclass(frozen=True, slots=True)
class Grade:
    """How well a text does what the task asks; each in [0, 1]."""

    correct: float
    relevant: float
    complete: float


@dataclass(frozen=True, slots=True)
class Asks:
    """The ways to word a task, uncapitalised and without end marks."""

    questions: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    """Imperatives: "name the capital of Peru"."""
    statements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forms:
    """The templates behind `Asks`."""

    questions: tuple[Template, ...] = ()
    requests: tuple[Template, ...] = ()
    statements: tuple[Template, ...] = ()


def make_forms(
    slots: Slots, *, questions: Sequence[str] = (), requests: Sequence[str] = (), statements: Sequence[str] = ()
) -> Forms:
    """Compile lines with slots."""
    compiled = [tuple(Template(line, slots) for line in lines) for lines in (questions, requests, statements)]
    return Forms(*compiled)


@dataclass(frozen=True, slots=True)
class Point:
    """Something that a full answer says."""

    right: tuple[str, ...]
    """Phrases of which any one makes the point."""
    rivals: tuple[str, ...] = ()
    """Phrases that get the point wrong."""


def grade_points(text: Text, points: Sequence[Point], *, topic: bool) -> Grade:
    """Mark an answer by the points that it makes.

    Args:
        text: The answer.
        points: What a full answer says.
        topic: Whether the answer is about the prompt's subject; where it is not, its points are worth nothing.

    Returns:
        `complete` is the share of points that are addressed, `correct` the share of those that are right; a point
        both made and contradicted counts a quarter.
    """
    if not topic:
        return Grade(0.0, 0.0, 0.0)
    marks = []
    for point in points:
        right, wrong = text.says_any(point.right), text.says_any(point.rivals)
        if right or wrong:
            marks.append(0.25 if right and wrong else float(right))
    correct = sum(marks) / len(marks) if marks else 0.0
    return Grade(correct, 1.0, len(marks) / len(points))


class Family(ABC):
    """One family of tasks."""

    name: ClassVar[str]
    traits: ClassVar[frozenset[Trait]]
    """The traits that change what an answer of this family says; the others are the writer's."""
    forms: Mapping[str, Forms]
    """The wordings of each kind of task."""

    def asks(self, task: Task) -> Asks:
        """All wordings of a task."""
        forms, slots = self.forms[task.kind], self.slots(task)
        return Asks(
            tuple(template.fill(slots) for template in forms.questions),
            tuple(template.fill(slots) for template in forms.requests),
            tuple(template.fill(slots) for template in forms.statements),
        )

    def read(self, lowered: str) -> Task | None:
        """The task that a prompt, given in lower case, asks; None if it asks none of this family's."""
        for kind, forms in self.forms.items():
            for template in (*forms.questions, *forms.requests, *forms.statements):
                values = template.read(lowered)
                task = self.task(kind, values) if values is not None else None
                if task:
                    return task
        return None

    @abstractmethod
    def draw(self, rng: Random) -> Task:
        """A task at random."""

    @abstractmethod
    def slots(self, task: Task) -> dict[str, str]:
        """The task's values for its templates' slots."""

    @abstractmethod
    def task(self, kind: str, values: Mapping[str, str]) -> Task | None:
        """The task behind slots read from a prompt: the inverse of `slots`. None if they make no sense."""

    @abstractmethod
    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The sentences of an answer."""

    @abstractmethod
    def grade(self, task: Task, text: Text) -> Grade:
        """Mark any text as an answer to the task."""

    @abstractmethod
    def tell(self, rng: Random) -> list[str]:
        """Sentences of plain prose out of which the family's knowledge can be learnt."""
