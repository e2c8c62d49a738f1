"""Data sets that are drawn by a program, with the true reward of any response: `world/NAME` is one of the paper's.

A source is found by the part of its name before the slash, among the entry points of the group `hafrm.simulated` of all
installed packages, so that the core needs none of them:

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

__all__ = [
    "SimulatedReward",
    "SimulatedSource",
    "is_simulated",
    "simulated_names",
    "simulated_reward_name",
    "simulated_source",
]


class SimulatedSource(Protocol):
    """What an entry point names: a class that is called without arguments."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its sets."""
        ...

    def pairs(self, name: str, split: str, size: int | None) -> Sequence[PreferencePair]:
        """The pairs of a set's split; its first `size` ones, or as many as it has by default."""
        ...

    def reward(self, name: str, conversation: Conversation) -> float:
        """The true reward of a conversation by the values of a set."""
        ...


def is_simulated(name: str) -> bool:
    """Whether a data set's name is one of a simulated source."""
    return name.partition("/")[0] in _sources()


def simulated_names() -> list[str]:
    """The names of all simulated sets, as `--data` takes them."""
    return [f"{prefix}/{name}" for prefix in _sources() for name in simulated_source(prefix).names]


@functools.cache
def simulated_source(prefix: str) -> SimulatedSource:
    """The source of a prefix, such as "world".

    Raises:
        UnknownDataError: no installed package has it.
    """
    try:
        source: SimulatedSource = _sources()[prefix].load()()
    except KeyError:
        raise UnknownDataError(f"No installed package has simulated data of the name {prefix!r}.") from None
    return source


def simulated_reward_name(name: str) -> str:
    """The whole name of a set whose prefix may be left out: "helpful" is "world/helpful"."""
    return name if "/" in name else f"{next(iter(_sources()), 'world')}/{name}"


class SimulatedReward:
    """The true rewards of a simulated set, as a scorer.

    Args:
        name: The set's name, such as "world/helpful".

    Raises:
        UnknownDataError: there is no such set.
    """

    def __init__(self, name: str) -> None:
        prefix, _, self.name = name.partition("/")
        self.source = simulated_source(prefix)
        if self.name not in self.source.names:
            raise UnknownDataError(f"{name} is not a simulated set. There are {', '.join(simulated_names())}.")

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Rewards in the conversations' order."""
        return [self.source.reward(self.name, conversation) for conversation in conversations]


@functools.cache
def _sources() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group="hafrm.simulated")}
