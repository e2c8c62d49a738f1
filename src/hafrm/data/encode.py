"""From pairs to token ids: the rule for over-long pairs applied, every pair left out counted.

Knows no tokenizer: `ConversationEncoder` does the encoding. Counts and errors are this module's part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hafrm.data.options import DataOptions
from hafrm.encoding import ConversationEncoder, OverlongError, TokenGroup
from hafrm.errors import BadRowError, BadRowReason, DataError
from hafrm.pairs import PreferencePair

__all__ = ["EncodedPairs", "encode_pairs"]


@dataclass
class EncodedPairs:
    """Pairs that fit the limit, with their token ids."""

    pairs: list[PreferencePair]
    groups: list[TokenGroup]
    """The token ids of each pair, in the same order; responses are chosen, rejected."""
    dropped: dict[str, int]
    """Pairs left out, by reason: "overlong" (a response passes the limit), "overlong_prompt" (the prompt alone fills
    it), and under `on_bad_row: skip` the `BadRowReason` of pairs that can't be encoded."""

    @property
    def identical(self) -> int:
        """Pairs whose two responses are the same tokens, which show no preference; truncating makes such pairs."""
        return sum(chosen == rejected for chosen, rejected in (group.responses for group in self.groups))


def encode_pairs(pairs: Sequence[PreferencePair], encoder: ConversationEncoder, options: DataOptions) -> EncodedPairs:
    """Encode pairs, leaving out and counting those that do not fit.

    Args:
        pairs: The pairs.
        encoder: Holds the tokenizer, the limit and the rule for over-long pairs.
        options: Says what happens to a pair that can't be encoded (`on_bad_row`).

    Raises:
        BadRowError: under `overlong: truncate` a prompt alone fills the limit, or the chat template refuses a
            conversation, and bad rows are not to be skipped.
        DataError: no pair is left.
    """
    result = EncodedPairs([], [], {})
    dropped: Counter[str] = Counter()
    outcomes = encoder.encode_many((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    for pair, outcome in zip(pairs, outcomes, strict=True):
        if isinstance(outcome, TokenGroup):
            result.pairs.append(pair)
            result.groups.append(outcome)
        else:
            dropped[_reason_to_drop(pair, outcome, encoder, options)] += 1
    if not result.pairs:
        raise DataError(_nothing_left(len(pairs), dropped, encoder))
    result.dropped = dict(dropped)
    return result


def _reason_to_drop(
    pair: PreferencePair, fault: OverlongError | DataError, encoder: ConversationEncoder, options: DataOptions
) -> str:
    if isinstance(fault, OverlongError) and encoder.overlong == "drop":
        return "overlong_prompt" if fault.prompt_alone else "overlong"
    error = _bad_row(pair, fault)
    if options.on_bad_row == "error":
        raise error
    return error.reason.value


def _bad_row(pair: PreferencePair, fault: OverlongError | DataError) -> BadRowError:
    if isinstance(fault, OverlongError):
        return BadRowError(
            BadRowReason.PROMPT_TOO_LONG,
            source=pair.source,
            row=pair.row,
            field="prompt",
            problem=f"alone fills the limit of {fault.limit} tokens, so that truncating leaves no response to score",
            remedy="Shorten it, or raise `data_options.max_length`.",
        )
    return BadRowError.refused(str(fault), source=pair.source, row=pair.row)


def _nothing_left(pairs: int, dropped: Counter[str], encoder: ConversationEncoder) -> str:
    if not pairs:
        return "There are no pairs to encode."
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return (
        f"None of the {pairs} pairs can be used with `data_options.max_length: {encoder.max_length}` ({counts}). "
        "Raise the limit, or set `data_options.overlong: truncate`."
    )
