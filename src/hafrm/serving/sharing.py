"""Sharing of beginnings: sequences that begin alike become groups whose common beginning a model encodes once.

Trainers send several responses to each prompt, often one per request, and as rendered texts or ids they do not show
where the prompt ends. A reward that is read at the last token does not depend on where a sequence is divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hafrm.encoding import TokenGroup, common_prefix


def regrouped(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Divide sequences, each a group with one response, so that those that begin alike have the same prompt.

    Returns:
        The same sequences in the same order. The groups formed save about as many tokens as possible.
    """
    whole = [group.prompt + group.responses[0] for group in groups]
    distinct = sorted(set(whole))
    # The last token always belongs to the response.
    shared = [common_prefix([first[:-1], second[:-1]]) for first, second in pairwise(distinct)]
    lengths: dict[tuple[int, ...], int] = {}
    for start, end, length in _parts(shared):
        for ids in distinct[start:end]:
            lengths[ids] = length or len(ids) - 1
    return [TokenGroup(ids[: lengths[ids]], (ids[lengths[ids] :],)) for ids in whole]


def _parts(shared: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Divide sorted sequences into parts, as (start, end, length of the common beginning, 0 for a single sequence).

    `shared` has the length of the common beginning of each sequence with the next one.
    """
    spans = [(0, len(shared) + 1)]
    while spans:
        start, end = spans.pop()
        inner = shared[start : end - 1]
        least = min(inner, default=0)
        borders = [start, *(start + i + 1 for i, length in enumerate(inner) if length == least), end]
        apart = list(pairwise(borders))
        if least and len(inner) * least >= sum(
            (to - since - 1) * min(shared[since : to - 1], default=0) for since, to in apart
        ):
            yield start, end, least
        elif not inner:
            yield start, end, 0
        else:
            spans += apart
