"""Questions with a number for an answer: sums and units."""

from __future__ import annotations

import operator
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from random import Random

from hafrm.paper.world.styles import Style
from hafrm.paper.world.task import Family, Grade, Task, Trait, make_forms
from hafrm.paper.world.text import Text

_CLAIM = re.compile(r"\b(?:is|are|makes) (\d+)\b")
"""A number that is claimed, as against one that the question is echoed with; over words without marks."""

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
}

_UNITS: Mapping[str, tuple[str, int]] = {
    "hours": ("minutes", 60),
    "minutes": ("seconds", 60),
    "days": ("hours", 24),
    "weeks": ("days", 7),
    "years": ("months", 12),
    "metres": ("centimetres", 100),
    "kilometres": ("metres", 1000),
    "kilograms": ("grams", 1000),
    "dozens": ("pieces", 12),
    "pounds": ("pence", 100),
}
"""For each unit the smaller one that it is told in, and how many of these it holds."""


class _Numeric(Family):
    """What sums and conversions share: a term, and the number that it comes to."""

    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    @abstractmethod
    def term(self, task: Task) -> str:
        """What is to be worked out, in words."""

    @abstractmethod
    def result(self, task: Task) -> int:
        """What it comes to."""

    @abstractmethod
    def statement(self, task: Task, result: int) -> str:
        """The sentence that gives a result."""

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The result, or a near miss; or a confession not to know it."""
        if Trait.PARTIAL in traits:
            return [rng.choice((f"I am not sure about {self.term(task)}.", f"{self.term(task)} is too hard for me."))]
        result = self.result(task)
        if Trait.WRONG in traits:
            result = rng.choice([result + step for step in (-2, -1, 1, 2, 10) if result + step > 0])
        return [self.statement(task, result)]

    def grade(self, task: Task, text: Text) -> Grade:
        """Whether the last number claimed is the result; the bare number will do."""
        if text.says(self.term(task)):
            claims = _CLAIM.findall(" ".join(text.words))
        else:
            claims = [word for word in text.words if word.isdigit()] if len(text.words) <= 3 else []
            if not claims:
                return Grade(0.0, 0.0, 0.0)
        return Grade(float(bool(claims) and claims[-1] == str(self.result(task))), 1.0, float(bool(claims)))

    def tell(self, rng: Random) -> list[str]:
        """Two true statements."""
        tasks = [self.draw(rng) for _ in range(2)]
        return [self.statement(task, self.result(task)) for task in tasks]


class Arithmetic(_Numeric):
    """Sums, differences and products of small numbers."""

    name = "arithmetic"

    def __init__(self) -> None:
        numbers = tuple(str(n) for n in range(2, 20))
        self.forms = {
            kind: make_forms(
                {"a": numbers, "b": numbers},
                questions=(f"what is {{a}} {kind} {{b}}", f"how much is {{a}} {kind} {{b}}"),
                requests=(f"work out {{a}} {kind} {{b}}", f"tell me what {{a}} {kind} {{b}} is"),
            )
            for kind in _OPERATIONS
        }

    def draw(self, rng: Random) -> Task:
        """An operation on two numbers; differences are positive."""
        kind = rng.choice(list(_OPERATIONS))
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        return Task(self.name, kind, (str(a + b if kind == "minus" else a), str(b)))

    def slots(self, task: Task) -> dict[str, str]:
        """The two numbers."""
        return {"a": task.items[0], "b": task.items[1]}

    def task(self, kind: str, values: Mapping[str, str]) -> Task:
        """The operation that a prompt asks for."""
        return Task(self.name, kind, (values["a"], values["b"]))

    def term(self, task: Task) -> str:
        """As in "7 plus 5"."""
        return f"{task.items[0]} {task.kind} {task.items[1]}"

    def result(self, task: Task) -> int:
        """The number."""
        return _OPERATIONS[task.kind](*map(int, task.items))

    def statement(self, task: Task, result: int) -> str:
        """As in "7 plus 5 is 12."."""
        return f"{self.term(task)} is {result}."


class Conversion(_Numeric):
    """How many of a smaller unit some of a larger one are."""

    name = "conversion"

    def __init__(self) -> None:
        counts = tuple(str(n) for n in range(2, 10))
        self.forms = {
            unit: make_forms(
                {"count": counts},
                questions=(f"how many {small} are {{count}} {unit}", f"what are {{count}} {unit} in {small}"),
                requests=(f"turn {{count}} {unit} into {small}", f"give me {{count}} {unit} in {small}"),
            )
            for unit, (small, _) in _UNITS.items()
        }

    def draw(self, rng: Random) -> Task:
        """A few of some unit."""
        return Task(self.name, rng.choice(list(_UNITS)), (str(rng.randint(2, 9)),))

    def slots(self, task: Task) -> dict[str, str]:
        """How many."""
        return {"count": task.items[0]}

    def task(self, kind: str, values: Mapping[str, str]) -> Task:
        """The amount that a prompt asks to convert."""
        return Task(self.name, kind, (values["count"],))

    def term(self, task: Task) -> str:
        """As in "3 hours"."""
        return f"{task.items[0]} {task.kind}"

    def result(self, task: Task) -> int:
        """The number of smaller units."""
        return int(task.items[0]) * _UNITS[task.kind][1]

    def statement(self, task: Task, result: int) -> str:
        """As in "3 hours are 180 minutes."."""
        return f"{self.term(task)} are {result} {_UNITS[task.kind][0]}."
