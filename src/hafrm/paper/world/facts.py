"""Tasks with a right answer: facts, descriptions, lists, orders, sums and units."""

from __future__ import annotations

import operator
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import ClassVar

from hafrm.paper.world.task import (
    OFF_TOPIC,
    Family,
    Grade,
    Task,
    Text,
    Trait,
    capital,
    join_items,
    make_forms,
)
from hafrm.paper.world.words import (
    CATEGORIES,
    CATEGORIES_OF,
    FORMS,
    KINDS,
    RELATIONS,
    SCALES,
    WORDS,
    Relation,
    Style,
)

_FLAWS = frozenset({Trait.WRONG, Trait.PARTIAL})


def _state(relation: Relation, subject: str, rng: Random, *, wrong: bool = False) -> str:
    """Return one fact as a sentence; a wrong one has another subject's value."""
    value = relation.values[subject]
    if wrong:
        value = rng.choice(_rivals(relation, subject))
    return capital(rng.choice(relation.statements).format(subject=subject, value=value))


def _rivals(relation: Relation, subject: str) -> list[str]:
    """Return the values that are wrong for a subject."""
    return sorted({*relation.values.values()} - {relation.values[subject]})


def _grade_facts(text: Text, subject: str, names: Sequence[str], *, topic: bool) -> Grade:
    """Grade an answer by the facts that it gives about its subject.

    Args:
        names: The relations that a full answer gives.
        topic: Whether the answer is about the subject; otherwise its facts earn nothing.

    Returns:
        `complete` is the share of facts that are addressed, `correct` the share of those that are right; a fact that is
        both given and contradicted counts a quarter.
    """
    if not topic:
        return OFF_TOPIC
    marks = []
    for relation in map(RELATIONS.__getitem__, names):
        right, wrong = text.says(relation.values[subject]), text.says_any(_rivals(relation, subject))
        if right or wrong:
            marks.append(0.25 if right and wrong else float(right))
    return Grade(sum(marks) / len(marks) if marks else 0.0, 1.0, len(marks) / len(names))


class _Fact(Family):
    """One fact: "What is the capital of Peru?"."""

    name = "fact"
    traits = _FLAWS
    slot_names = ("subject",)

    def __init__(self) -> None:
        self.forms = {
            name: make_forms({"questions": each.questions, "requests": each.requests}, {"subject": tuple(each.values)})
            for name, each in RELATIONS.items()
        }

    def draw(self, rng: Random) -> Task:
        kind = rng.choice(list(RELATIONS))
        return Task(self.name, kind, (rng.choice(list(RELATIONS[kind].values)),))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Give the fact, sometimes with another about the same subject; with flaws, a wrong one, or admit ignorance."""
        relation, subject = RELATIONS[task.kind], task.items[0]
        if Trait.PARTIAL in traits:
            gap = relation.gap.format(subject=subject)
            return [rng.choice((f"I am not sure {'' if gap.startswith('w') else 'about '}{gap}.", f"I forgot {gap}."))]
        facts = [_state(relation, subject, rng, wrong=Trait.WRONG in traits)]
        others = [name for name in KINDS.get(relation.kind, ()) if name != task.kind]
        if others and rng.random() < 0.3:
            facts.append(_state(RELATIONS[rng.choice(others)], subject, rng))
        return facts

    def grade(self, task: Task, text: Text) -> Grade:
        """Check the value and the subject; the bare value is enough."""
        subject = task.items[0]
        terse = len(text.words) <= 4 and text.says(RELATIONS[task.kind].values[subject])
        return _grade_facts(text, subject, [task.kind], topic=terse or text.says(subject))

    def tell(self, rng: Random) -> list[str]:
        relation = RELATIONS[rng.choice(list(RELATIONS))]
        one, other = rng.sample(list(relation.values), 2)
        both = [capital(line.format(subject=one, value=relation.values[one])) for line in relation.statements]
        return [*both, _state(relation, other, rng)]


class _Description(Family):
    """All that is known about a subject: "Tell me about the fox."."""

    name = "description"
    traits = _FLAWS
    slot_names = ("subject",)

    def __init__(self) -> None:
        self.forms = {}
        for kind in KINDS:
            what = "the {subject}" if kind in ("animal", "job") else "{subject}"
            self.forms[kind] = make_forms(FORMS["description"], {"subject": self._subjects(kind)}, what=what)

    @staticmethod
    def _subjects(kind: str) -> tuple[str, ...]:
        return tuple(RELATIONS[KINDS[kind][0]].values)

    def draw(self, rng: Random) -> Task:
        kind = rng.choices(list(KINDS), weights=(3, 1, 1, 1))[0]
        return Task(self.name, kind, (rng.choice(self._subjects(kind)),))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Give the facts in any order; with flaws, omit some or get one or more wrong."""
        names = list(KINDS[task.kind])
        rng.shuffle(names)
        if Trait.PARTIAL in traits:
            names = names[: rng.randint(1, len(names) - 1)]
        wrong = rng.randint(1, len(names)) if Trait.WRONG in traits else 0
        return [_state(RELATIONS[name], task.items[0], rng, wrong=i < wrong) for i, name in enumerate(names)]

    def grade(self, task: Task, text: Text) -> Grade:
        """Count the facts given, and the right ones among them."""
        return _grade_facts(text, task.items[0], KINDS[task.kind], topic=text.says(task.items[0]))

    def tell(self, rng: Random) -> list[str]:
        task = self.draw(rng)
        return [_state(RELATIONS[name], task.items[0], rng) for name in KINDS[task.kind]]


_NUMBERS = ("two", "three", "four", "five")


def _set_out(items: Sequence[str], style: Style) -> str:
    """Return items as the style lists them."""
    if not style.numbered:
        return join_items(items)
    return " ".join(f"{i}) {item}" for i, item in enumerate(items, 1))


class _Listing(Family):
    """A number of things of a category: "Give me three fruits."."""

    name = "listing"
    traits = _FLAWS
    slot_names = ("number",)

    def __init__(self) -> None:
        self.forms = {kind: make_forms(FORMS["listing"], {"number": _NUMBERS}, kind=kind) for kind in CATEGORIES}

    def draw(self, rng: Random) -> Task:
        return Task(self.name, rng.choice(list(CATEGORIES)), (rng.choice(_NUMBERS[1:]),))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Give the list; with flaws, make it too short or include things of another category."""
        number = _NUMBERS.index(task.items[0]) + 2
        items = rng.sample(CATEGORIES[task.kind], number)
        if Trait.PARTIAL in traits:
            items = items[: rng.randint(1, max(1, number - 2))]
        if Trait.WRONG in traits:
            other = rng.choice([name for name in CATEGORIES if name != task.kind])
            strangers = [thing for thing in CATEGORIES[other] if task.kind not in CATEGORIES_OF[thing]]
            for place in rng.sample(range(len(items)), max(1, len(items) // 2)):
                items[place] = rng.choice([thing for thing in strangers if thing not in items])
        line = rng.choice(("{}.", "Here are some {kind}: {}.", "These are {kind}: {}."))
        return [capital(line.format(_set_out(items, style), kind=task.kind))]

    def grade(self, task: Task, text: Text) -> Grade:
        """Compare the number of fitting things to the number asked for, and to all things listed."""
        number = _NUMBERS.index(task.items[0]) + 2
        listed = [word for word in text.vocabulary if word in CATEGORIES_OF]
        fitting = sum(task.kind in CATEGORIES_OF[word] for word in listed)
        if not fitting:
            return OFF_TOPIC
        return Grade(fitting / len(listed), 1.0, max(0.0, 1 - abs(len(listed) - number) / number))

    def tell(self, rng: Random) -> list[str]:
        kind = rng.choice(list(CATEGORIES))
        items = rng.sample(CATEGORIES[kind], rng.randint(3, 5))
        one = rng.choice(CATEGORIES[kind])
        return [f"Some {kind} are {join_items(items)}.", f"{capital(one)} is one of the {kind}."]


class _Ordering(Family):
    """Things to put in order: "Put the horse, the mouse and the fox in order from small to large."."""

    name = "ordering"
    traits = _FLAWS

    def __init__(self) -> None:
        slots = {"things": r"[a-z]+(?:, [a-z]+)*,? and [a-z]+"}
        self.forms = {
            kind: make_forms(FORMS["ordering"], slots, low=scale.low, high=scale.high) for kind, scale in SCALES.items()
        }

    def draw(self, rng: Random) -> Task:
        kind = rng.choice(list(SCALES))
        return Task(self.name, kind, self._disorder(kind, rng.sample(SCALES[kind].things, rng.choice((3, 3, 4))), rng))

    @staticmethod
    def _disorder(kind: str, things: Sequence[str], rng: Random) -> tuple[str, ...]:
        right = sorted(things, key=SCALES[kind].things.index)
        mixed = list(right)
        while mixed == right:
            rng.shuffle(mixed)
        return tuple(mixed)

    def slots(self, task: Task) -> dict[str, str]:
        return {"things": join_items(task.items)}

    def task(self, kind: str, values: Mapping[str, str]) -> Task | None:
        known = {thing.lower(): thing for thing in SCALES[kind].things}
        things = values["things"].replace(" and ", ", ").replace(",,", ",").split(", ")
        if not all(thing in known for thing in things):
            return None
        return Task(self.name, kind, tuple(known[thing] for thing in things))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Give the things in order; with flaws, in a wrong order or not all of them."""
        scale = SCALES[task.kind]
        things: Sequence[str] = sorted(task.items, key=scale.things.index)
        if Trait.WRONG in traits:
            things = self._disorder(task.kind, things, rng)
        if Trait.PARTIAL in traits:
            things = things[: rng.randint(1, len(things) - 1)]
        line = rng.choice(("From {low} to {high}: {}.", "The order is {}.", "{}."))
        return [capital(line.format(_set_out(things, style), low=scale.low, high=scale.high))]

    def grade(self, task: Task, text: Text) -> Grade:
        """Measure the share of the things that are present, and the share of neighbours in the right order."""
        asked = {thing.lower(): SCALES[task.kind].things.index(thing) for thing in task.items}
        ranks = [asked[word] for word in dict.fromkeys(text.words) if word in asked]
        share = len(ranks) / len(asked)
        if share <= 0.25:
            return Grade(0.0, share, share)
        steps = [a < b for a, b in pairwise(ranks)]
        return Grade(sum(steps) / len(steps) if steps else 0.5, min(1.0, 2 * share), share)

    def tell(self, rng: Random) -> list[str]:
        scale = SCALES[rng.choice(list(SCALES))]
        things = sorted(rng.sample(scale.things, 4), key=scale.things.index)
        return [
            f"From {scale.low} to {scale.high} the order is {join_items(things)}.",
            f"{capital(things[0])} comes before {things[-1]}.",
        ]


_CLAIM = re.compile(r"\b(?:is|are|makes) (\d+)\b")
"""A number that is claimed, rather than repeated from the question; for words without punctuation."""


class _Numeric(Family):
    """What sums and conversions share: a term and its result, as in "7 plus 5 is 12" or "3 hours are 180 minutes"."""

    traits = _FLAWS
    verb: ClassVar[str]

    @abstractmethod
    def result(self, task: Task) -> tuple[int, str]:
        """Return the right number, and its unit after a space."""

    @staticmethod
    def term(task: Task) -> str:
        """Return what is to be worked out, in words."""
        return " ".join((task.items[0], task.kind, *task.items[1:]))

    def _statement(self, task: Task, error: int = 0) -> str:
        number, unit = self.result(task)
        return f"{self.term(task)} {self.verb} {number + error}{unit}."

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Give the result; with flaws, a near miss, or admit ignorance."""
        if Trait.PARTIAL in traits:
            return [rng.choice((f"I am not sure about {self.term(task)}.", f"{self.term(task)} is too hard for me."))]
        if Trait.WRONG in traits:
            number, _ = self.result(task)
            return [self._statement(task, rng.choice([step for step in (-2, -1, 1, 2, 10) if number + step > 0]))]
        return [self._statement(task)]

    def grade(self, task: Task, text: Text) -> Grade:
        """Check whether the last number claimed is the result; the bare number is enough."""
        if text.says(self.term(task)):
            claims = _CLAIM.findall(" ".join(text.words))
        else:
            claims = [word for word in text.words if word.isdigit()] if len(text.words) <= 3 else []
            if not claims:
                return OFF_TOPIC
        right = bool(claims) and claims[-1] == str(self.result(task)[0])
        return Grade(float(right), 1.0, float(bool(claims)))

    def tell(self, rng: Random) -> list[str]:
        return [self._statement(task) for task in [self.draw(rng) for _ in range(2)]]


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
}


class _Arithmetic(_Numeric):
    """Sums, differences and products of small numbers."""

    name = "arithmetic"
    slot_names = ("a", "b")
    verb = "is"

    def __init__(self) -> None:
        slots = dict.fromkeys("ab", tuple(map(str, range(2, 20))))
        self.forms = {kind: make_forms(FORMS["arithmetic"], slots, kind=kind) for kind in _OPERATIONS}

    def draw(self, rng: Random) -> Task:
        kind = rng.choice(list(_OPERATIONS))
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        return Task(self.name, kind, (str(a + b if kind == "minus" else a), str(b)))

    def result(self, task: Task) -> tuple[int, str]:
        return _OPERATIONS[task.kind](*map(int, task.items)), ""


class _Conversion(_Numeric):
    """Amounts in a smaller unit."""

    name = "conversion"
    slot_names = ("count",)
    verb = "are"
    units: Mapping[str, tuple[str, int]] = WORDS["units"]
    """For each unit the smaller one to convert to, and how many of these it contains."""

    def __init__(self) -> None:
        slots = {"count": tuple(map(str, range(2, 10)))}
        self.forms = {
            unit: make_forms(FORMS["conversion"], slots, kind=unit, small=small)
            for unit, (small, _) in self.units.items()
        }

    def draw(self, rng: Random) -> Task:
        return Task(self.name, rng.choice(list(self.units)), (str(rng.randint(2, 9)),))

    def result(self, task: Task) -> tuple[int, str]:
        small, number = self.units[task.kind]
        return int(task.items[0]) * number, f" {small}"


FACTS = (_Fact(), _Description(), _Arithmetic(), _Conversion(), _Listing(), _Ordering())
