"""A simulated preference world: the data and backbones of the demo, with an oracle that knows which response is better.

Prompts ask for facts, sums, lists, rewritings, advice or sympathy, or for something unsafe. Answers vary in seven
hidden qualities. Five sets differ in what their annotators value and in their style; labels are drawn by the
Bradley-Terry model from an oracle reward that is computed from the text alone. All of it follows from seeds: no
network, no data files. `backbone`, which trains the world's models, is not imported here, as it loads torch.
"""

from __future__ import annotations

from hafrm.paper.world.oracle import PROFILES, WORLD_SETS, Annotator, Profile, Qualities, Values, qualities
from hafrm.paper.world.sets import oracle_reward, split_of, world_pairs

__all__ = [
    "PROFILES",
    "WORLD_SETS",
    "Annotator",
    "Profile",
    "Qualities",
    "Values",
    "oracle_reward",
    "qualities",
    "split_of",
    "world_pairs",
]
