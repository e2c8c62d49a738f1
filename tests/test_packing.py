"""Layouts: positions of tokens and gathered states; distribution of groups over batches."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hafrm.encoding import TokenGroup
from hafrm.packing import (
    PackedGroup,
    Segments,
    SequenceBatch,
    batches_by_length,
    even_shares,
    pack_rows,
    pad_rows,
    plan_batches,
    split_group,
)

PAIR = TokenGroup((1, 2, 3), ((4, 5), (6, 7, 8)))
SINGLE = TokenGroup((9,), ((10, 11),))

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=6).map(tuple)
groups = st.builds(TokenGroup, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))
batches_of_groups = st.lists(groups, min_size=1, max_size=4)
budgets = st.integers(1, 40)


def test_a_packed_row_by_hand() -> None:
    batch = pack_rows([PAIR, SINGLE])
    #                                   prompt   chosen rejected | prompt, response
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2]]
    assert batch.score_index.tolist() == [4, 7, 10]
    assert batch.predictor_index.tolist() == [2, 3, 2, 5, 6, 8, 9]
    assert batch.target_ids.tolist() == [4, 5, 6, 7, 8, 10, 11]
    assert batch.sequence_index.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert batch.attention_mask is None
    assert batch.segments == Segments((PackedGroup(3, (2, 3)), PackedGroup(1, (2,))))


def test_coordinates_by_hand() -> None:
    group, response, position = Segments((PackedGroup(2, (1, 2)), PackedGroup(1, (2,)))).coordinates()
    assert group.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert response.tolist() == [0, 0, 1, 2, 2, 0, 1, 1]
    assert position.tolist() == [0, 1, 2, 2, 3, 0, 1, 2]


@pytest.mark.parametrize(("side", "start"), [("right", (0, 0)), ("left", (1, 0))])
def test_padded_rows_by_hand(side: str, start: tuple[int, int]) -> None:
    batch = pad_rows([PAIR], pad_token_id=0, padding_side=side)
    assert batch.input_ids.shape == (2, 6)
    for row, first, ids in zip(range(2), start, ([1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8]), strict=True):
        span = slice(first, first + len(ids))
        assert batch.input_ids[row, span].tolist() == ids
        assert batch.position_ids[row, span].tolist() == list(range(len(ids)))
        assert batch.attention_mask[row].sum() == batch.attention_mask[row, span].sum() == len(ids)
    assert batch.score_index.tolist() == [4 + start[0], 11]
    assert batch.predictor_index.tolist() == [2 + start[0], 3 + start[0], 8, 9, 10]
    assert batch.segments is None


@given(batches_of_groups, st.sampled_from(["left", "right"]))
def test_both_layouts_read_the_same_tokens_at_the_same_positions(some: list[TokenGroup], side: str) -> None:
    packed, padded = pack_rows(some), pad_rows(some, pad_token_id=0, padding_side=side)
    assert packed.input_ids.shape == (1, sum(group.unique_tokens for group in some)) == (1, packed.segments.tokens)
    for name in ("target_ids", "sequence_index", "response_lengths", "num_sequences"):
        assert torch.equal(torch.as_tensor(getattr(packed, name)), torch.as_tensor(getattr(padded, name))), name
    for index in ("score_index", "predictor_index"):
        for rows in ("input_ids", "position_ids"):
            read = [getattr(batch, rows).flatten()[getattr(batch, index)] for batch in (packed, padded)]
            assert torch.equal(*read), (index, rows)


def test_moving_a_batch_moves_its_tensors_and_keeps_its_layout() -> None:
    for batch in (pack_rows([PAIR]), pad_rows([PAIR], pad_token_id=0)):
        moved = batch.to("meta")
        assert isinstance(moved, SequenceBatch)
        assert moved.segments == batch.segments
        for field in fields(batch):
            before, after = getattr(batch, field.name), getattr(moved, field.name)
            assert isinstance(before, Tensor) == isinstance(after, Tensor), field.name
            assert not isinstance(after, Tensor) or (after.is_meta and after.shape == before.shape)


def test_a_batch_needs_groups() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        pack_rows([])
    with pytest.raises(ValueError, match="at least one group"):
        pad_rows([], pad_token_id=0)


def test_batches_by_length_start_with_the_longest() -> None:
    assert batches_by_length([3, 9, 5, 7, 1], 2, 100) == [[1, 3], [2, 0], [4]]


def test_batches_by_length_keep_to_the_token_budget() -> None:
    """Padding counts: two rows of 7 are 14 tokens, and a row over the budget gets its own batch."""
    assert batches_by_length([3, 9, 5, 7, 1, 20], 4, 15) == [[5], [1], [3, 2], [0, 4]]
    with pytest.raises(ValueError, match="batch_size"):
        batches_by_length([1], 0, 1)


def test_a_plan_by_hand() -> None:
    """6 goes with 4, 5 with the other 4, 3 has no room there; 12 is over the budget of 10 and gets its own batch."""
    assert plan_batches([4, 5, 12, 6, 4, 3], 10) == [[2], [0, 3], [1, 4], [5]]


@given(st.lists(st.integers(1, 60), max_size=40), budgets)
def test_a_plan_takes_every_group_once_within_the_budget(sizes: list[int], budget: int) -> None:
    plan = plan_batches(sizes, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(len(sizes)))
    totals = [sum(sizes[index] for index in batch) for batch in plan]
    assert totals == sorted(totals, reverse=True)
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(totals, plan, strict=True))
    assert len(plan) <= 1 or (len(plan) - 1) * budget < 2 * sum(sizes)  # fewer than twice as many as there must be


def test_the_batches_of_a_plan_are_of_like_size() -> None:
    """4, 2 and 2 against 3 and 3: a first batch filled to its 10 would leave 4 for the second."""
    assert plan_batches([4, 3, 3, 2, 2], 10) == [[0, 3, 4], [1, 2]]


def test_the_largest_goes_first_to_the_share_that_has_least() -> None:
    assert even_shares([1, 9, 3, 6, 2], 2) == [[1, 4], [0, 2, 3]]  # 11 and 10
    assert even_shares([5, 5], 3) == [[0], [1], []]


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=60), count=st.integers(1, 9))
def test_shares_hold_everything_once_and_differ_by_less_than_the_largest(sizes: list[int], count: int) -> None:
    shares = even_shares(sizes, count)
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    sums = [sum(sizes[index] for index in share) for share in shares]
    assert max(sums) - min(sums) <= max(sizes)


def test_a_split_group_by_hand() -> None:
    """5 tokens have room for exactly the prompt of 2, a response of 1 and one of 2."""
    group = TokenGroup((1, 2), ((3,), (4, 5), (6,), (7, 8, 9, 10)))
    assert split_group(group, 5) == [
        TokenGroup((1, 2), ((3,), (4, 5))),
        TokenGroup((1, 2), ((6,),)),
        TokenGroup((1, 2), ((7, 8, 9, 10),)),
    ]


@given(groups, budgets)
def test_a_split_group_keeps_its_responses_in_order(group: TokenGroup, budget: int) -> None:
    parts = split_group(group, budget)
    assert all(part.prompt == group.prompt for part in parts)
    assert tuple(response for part in parts for response in part.responses) == group.responses
    assert all(part.unique_tokens <= budget or len(part.responses) == 1 for part in parts)
    for part, following in pairwise(parts):
        assert part.unique_tokens + len(following.responses[0]) > budget


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_must_be_positive(budget: int) -> None:
    with pytest.raises(ValueError, match="tokens_per_batch must be positive"):
        plan_batches([1], budget)
    with pytest.raises(ValueError, match="tokens_per_batch must be positive"):
        split_group(PAIR, budget)
