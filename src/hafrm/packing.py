"""From token groups to the tensors of one forward pass.

Knows token ids and tensors. Knows no model and no tokenizer.
Shape letters: R rows, L columns of a row, S sequences (a prompt with one response), T response tokens, B pairs.

There are two layouts. `pad_rows` gives every sequence a row of its own, padded to the longest: any model takes it.
`pack_rows` lays all groups end to end in *one* row, [prompt | response 1 | ... | response N], so that a prompt is
encoded once and nothing is padded; each response's positions go on from the prompt's end. That a response sees its own
prompt and itself alone is the attention's business (`hafrm.models.attention`), to which `SequenceBatch.segments` says
where things lie. One row is all it takes: everything but attention works token by token, attention works group by
group, and a second row would only bring back padding.

A `SequenceBatch` says where things are by *flat* indices into the R x L hidden states: the state that a sequence's
reward is read from, and the state that predicts each response token. Losses and scores see only those gathers, so how
sequences lie in rows is no caller's business.
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

__all__ = [
    "PackedGroup",
    "Segments",
    "SequenceBatch",
    "batches_by_length",
    "even_shares",
    "pack_rows",
    "pad_rows",
    "plan_batches",
    "split_group",
]


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """The lengths of one group: its prompt's and each response's."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the group takes in a packed row."""
        return self.prompt + sum(self.responses)


@dataclass(frozen=True, slots=True)
class Segments:
    """How groups lie in a packed row: end to end, each as [prompt | response 1 | ... | response N].

    Plain numbers, hashable and the same on every device: attention splits its tensors by them, with no copy to wait
    for.
    """

    groups: tuple[PackedGroup, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the row, L."""
        return sum(group.tokens for group in self.groups)

    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each token of the row stands.

        Returns:
            Three int64 tensors, [L]: the token's group; its response in the group, from 1, with 0 for the prompt; and
            its position in its own sequence.
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
    """Sequences laid out in rows, with the places that losses and scores read.

    Sequences stand in the order of their groups, each group's responses in order: for pairs, `rewards.view(-1, 2)`
    gives chosen and rejected side by side.
    """

    input_ids: Tensor
    """Token ids, [R, L]."""
    attention_mask: Tensor | None
    """1 at tokens, 0 at padding, [R, L]; None for a packed row, which has no padding."""
    position_ids: Tensor
    """Each token's position in its own sequence, [R, L]; 0 at padding."""
    score_index: Tensor
    """Flat index of the state that gives each sequence's reward: its last token's, [S]."""
    predictor_index: Tensor
    """Flat index of the state that predicts each response token: the token before it, [T].

    In a packed row the prompt's last state predicts the first token of every response.
    """
    target_ids: Tensor
    """The response tokens themselves, [T]."""
    sequence_index: Tensor
    """The sequence that each response token belongs to, [T], in rising order."""
    lengths: tuple[int, ...]
    """Response tokens of each sequence, [S]: plain numbers, which no device needs to be waited for."""
    segments: Segments | None = None
    """How groups lie in the packed row; None in the padded layout."""

    @property
    def num_sequences(self) -> int:
        """S, the number of sequences."""
        return len(self.lengths)

    @property
    def response_lengths(self) -> Tensor:
        """Response tokens of each sequence, [S]."""
        return torch.tensor(self.lengths, device=self.target_ids.device)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SequenceBatch:
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SequenceBatch:
        """The same batch in pinned memory, for fast copies to a GPU."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> SequenceBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


def pad_rows(groups: Sequence[TokenGroup], *, pad_token_id: int, padding_side: str = "right") -> SequenceBatch:
    """Lay out one sequence a row, padded to the longest: the plain layout that any model takes.

    Args:
        groups: Prompts with their responses; every response becomes one row that repeats its prompt.
        pad_token_id: Fills the rest of a row.
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
    """Lay all groups end to end in one row, each prompt once: R = 1, and L is the number of unique tokens.

    Only a model whose attention knows `segments` computes this rightly: see `HybridModel.supports_packing`.

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
    """Row indices into batches of like length, the longest first, so that little is padded.

    The longest batch comes first so that a batch too large for memory fails at once, not at the end.

    Args:
        lengths: The length of each group's rows.
        batch_size: The most groups of a batch.
        tokens_per_batch: The most tokens of a batch for one row a group, padding included; a longer row is a batch by
            itself.

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
    """Spread packed groups over few batches of like size, none of more tokens than the budget.

    Best-fit decreasing says how few batches do; into so many the groups are dealt evenly, where that keeps the budget:
    two batches of 1,500 tokens need less memory than one of 2,048 and one of 952. A group of more tokens than the
    budget is a batch by itself: see `split_group`. The fullest batches come first, so that a budget too large for
    memory fails at once, not at the end.

    Args:
        tokens: The unique tokens of each group.
        tokens_per_batch: The budget: tokens of one packed row.

    Returns:
        Batches of indices into `tokens`, every index once; in a batch they stand in rising order.

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
    """Deal things out so that each share has about as much: the largest first, each to the share that has least.

    Args:
        sizes: How much each thing is.
        count: How many shares to make.

    Returns:
        Each share's indices into `sizes`, in rising order; none where there are fewer things than shares.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, share) for share in range(count)]  # a heap
    for index in _longest_first(sizes):
        total, share = sums[0]
        shares[share].append(index)
        heapq.heapreplace(sums, (total + sizes[index], share))
    return [sorted(share) for share in shares]


def _best_fit(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest batch that has room for it."""
    batches: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, batch), in rising order
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
    """Cut a group of many responses into groups that each fit the budget, repeating the prompt.

    Args:
        group: A prompt with its responses.
        tokens_per_batch: The most unique tokens of a part. A part of one response may have more: it can't be cut.

    Returns:
        Groups whose responses, in order, are the group's.

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
