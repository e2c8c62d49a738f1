"""Off-topic pairs: further training pairs whose rejected response is a good response to another prompt.

Length, format and style can't tell such a response from the chosen one, so the reward has to read the prompt. They are
the simplest of the augmentations of RRM (Liu et al., arXiv:2409.13156).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from hafrm.data.reports import SourceReport
from hafrm.errors import ConfigError
from hafrm.pairs import PreferencePair

_CHUNK = 1024
"""Pairs read ahead. Responses are drawn from these and the chunk before, so that no source is held in memory."""

_TRIES = 100
"""Number of draws after which a pair gets no off-topic pair: nearly all responses around it answer the same prompt."""


def with_off_topic(
    pairs: Iterator[PreferencePair], report: SourceReport, share: float, seed: int
) -> Iterator[PreferencePair]:
    """Yield pairs, each of a random share of them followed by an off-topic one.

    An off-topic pair has the prompt, the chosen response and the place of the one before it, and as rejected response
    the chosen one of another prompt.

    Args:
        pairs: The pairs of one source.
        report: The source's report, in which off-topic pairs are counted.
        share: Share of the pairs, from 0 to 1, to each of which an off-topic pair is added.
        seed: Seed of the draws, which depend on nothing else but the pairs.

    Raises:
        ConfigError: the pairs have no two prompts with different responses.
    """
    draw, wanted = random.Random(seed), 0
    before: list[PreferencePair] = []
    while chunk := list(islice(pairs, _CHUNK)):
        pool = [*before, *chunk]
        followed = set(draw.sample(range(len(chunk)), round(share * len(chunk))))
        wanted += len(followed)
        for place, pair in enumerate(chunk):
            yield pair
            if place in followed and (other := _other(pair, pool, draw)):
                report.off_topic += 1
                yield replace(pair, rejected=other.chosen, margin=None)
        before = chunk
    if wanted and not report.off_topic:
        raise ConfigError(
            f"data_options.off_topic: {report.name} has no two prompts with different responses. Leave it out."
        )


def _other(pair: PreferencePair, pool: Sequence[PreferencePair], draw: random.Random) -> PreferencePair | None:
    """Draw a pair of another prompt with another chosen response, or return None if the tries find no such pair."""
    drawn = (draw.choice(pool) for _ in range(_TRIES))
    return next((each for each in drawn if each.group != pair.group and each.chosen != pair.chosen), None)
