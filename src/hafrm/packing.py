"""Lay out token groups as the tensors of one forward pass.

Works on token ids and tensors; independent of models and tokenizers.
Shape letters: R rows, L columns of a row, S sequences (a prompt with one response), T response tokens, B pairs.

There are two layouts. `pad_rows` puts each sequence in its own row, padded to the longest: this works with any model.
`pack_rows` concatenates all groups in *one* row, [prompt | response 1 | ... | response N], so that a prompt is encoded
once and there is no padding. The positions of each response continue from the end of the prompt, and attention
(`hafrm.models.attention`) restricts a response to its own prompt and itself, using `SequenceBatch.segments`. One row is
enough: attention works per group and everything else per token, so a second row would only bring back padding.

A `SequenceBatch` locates states by *flat* indices into the R x L hidden states: the state from which a sequence's
reward is read, and the state that predicts each response token. Losses and scores only see these gathered states, so
callers need not know the layout.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from hafrm.encoding import TokenGroup


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """Lengths of one group's prompt and responses."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the group in a packed row."""
        return self.prompt + sum(self.responses)


@dataclass(frozen=True, slots=True)
class Segments:
    """The groups of a packed row, one after the other, each as [prompt | response 1 | ... | response N].

    Plain numbers, so attention can split its tensors without waiting for a copy from the device.
    """

    groups: tuple[PackedGroup, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the row, L."""
        return sum(group.tokens for group in self.groups)

    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coordinates of each token of the row.

        Returns:
            Three int64 tensors, [L]: the token's group; its response within the group, from 1, with 0 for the prompt;
            and its position in its own sequence.
        """
        group_of: list[int] = []
        response_of: list[int] = []
        position: list[int] = []
        for g, group in enumerate(self.groups):
            for r, length in enumerate((group.prompt, *group.responses)):
                start = group.prompt if r else 0
                group_of += [g] * length
                response_of += [r] * length
                position += range(start, start + length)
        return torch.tensor(group_of), torch.tensor(response_of), torch.tensor(position)


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences laid out in rows, with the indices that losses and scores need.

    Sequences follow the order of the groups and of each group's responses: for pairs, `rewards.view(-1, 2)` gives
    chosen and rejected as columns.
    """

    input_ids: Tensor
    """Token ids, [R, L]."""
    attention_mask: Tensor | None
    """1 at tokens, 0 at padding, [R, L]; None for a packed row, which has no padding."""
    position_ids: Tensor
    """Position of each token in its own sequence, [R, L]; 0 at padding."""
    score_index: Tensor
    """Flat index of the state of each sequence's last token, which gives its reward, [S]."""
    predictor_index: Tensor
    """Flat index of the state of the token before each response token, which predicts it, [T].

    In a packed row the prompt's last state predicts the first token of every response.
    """
    target_ids: Tensor
    """The response tokens, [T]."""
    sequence_index: Tensor
    """The sequence of each response token, [T], in ascending order."""
    lengths: tuple[int, ...]
    """Response tokens of each sequence, [S], as plain numbers, so reading them does not synchronise with the device."""
    segments: Segments | None = None
    """The groups of a packed row; None in the padded layout."""

    @property
    def num_sequences(self) -> int:
        """S, the number of sequences."""
        return len(self.lengths)

    @property
    def response_lengths(self) -> Tensor:
        """Response tokens of each sequence, [S]."""
        return torch.tensor(self.lengths, device=self.target_ids.device)

    @property
    def token_index(self) -> Tensor:
        """Flat index of the state of each response token, [T]: the state that has read the response up to it.

        It predicts the next token, except for a sequence's last token, where the reward is read.
        """
        ends = self.response_lengths.cumsum(0) - 1
        return self.predictor_index.roll(-1).index_copy(0, ends, self.score_index)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SequenceBatch:
        """Copy the batch to another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SequenceBatch:
        """Copy the batch to pinned memory, from which copies to a GPU are fast."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> SequenceBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


def pad_rows(groups: Sequence[TokenGroup], *, pad_token_id: int, padding_side: str = "right") -> SequenceBatch:
    """Lay out one sequence per row, padded to the longest, as any model accepts.

    Args:
        groups: Prompts with their responses; every response becomes one row, which repeats its prompt.
        pad_token_id: Token id that fills the rest of a row.
        padding_side: "right" or "left"; rewards and log-probs are the same for both.

    Raises:
        ValueError: there are no groups.
    """
    _require_groups(groups)
    rows = [(len(group.prompt), group.prompt + response) for group in groups for response in group.responses]
    width = max(len(ids) for _, ids in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    score_index, predictor_index = [], []
    for r, (prompt_length, ids) in enumerate(rows):
        start = width - len(ids) if padding_side == "left" else 0
        span = slice(start, start + len(ids))
        input_ids[r, span] = torch.tensor(ids)
        attention_mask[r, span] = 1
        position_ids[r, span] = torch.arange(len(ids))
        first = r * width + start
        score_index.append(first + len(ids) - 1)
        predictor_index.append(torch.arange(first + prompt_length - 1, first + len(ids) - 1))
    return SequenceBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        score_index=torch.tensor(score_index),
        predictor_index=torch.cat(predictor_index),
        target_ids=_target_ids(groups),
        sequence_index=_sequence_index(groups),
        lengths=_response_lengths(groups),
    )


def pack_rows(groups: Sequence[TokenGroup]) -> SequenceBatch:
    """Concatenate all groups in one row, each prompt once: R = 1, and L is the number of unique tokens.

    Only correct for models whose attention uses `segments`: see `HybridModel.supports_packing`.

    Args:
        groups: Prompts with any number of responses each; pairs have two, best-of-N has N.

    Raises:
        ValueError: there are no groups.
    """
    _require_groups(groups)
    segments = Segments(tuple(PackedGroup(len(g.prompt), tuple(map(len, g.responses))) for g in groups))
    input_ids: list[int] = []
    score_index: list[int] = []
    predictor_index: list[int] = []
    for group in groups:
        input_ids += group.prompt
        last_of_prompt = len(input_ids) - 1
        for response in group.responses:
            first = len(input_ids)
            input_ids += response
            predictor_index += (last_of_prompt, *range(first, len(input_ids) - 1))
            score_index.append(len(input_ids) - 1)
    _, _, position_ids = segments.coordinates()
    return SequenceBatch(
        input_ids=torch.tensor(input_ids)[None],
        attention_mask=None,
        position_ids=position_ids[None],
        score_index=torch.tensor(score_index),
        predictor_index=torch.tensor(predictor_index),
        target_ids=_target_ids(groups),
        sequence_index=_sequence_index(groups),
        lengths=_response_lengths(groups),
        segments=segments,
    )


def _require_groups(groups: Sequence[TokenGroup]) -> None:
    if not groups:
        raise ValueError("a batch needs at least one group")


def _target_ids(groups: Sequence[TokenGroup]) -> Tensor:
    return torch.tensor([token for group in groups for response in group.responses for token in response])


def _response_lengths(groups: Sequence[TokenGroup]) -> tuple[int, ...]:
    return tuple(len(response) for group in groups for response in group.responses)


def _sequence_index(groups: Sequence[TokenGroup]) -> Tensor:
    lengths = torch.tensor(_response_lengths(groups))
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def batches_by_length(lengths: Sequence[int], batch_size: int, tokens_per_batch: int) -> list[list[int]]:
    """Group row indices into batches of similar length to keep padding low.

    The longest rows come first, so a batch that is too large for memory fails at once instead of at the end.

    Args:
        lengths: Row length of each group.
        batch_size: Maximum groups per batch.
        tokens_per_batch: Maximum tokens per batch, padding included, with one row per group; a longer row gets its own
        batch.

    Raises:
        ValueError: a limit is not positive.
    """
    _require_budget(tokens_per_batch)
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    batches: list[list[int]] = []
    room = 0
    for index in _longest_first(lengths):
        if not room:
            batches.append([])
            room = min(batch_size, max(1, tokens_per_batch // lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches


def plan_batches(tokens: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Distribute packed groups over few batches of similar size within the token budget.

    Best-fit decreasing gives the number of batches, over which groups are distributed evenly if the budget allows: two
    batches of 1,500 tokens need less memory than one of 2,048 and one of 952. A group larger than the budget gets its
    own batch; see `split_group`. The fullest batches come first, so a budget that is too large for memory fails at once
    instead of at the end.

    Args:
        tokens: Unique tokens of each group.
        tokens_per_batch: The budget: tokens of one packed row.

    Returns:
        Batches of indices into `tokens`, each in ascending order; every index occurs once.

    Raises:
        ValueError: the budget is not positive.
    """
    _require_budget(tokens_per_batch)
    batches = _best_fit(tokens, tokens_per_batch)
    evened = even_shares(tokens, len(batches))
    if all(sum(tokens[index] for index in batch) <= tokens_per_batch for batch in evened):
        batches = evened
    return sorted(map(sorted, batches), key=lambda batch: -sum(tokens[index] for index in batch))


def even_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Split items into shares of similar total size: the largest first, each to the smallest share so far.

    Args:
        sizes: Size of each item.
        count: Number of shares.

    Returns:
        Indices into `sizes` per share, in ascending order; some shares are empty if there are fewer items than shares.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, share) for share in range(count)]  # a heap of (sum, share)
    for index in _longest_first(sizes):
        total, share = sums[0]
        shares[share].append(index)
        heapq.heapreplace(sums, (total + sizes[index], share))
    return [sorted(share) for share in shares]


def _best_fit(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Pack by best-fit decreasing: the longest first, each into the fullest batch that has room for it."""
    batches: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, batch), in ascending order
    for index in _longest_first(tokens):
        tightest = bisect_left(rooms, (tokens[index], 0))
        if tightest < len(rooms):
            room, batch = rooms.pop(tightest)
        else:
            room, batch = budget, len(batches)
            batches.append([])
        batches[batch].append(index)
        insort(rooms, (room - tokens[index], batch))
    return batches


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def split_group(group: TokenGroup, tokens_per_batch: int) -> list[TokenGroup]:
    """Split a group of many responses into groups within the budget, repeating the prompt.

    Args:
        group: A prompt with its responses.
        tokens_per_batch: Maximum unique tokens per part. A part with a single response may exceed it.

    Returns:
        Groups with the same responses, in order.

    Raises:
        ValueError: the budget is not positive.
    """
    _require_budget(tokens_per_batch)
    parts: list[list[tuple[int, ...]]] = []
    room = 0
    for response in group.responses:
        if not parts or len(response) > room:
            parts.append([])
            room = tokens_per_batch - len(group.prompt)
        parts[-1].append(response)
        room -= len(response)
    return [TokenGroup(group.prompt, tuple(responses)) for responses in parts]


def _require_budget(tokens_per_batch: int) -> None:
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be positive, got {tokens_per_batch}")
