"""The simulated world as a source of data: `world/NAME`."""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.pairs import Conversation, PreferencePair
from hafrm.paper.world.oracle import WORLD_SETS
from hafrm.paper.world.sets import VARIANTS, oracle_reward, world_pairs


class World:
    """See `hafrm.data.simulated.SimulatedSource`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The five sets and their variants."""
        return (*WORLD_SETS, *(f"{name}-{variant}" for variant in VARIANTS for name in WORLD_SETS))

    def pairs(self, name: str, split: str, size: int | None) -> Sequence[PreferencePair]:
        """See `world_pairs`."""
        return world_pairs(name, split, size=size)

    def reward(self, name: str, conversation: Conversation) -> float:
        """See `oracle_reward`."""
        return oracle_reward(conversation, name)
