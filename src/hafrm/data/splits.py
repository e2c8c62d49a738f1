"""Draw a split by prompt group, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from hafrm.pairs import PreferencePair


def split_by_group(
    pairs: Sequence[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Draw whole prompt groups until they contain a given share of the pairs.

    Groups are drawn in the order of a hash of seed and name. The draw therefore does not depend on the order of the
    rows, and a prompt that occurs in two data sets tends to be on the same side in both.

    Args:
        pairs: The pairs to split.
        fraction: Share of pairs to draw, at least 0 and below 1; above 0, at least one pair is drawn. The result may be
            larger, since groups stay whole.
        seed: Seed of the draw.

    Returns:
        The remaining pairs and the drawn pairs, each in the given order. At least one group remains.

    Raises:
        ValueError: the fraction is not between 0 and 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and less than 1, got {fraction}")
    sizes = Counter(pair.group for pair in pairs)
    wanted = max(1, round(fraction * len(pairs))) if fraction else 0
    drawn: set[str] = set()
    count = 0
    for group in sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())[:-1]:
        if count >= wanted:
            break
        drawn.add(group)
        count += sizes[group]
    return [pair for pair in pairs if pair.group not in drawn], [pair for pair in pairs if pair.group in drawn]
