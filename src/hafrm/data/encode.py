"""From pairs to token ids, counting over-long pairs and text that the template drops.

`ConversationEncoder` does the encoding; this module counts and raises errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hafrm.data.options import DataOptions
from hafrm.encoding import ConversationEncoder, OverlongError, TokenGroup
from hafrm.errors import CHANGE_ROLES, BadRowError, BadRowReason, DataError
from hafrm.pairs import PreferencePair

_EXAMPLES = 5
"""Number of pairs that a `LostText` names."""


@dataclass(frozen=True)
class LostText:
    """Text that the chat template drops: a part of one role's turns, or tools, documents or template arguments."""

    what: str
    """Kind of text, as in `TokenGroup.lost`: "tool text", "assistant reasoning", "tools"."""
    count: int
    of: int
    """Number of turns or rows that have it."""
    examples: list[str]
    """Ids of the first affected pairs."""

    def __str__(self) -> str:
        role, _, part = self.what.rpartition(" ")
        if part.startswith("chat_template_kwargs."):
            return f"{part} changes nothing in {self.count} of {self.of} rows"
        where = f"turns (role {role})" if role else "rows"
        return f"the chat template drops the {part} of {self.count} of {self.of} {where}"


@dataclass
class EncodedPairs:
    """Pairs within the length limit, with their token ids."""

    pairs: list[PreferencePair]
    groups: list[TokenGroup]
    """Token ids of each pair, in the same order; responses are chosen, rejected."""
    dropped: dict[str, int]
    """Number of pairs left out, by reason: "overlong" (a response exceeds the limit), "overlong_prompt" (the prompt
    alone fills it), and under `on_bad_row: skip` the `BadRowReason` of pairs that can't be encoded.
    """
    lost: list[LostText] = field(default_factory=list)
    """Text of the pairs that the chat template drops."""

    @property
    def identical(self) -> int:
        """Number of pairs with identical response tokens, which express no preference; truncation can cause them."""
        return sum(chosen == rejected for chosen, rejected in (group.responses for group in self.groups))

    @property
    def with_special_tokens(self) -> list[PreferencePair]:
        """Pairs whose messages contain special tokens, which are encoded like the chat template's own."""
        return [pair for pair, group in zip(self.pairs, self.groups, strict=True) if group.special_tokens]


def encode_pairs(pairs: Sequence[PreferencePair], encoder: ConversationEncoder, options: DataOptions) -> EncodedPairs:
    """Encode pairs, leaving out and counting those that do not fit.

    Args:
        pairs: The pairs.
        encoder: Provides the tokenizer, the limit and the rule for over-long pairs.
        options: Determines what happens to pairs that can't be encoded (`on_bad_row`).

    Raises:
        BadRowError: under `overlong: truncate` a prompt alone fills the limit, or the chat template refuses a
            conversation, and bad rows are not skipped.
        DataError: no pair is left.
    """
    result = EncodedPairs([], [], {})
    dropped: Counter[str] = Counter()
    why = ""
    outcomes = encoder.encode_many((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    for pair, outcome in zip(pairs, outcomes, strict=True):
        if isinstance(outcome, TokenGroup):
            result.pairs.append(pair)
            result.groups.append(outcome)
        else:
            dropped[_reason_to_drop(pair, outcome, encoder, options)] += 1
            why = why or (str(outcome) if isinstance(outcome, DataError) else "")
    if not result.pairs:
        raise DataError(_nothing_left(len(pairs), dropped, encoder, why))
    result.dropped = dict(dropped)
    result.lost = _lost(result.pairs, result.groups)
    return result


def _lost(pairs: Sequence[PreferencePair], groups: Sequence[TokenGroup]) -> list[LostText]:
    counts = Counter(what for group in groups for what in group.lost)
    return [
        LostText(
            what,
            count,
            of=sum(_having(what, pair) for pair in pairs),
            examples=[pair.id for pair, group in zip(pairs, groups, strict=True) if what in group.lost][:_EXAMPLES],
        )
        for what, count in counts.items()
    ]


def _having(what: str, pair: PreferencePair) -> int:
    """Count a pair's turns that contain `what`; for columns, return whether the pair has it."""
    role, _, part = what.rpartition(" ")
    if not role:
        column, _, argument = part.partition(".")
        value = pair.prompt.columns.get(column)
        return argument in (value or {}) if argument else bool(value)
    turns = [turn for turn in pair.turns if turn.role == role]
    if part in ("text", "reasoning"):
        return sum(bool(turn.content if part == "text" else turn.reasoning) for turn in turns)
    return sum(bool(turn.extras.get(part)) for turn in turns)


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


def _nothing_left(pairs: int, dropped: Counter[str], encoder: ConversationEncoder, why: str) -> str:
    if not pairs:
        return "There are no pairs to encode."
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    if why:
        return f"None of the {pairs} pairs can be used ({counts}). The first fault: {why} {CHANGE_ROLES}"
    return (
        f"None of the {pairs} pairs can be used with `data_options.max_length: {encoder.max_length}` ({counts}). "
        "Raise the limit, or set `data_options.overlong: truncate`."
    )
