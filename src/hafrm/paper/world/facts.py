"""Questions about facts: one fact of a subject, or all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from hafrm.paper.world.knowledge import KINDS, RELATIONS, Relation
from hafrm.paper.world.styles import Style
from hafrm.paper.world.task import Family, Grade, Point, Task, Trait, grade_points, make_forms
from hafrm.paper.world.text import Text, capital


def _subjects(kind: str) -> tuple[str, ...]:
    return tuple(RELATIONS[KINDS[kind][0]].values)


def _state(relation: Relation, subject: str, rng: Random, *, wrong: bool = False) -> str:
    """One fact as a sentence; a wrong one takes another subject's value."""
    value = relation.values[subject]
    if wrong:
        value = rng.choice(sorted({*relation.values.values()} - {value}))
    return capital(rng.choice(relation.statements).format(subject=subject, value=value))


def _point(relation: Relation, subject: str) -> Point:
    value = relation.values[subject]
    return Point((value,), tuple(sorted({*relation.values.values()} - {value})))


class Fact(Family):
    """One fact: "What is the capital of Peru?"."""

    name = "fact"
    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    def __init__(self) -> None:
        self.forms = {
            name: make_forms(
                {"subject": tuple(relation.values)}, questions=relation.questions, requests=relation.requests
            )
            for name, relation in RELATIONS.items()
        }

    def draw(self, rng: Random) -> Task:
        """A fact at random."""
        kind = rng.choice(list(RELATIONS))
        return Task(self.name, kind, (rng.choice(list(RELATIONS[kind].values)),))

    def slots(self, task: Task) -> dict[str, str]:
        """The subject."""
        return {"subject": task.items[0]}

    def task(self, kind: str, values: Mapping[str, str]) -> Task:
        """The fact that a prompt asks for."""
        return Task(self.name, kind, (values["subject"],))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The fact, now and then with another of the same subject; or a confession not to know it."""
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
        """Right value, for the right subject; the bare value will do."""
        relation, subject = RELATIONS[task.kind], task.items[0]
        point = _point(relation, subject)
        terse = len(text.words) <= 4 and text.says_any(point.right)
        return grade_points(text, [point], topic=terse or text.says(subject))

    def tell(self, rng: Random) -> list[str]:
        """A fact in both wordings, and another of the kind."""
        relation = RELATIONS[rng.choice(list(RELATIONS))]
        one, other = rng.sample(list(relation.values), 2)
        both = [capital(line.format(subject=one, value=relation.values[one])) for line in relation.statements]
        return [*both, _state(relation, other, rng)]


class Description(Family):
    """All that is known of a subject: "Tell me about the fox."."""

    name = "description"
    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    def __init__(self) -> None:
        self.forms = {
            kind: make_forms(
                {"subject": _subjects(kind)},
                questions=(
                    f"what do you know about {self._noun(kind)}",
                    f"what should I know about {self._noun(kind)}",
                ),
                requests=(
                    f"tell me about {self._noun(kind)}",
                    f"describe {self._noun(kind)}",
                    f"write a few words about {self._noun(kind)}",
                ),
            )
            for kind in KINDS
        }

    @staticmethod
    def _noun(kind: str) -> str:
        return "the {subject}" if kind in ("animal", "job") else "{subject}"

    def draw(self, rng: Random) -> Task:
        """A subject at random; animals, of which most is known, come up most."""
        kind = rng.choices(list(KINDS), weights=(3, 1, 1, 1))[0]
        return Task(self.name, kind, (rng.choice(_subjects(kind)),))

    def slots(self, task: Task) -> dict[str, str]:
        """The subject."""
        return {"subject": task.items[0]}

    def task(self, kind: str, values: Mapping[str, str]) -> Task:
        """The subject that a prompt asks about."""
        return Task(self.name, kind, (values["subject"],))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The facts in any order; some left out, or one or two wrong."""
        names = list(KINDS[task.kind])
        rng.shuffle(names)
        if Trait.PARTIAL in traits:
            names = names[: rng.randint(1, len(names) - 1)]
        wrong = rng.randint(1, len(names)) if Trait.WRONG in traits else 0
        return [_state(RELATIONS[name], task.items[0], rng, wrong=i < wrong) for i, name in enumerate(names)]

    def grade(self, task: Task, text: Text) -> Grade:
        """How many of the facts are given, and how many of these are right."""
        subject = task.items[0]
        points = [_point(RELATIONS[name], subject) for name in KINDS[task.kind]]
        return grade_points(text, points, topic=text.says(subject))

    def tell(self, rng: Random) -> list[str]:
        """Everything about one subject."""
        task = self.draw(rng)
        return [_state(RELATIONS[name], task.items[0], rng) for name in KINDS[task.kind]]
