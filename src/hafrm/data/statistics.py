"""Statistics of a set of pairs: the paper's Table 1, and how well length predicts the label.

Pure functions that compute numbers from pairs (and their token ids). A "QA" is one prompt with one response; a pair has
two, and the paper's "per QA" is the mean over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from hafrm.encoding import TokenGroup
from hafrm.pairs import Message, PreferencePair


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Statistics of a set of pairs."""

    size: int
    """Number of pairs (Table 1's "Size")."""
    prompts: int
    """Number of prompt groups."""
    turns_per_prompt: float
    words_per_qa: float
    """Words, separated by white space, of a prompt with one response (Table 1's "#Word/QA")."""
    words_per_chosen: float
    words_per_rejected: float
    length_accuracy: float
    """Accuracy of picking the longer response; see `length_accuracy`."""
    tokens_per_qa: float | None = None
    """Tokens of a prompt with one response, chat template included (Table 1's "#Token/QA"); None without a tokenizer.
    """

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as plain values for JSON."""
        return asdict(self)


def pair_statistics(pairs: Sequence[PreferencePair], groups: Sequence[TokenGroup] | None = None) -> PairStatistics:
    """Describe a set of pairs.

    Args:
        pairs: The pairs.
        groups: Their token ids, for token statistics; pairs that do not fit may be missing.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs to describe")
    prompt = [_words(pair.prompt.turns) for pair in pairs]
    chosen, rejected = [_words(pair.chosen) for pair in pairs], [_words(pair.rejected) for pair in pairs]
    return PairStatistics(
        size=len(pairs),
        prompts=len({pair.group for pair in pairs}),
        turns_per_prompt=_mean([len(pair.prompt.turns) for pair in pairs]),
        words_per_qa=_mean(prompt) + (_mean(chosen) + _mean(rejected)) / 2,
        words_per_chosen=_mean(chosen),
        words_per_rejected=_mean(rejected),
        length_accuracy=length_accuracy(pairs),
        tokens_per_qa=_mean(list(chain.from_iterable(group.lengths for group in groups))) if groups else None,
    )


def length_accuracy(pairs: Sequence[PreferencePair]) -> float:
    """Return the accuracy of picking the response with more characters; equal lengths count one half.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs")
    longer = [_characters(pair.chosen) - _characters(pair.rejected) for pair in pairs]
    return _mean([0.5 if not difference else float(difference > 0) for difference in longer])


def _words(messages: Sequence[Message]) -> int:
    return sum(len(message.text.split()) for message in messages)


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(message.text) for message in messages)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
