"""Lists and orders: give things of a category, put things in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random

from hafrm.paper.world.knowledge import CATEGORIES, CATEGORIES_OF, SCALES
from hafrm.paper.world.styles import Style
from hafrm.paper.world.task import Family, Grade, Task, Trait, make_forms
from hafrm.paper.world.text import Text, capital, join_items

_NUMBERS = ("two", "three", "four", "five")


def _set_out(items: Sequence[str], style: Style) -> str:
    """Items as the style lists them."""
    if not style.numbered:
        return join_items(items)
    return " ".join(f"{i}) {item}" for i, item in enumerate(items, 1))


class Listing(Family):
    """Give so many things of a category: "Give me three fruits."."""

    name = "listing"
    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    def __init__(self) -> None:
        self.forms = {
            category: make_forms(
                {"number": _NUMBERS},
                questions=(f"which {{number}} {category} can you name", f"what are {{number}} {category}"),
                requests=(
                    f"give me {{number}} {category}",
                    f"list {{number}} {category}",
                    f"name {{number}} {category}",
                ),
            )
            for category in CATEGORIES
        }

    def draw(self, rng: Random) -> Task:
        """A category and a number."""
        return Task(self.name, rng.choice(list(CATEGORIES)), (rng.choice(_NUMBERS[1:]),))

    def slots(self, task: Task) -> dict[str, str]:
        """The number, in words."""
        return {"number": task.items[0]}

    def task(self, kind: str, values: Mapping[str, str]) -> Task:
        """The list that a prompt asks for."""
        return Task(self.name, kind, (values["number"],))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The list; too short, or with things of another category in it."""
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
        """How many fitting things there are for the number asked, and what share of the things listed fit."""
        number = _NUMBERS.index(task.items[0]) + 2
        listed = [word for word in text.vocabulary if word in CATEGORIES_OF]
        fitting = sum(task.kind in CATEGORIES_OF[word] for word in listed)
        if not fitting:
            return Grade(0.0, 0.0, 0.0)
        return Grade(fitting / len(listed), 1.0, max(0.0, 1 - abs(len(listed) - number) / number))

    def tell(self, rng: Random) -> list[str]:
        """What belongs to a category."""
        kind = rng.choice(list(CATEGORIES))
        items = rng.sample(CATEGORIES[kind], rng.randint(3, 5))
        one = rng.choice(CATEGORIES[kind])
        return [f"Some {kind} are {join_items(items)}.", f"{capital(one)} is one of the {kind}."]


class Ordering(Family):
    """Put things in order: "Put the horse, the mouse and the fox in order from small to large."."""

    name = "ordering"
    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    def __init__(self) -> None:
        self.forms = {
            kind: make_forms(
                {"things": r"[a-z]+(?:, [a-z]+)*,? and [a-z]+"},
                questions=(f"what is the order of {{things}} from {scale.low} to {scale.high}",),
                requests=(
                    f"put {{things}} in order from {scale.low} to {scale.high}",
                    f"sort {{things}} from {scale.low} to {scale.high}",
                ),
            )
            for kind, scale in SCALES.items()
        }

    def draw(self, rng: Random) -> Task:
        """Three or four things of a scale, not yet in order."""
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
        """The things as listed."""
        return {"things": join_items(task.items)}

    def task(self, kind: str, values: Mapping[str, str]) -> Task | None:
        """The things that a prompt asks to sort."""
        known = {thing.lower(): thing for thing in SCALES[kind].things}
        things = values["things"].replace(" and ", ", ").replace(",,", ",").split(", ")
        if not all(thing in known for thing in things):
            return None
        return Task(self.name, kind, tuple(known[thing] for thing in things))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The things in order; out of order, or not all of them."""
        scale = SCALES[task.kind]
        things: Sequence[str] = sorted(task.items, key=scale.things.index)
        if Trait.WRONG in traits:
            things = self._disorder(task.kind, things, rng)
        if Trait.PARTIAL in traits:
            things = things[: rng.randint(1, len(things) - 1)]
        line = rng.choice(("From {low} to {high}: {}.", "The order is {}.", "{}."))
        return [capital(line.format(_set_out(things, style), low=scale.low, high=scale.high))]

    def grade(self, task: Task, text: Text) -> Grade:
        """What share of the things is there, and what share of the neighbours stands in order."""
        asked = {thing.lower(): SCALES[task.kind].things.index(thing) for thing in task.items}
        ranks = [asked[word] for word in dict.fromkeys(text.words) if word in asked]
        share = len(ranks) / len(asked)
        if share <= 0.25:
            return Grade(0.0, share, share)
        steps = [a < b for a, b in pairwise(ranks)]
        return Grade(sum(steps) / len(steps) if steps else 0.5, min(1.0, 2 * share), share)

    def tell(self, rng: Random) -> list[str]:
        """Neighbours and runs of a scale."""
        scale = SCALES[rng.choice(list(SCALES))]
        things = sorted(rng.sample(scale.things, 4), key=scale.things.index)
        return [
            f"From {scale.low} to {scale.high} the order is {join_items(things)}.",
            f"{capital(things[0])} comes before {things[-1]}.",
        ]
