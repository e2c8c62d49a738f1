"""All families of tasks, and reading the task out of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from hafrm.paper.world.conduct import HowTo, Unsafe
from hafrm.paper.world.facts import Description, Fact
from hafrm.paper.world.listing import Listing, Ordering
from hafrm.paper.world.numbers import Arithmetic, Conversion
from hafrm.paper.world.rewriting import Rewriting
from hafrm.paper.world.smalltalk import SmallTalk
from hafrm.paper.world.task import Family, Task

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Fact(),
        Description(),
        Arithmetic(),
        Conversion(),
        Listing(),
        Ordering(),
        Rewriting(),
        HowTo(),
        Unsafe(),
        SmallTalk(),
    )
}


@lru_cache(maxsize=20_000)
def read_task(prompt: str) -> Task | None:
    """The task that a prompt asks, whatever it is wrapped in; None for a prompt that is not of this world."""
    lowered = " ".join(prompt.lower().split())
    return next((task for family in FAMILIES.values() if (task := family.read(lowered))), None)
