"""Simulated data sets such as `world/NAME`, from programs that can compute the true reward of any response.

The part of the name before the slash is an entry point of the group `hafrm.simulated` in any installed package, so the
core does not depend on these programs:

    [project.entry-points."hafrm.simulated"]
    world = "hafrm.paper.world.source:World"
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from hafrm.errors import UnknownDataError
from hafrm.pairs import Conversation, PreferencePair


class SimulatedSource(Protocol):
    """Interface of the class that an entry point names, which is called without arguments."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the source's sets."""
        ...

    def pairs(self, name: str, split: str, size: int | None) -> Sequence[PreferencePair]:
        """Return the first `size` pairs of a set's split, or its default number if None."""
        ...

    def reward(self, name: str, conversation: Conversation) -> float:
        """Return the true reward of a conversation under a set."""
        ...


def is_simulated(name: str) -> bool:
    """Return whether a data set's name belongs to a simulated source."""
    return name.partition("/")[0] in _sources()


def simulated_names() -> list[str]:
    """Return the names of all simulated sets, as used in `--data`."""
    return [f"{prefix}/{name}" for prefix in _sources() for name in simulated_source(prefix).names]


@functools.cache
def simulated_source(prefix: str) -> SimulatedSource:
    """Return the source of a prefix, such as "world"; raise UnknownDataError if no installed package provides it."""
    try:
        source: SimulatedSource = _sources()[prefix].load()()
    except KeyError:
        raise UnknownDataError(f"No installed package provides simulated data named {prefix!r}.") from None
    return source


def simulated_reward_name(name: str) -> str:
    """Add the prefix to the name of a set if it is missing: "helpful" becomes "world/helpful"."""
    return name if "/" in name else f"{next(iter(_sources()), 'world')}/{name}"


class SimulatedReward:
    """Scorer that returns the true rewards of a simulated set, such as "world/helpful".

    Raises UnknownDataError if there is no such set.
    """

    def __init__(self, name: str) -> None:
        prefix, _, self.name = name.partition("/")
        self.source = simulated_source(prefix)
        if self.name not in self.source.names:
            raise UnknownDataError(f"{name} is not a simulated set. Choose one of {', '.join(simulated_names())}.")

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return rewards in the order of the conversations."""
        return [self.source.reward(self.name, conversation) for conversation in conversations]


@functools.cache
def _sources() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group="hafrm.simulated")}
