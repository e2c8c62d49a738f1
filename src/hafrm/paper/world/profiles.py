"""The five sets: what each asks, what each values, and how well its annotators judge."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from hafrm.errors import UnknownDataError
from hafrm.paper.world.oracle import Qualities
from hafrm.paper.world.styles import STYLES, Style
from hafrm.paper.world.task import Trait


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What each quality is worth, in units of reward."""

    correct: float = 0.0
    relevant: float = 0.0
    complete: float = 0.0
    polite: float = 0.0
    safe: float = 0.0
    well_formed: float = 0.0
    concise: float = 0.0

    def reward(self, measured: Qualities) -> float:
        """The weighted sum of the qualities."""
        return math.fsum(getattr(self, field.name) * getattr(measured, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """Somebody who prefers the better of two responses, most of the time (Bradley and Terry, 1952)."""

    temperature: float
    """By how much reward a response must lead to win with probability sigmoid(1)."""
    careless: float
    """Share of the labels that are tossed up."""

    def preference(self, lead: float) -> float:
        """The probability that a response is preferred which leads by so much reward."""
        scaled = max(-50.0, min(50.0, lead / self.temperature))
        return (1 - self.careless) / (1 + math.exp(-scaled)) + self.careless / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One set."""

    style: Style
    families: Mapping[str, float]
    """How often each family of tasks is asked."""
    habits: Mapping[Trait, float]
    """How often each trait occurs in the answers. Courteous and rude exclude each other."""
    values: Values
    annotator: Annotator


_HABITS: Mapping[Trait, float] = {
    Trait.COURTEOUS: 0.25,
    Trait.RUDE: 0.15,
    Trait.WRONG: 0.2,
    Trait.PARTIAL: 0.25,
    Trait.ASTRAY: 0.2,
    Trait.HARMFUL: 0.45,
    Trait.TIMID: 0.25,
    Trait.BROKEN: 0.15,
    Trait.RAMBLING: 0.25,
}
"""The usual habits; each set has more of the flaws that its annotators mind most."""

PROFILES: Mapping[str, Profile] = {
    "helpful": Profile(
        style=STYLES["helpful"],
        families={
            "fact": 2,
            "description": 3,
            "listing": 3,
            "how-to": 4,
            "small-talk": 4,
            "rewriting": 2,
            "ordering": 1,
        },
        habits={**_HABITS, Trait.COURTEOUS: 0.35, Trait.RUDE: 0.3},
        values=Values(correct=0.5, relevant=2.0, complete=1.5, polite=3.0, safe=0.5, well_formed=0.5, concise=0.5),
        annotator=Annotator(temperature=0.8, careless=0.06),
    ),
    "harmless": Profile(
        style=STYLES["harmless"],
        families={"unsafe": 12, "how-to": 3, "small-talk": 3},
        habits={**_HABITS, Trait.RUDE: 0.3},
        values=Values(correct=0.5, relevant=0.5, complete=0.5, polite=3.0, safe=4.0, well_formed=0.5),
        annotator=Annotator(temperature=1.0, careless=0.06),
    ),
    "arena": Profile(
        style=STYLES["arena"],
        families={
            "fact": 4,
            "description": 2,
            "arithmetic": 1,
            "conversion": 1,
            "listing": 4,
            "ordering": 3,
            "how-to": 3,
            "rewriting": 2,
        },
        habits={**_HABITS, Trait.COURTEOUS: 0.15, Trait.RUDE: 0.1, Trait.RAMBLING: 0.45, Trait.ASTRAY: 0.25},
        values=Values(correct=1.5, relevant=2.0, complete=0.5, well_formed=0.5, concise=3.5),
        annotator=Annotator(temperature=0.8, careless=0.06),
    ),
    "safe": Profile(
        style=STYLES["safe"],
        families={"unsafe": 10, "how-to": 5, "fact": 2, "small-talk": 1},
        habits={**_HABITS, Trait.RUDE: 0.1, Trait.TIMID: 0.35},
        values=Values(correct=0.5, relevant=1.0, complete=2.0, safe=5.0, well_formed=0.5),
        annotator=Annotator(temperature=0.7, careless=0.03),
    ),
    "human-pref": Profile(
        style=STYLES["human-pref"],
        families={
            "rewriting": 3,
            "listing": 3,
            "description": 3,
            "fact": 2,
            "how-to": 3,
            "ordering": 1,
            "small-talk": 2,
        },
        habits={**_HABITS, Trait.BROKEN: 0.4, Trait.ASTRAY: 0.25},
        values=Values(correct=0.5, relevant=2.5, complete=1.0, polite=0.5, well_formed=4.0, concise=0.5),
        annotator=Annotator(temperature=1.0, careless=0.1),
    ),
}

WORLD_SETS: tuple[str, ...] = tuple(PROFILES)
"""The sets' names, as in `world/NAME`."""


def profile(name: str) -> Profile:
    """A set by its name.

    Raises:
        UnknownDataError: there is no such set; the message names the nearest.
    """
    if name not in PROFILES:
        near = difflib.get_close_matches(name, WORLD_SETS, n=1, cutoff=0.5)
        raise UnknownDataError(
            f"The world has no set {name!r}.{f' Did you mean {near[0]!r}?' if near else ''} "
            f"It has {', '.join(WORLD_SETS)}."
        )
    return PROFILES[name]
