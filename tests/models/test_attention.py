"""Attention over packed rows against the textbook: one sequence at a time, a full softmax, no kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from transformers.masking_utils import sdpa_mask

from hafrm.models.attention import packed_arguments, packed_attention, visibility
from hafrm.packing import PackedGroup, Segments

CPU = torch.device("cpu")
LAYOUT = Segments((PackedGroup(7, (3, 5)), PackedGroup(1, (4,)), PackedGroup(3, (1, 6, 2, 2)), PackedGroup(9, (1,))))
HEADS, KEY_HEADS, WIDTH = 4, 2, 8

lengths = st.integers(1, 5)
layouts = st.lists(
    st.builds(PackedGroup, lengths, st.lists(lengths, min_size=1, max_size=3).map(tuple)), min_size=1, max_size=3
).map(lambda groups: Segments(tuple(groups)))


def sequences(segments: Segments) -> list[list[int]]:
    """Return the row indices of each sequence: a prompt and one of its responses."""
    found, start = [], 0
    for group in segments.groups:
        prompt = list(range(start, start + group.prompt))
        start += group.prompt
        for length in group.responses:
            found.append(prompt + list(range(start, start + length)))
            start += length
    return found


def random_tensors(tokens: int, dtype: torch.dtype = torch.float64, key_heads: int = KEY_HEADS) -> list[Tensor]:
    """Create query, key and value with the memory layout of a model's projections."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(1, tokens, heads, WIDTH) for heads in (HEADS, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def textbook(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float = WIDTH**-0.5,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Causal attention of one sequence alone, [L, N, D], one query and head at a time."""
    length, shared = query.shape[2], query.shape[1] // key.shape[1]
    rows = []
    for t in range(length):
        first = 0 if sliding_window is None else max(0, t + 1 - sliding_window)
        heads = []
        for n in range(query.shape[1]):
            logits = scaling * key[0, n // shared, first : t + 1] @ query[0, n, t]
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            weights = logits.exp()
            total = weights.sum() + (0 if s_aux is None else s_aux[n].exp())
            heads.append(weights / total @ value[0, n // shared, first : t + 1])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


SINKS = torch.linspace(-1, 2, HEADS, dtype=torch.float64)
OPTIONS = {
    "plain": {},
    "scaled": {"scaling": 0.7},
    "window": {"sliding_window": 4},
    "window of one": {"sliding_window": 1},
    "wide window": {"sliding_window": 100},
    "soft cap": {"softcap": 0.5},
    "sinks": {"s_aux": SINKS},
    "all": {"scaling": 0.7, "sliding_window": 4, "softcap": 0.5, "s_aux": SINKS},
}


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_sequence_is_attended_as_if_alone(options: dict, key_heads: int) -> None:
    """Outputs and gradients agree; gradients of the prompt come from every response."""
    query, key, value = random_tensors(LAYOUT.tokens, key_heads=key_heads)
    packed, _ = packed_attention(nn.Identity(), query, key, value, None, hafrm_segments=LAYOUT, **options)
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1), dtype=packed.dtype)
    gradients = torch.autograd.grad((packed * weight).sum(), (query, key, value))

    assert packed.shape == (1, LAYOUT.tokens, HEADS, WIDTH)
    expected = torch.zeros_like(packed[0])
    for sequence in sequences(LAYOUT):
        alone = textbook(*(tensor[:, :, sequence] for tensor in (query, key, value)), **options)
        expected = expected.index_copy(0, torch.tensor(sequence), alone)
    torch.testing.assert_close(packed[0], expected, rtol=1e-12, atol=1e-12)
    truth = torch.autograd.grad((expected * weight[0]).sum(), (query, key, value))
    torch.testing.assert_close(gradients, truth, rtol=1e-12, atol=1e-12)


@settings(max_examples=25)
@given(layouts, st.none() | st.integers(1, 8))
def test_the_block_mask_shows_a_token_its_own_sequence_so_far(segments: Segments, window: int | None) -> None:
    expected = torch.zeros(segments.tokens, segments.tokens, dtype=torch.bool)
    for sequence in sequences(segments):
        for place, token in enumerate(sequence):
            seen = sequence[: place + 1] if window is None else sequence[max(0, place + 1 - window) : place + 1]
            expected[token, seen] = True
    mask = create_mask(visibility(segments, window, CPU), 1, 1, segments.tokens, segments.tokens, device="cpu")
    assert torch.equal(mask[0, 0], expected)


@settings(max_examples=20)
@given(layouts, st.none() | st.integers(1, 8))
def test_the_block_mask_and_the_groups_agree(segments: Segments, window: int | None) -> None:
    query, key, value = (tensor.detach() for tensor in random_tensors(segments.tokens))
    packed, _ = packed_attention(nn.Identity(), query, key, value, None, hafrm_segments=segments, sliding_window=window)
    mask = create_mask(visibility(segments, window, CPU), 1, 1, segments.tokens, segments.tokens, device="cpu")
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(packed, dense.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_the_block_mask() -> None:
    """This runs flex attention's reference code, uncompiled: a GPU would run the same mask in one kernel."""
    query, key, value = (tensor.detach() for tensor in random_tensors(LAYOUT.tokens))
    packed, _ = packed_attention(nn.Identity(), query, key, value, None, hafrm_segments=LAYOUT, sliding_window=4)
    mask = create_block_mask(visibility(LAYOUT, 4, CPU), 1, None, LAYOUT.tokens, LAYOUT.tokens, "cpu")
    flex = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(packed, flex.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"softcap": 0.5}, {"s_aux": SINKS.float()}], ids=str)
def test_without_a_layout_it_is_plain_causal_attention(options: dict) -> None:
    """Padded batches and generation use the stock mask; tokens next to padding attend as if alone."""
    query, key, value = (tensor.detach().float() for tensor in random_tensors(6))
    alone = textbook(query[:, :, 2:], key[:, :, 2:], value[:, :, 2:], **options)
    padding = torch.tensor([[False, False, True, True, True, True]])
    mask = sdpa_mask(batch_size=1, q_length=6, kv_length=6, attention_mask=padding)
    padded, _ = packed_attention(GroupedHeads(), query, key, value, mask, **options)
    torch.testing.assert_close(padded[0, 2:], alone, rtol=1e-5, atol=1e-5)
    unpadded, _ = packed_attention(GroupedHeads(), query[:, :, 2:], key[:, :, 2:], value[:, :, 2:], None, **options)
    torch.testing.assert_close(unpadded[0], alone, rtol=1e-5, atol=1e-5)
    last, _ = packed_attention(GroupedHeads(), query[:, :, 5:], key[:, :, 2:], value[:, :, 2:], None, **options)
    torch.testing.assert_close(last[0], alone[-1:], rtol=1e-5, atol=1e-5)


class GroupedHeads(nn.Module):
    """The attributes of a layer that the stock attention function reads."""

    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


@pytest.mark.parametrize("options", [{}, {"softcap": 0.5}], ids=str)
def test_dropout_leaves_the_mean_where_it_is(options: dict) -> None:
    torch.manual_seed(0)
    segments = Segments((PackedGroup(2, (1, 2)),))
    query, key, value = (tensor.detach() for tensor in random_tensors(segments.tokens))

    def attend(dropout: float) -> Tensor:
        output, _ = packed_attention(
            nn.Identity(), query, key, value, None, hafrm_segments=segments, dropout=dropout, **options
        )
        return output

    draws = torch.stack([attend(0.3) for _ in range(600)])
    assert draws.std(dim=0).mean() > 0.1
    torch.testing.assert_close(draws.mean(dim=0), attend(0.0), rtol=0, atol=0.12)


def test_attention_under_bf16_autocast() -> None:
    """Queries and keys are float32 after their rotation, values are bfloat16."""
    query, key, value = random_tensors(LAYOUT.tokens, torch.float32)
    exact, _ = packed_attention(nn.Identity(), query, key, value, None, hafrm_segments=LAYOUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = packed_attention(nn.Identity(), query, key, value.bfloat16(), None, hafrm_segments=LAYOUT)
    torch.testing.assert_close(rough, exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}, {"softcap": 0.5}], ids=str)
def test_bfloat16_tensors_are_attended_in_float32(options: dict) -> None:
    """Outputs and gradients are rounded to bfloat16 once, at the end."""
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in random_tensors(LAYOUT.tokens)]
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    found = []
    for tensors in (half, exact):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=tensors is half):
            output, _ = packed_attention(nn.Identity(), *tensors, None, hafrm_segments=LAYOUT, **options)
        assert output.dtype == tensors[0].dtype
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(output.dtype)
        found.append((output, *torch.autograd.grad((output * weight).sum(), tensors)))
    for rough, expected in zip(*found, strict=True):
        torch.testing.assert_close(rough.double(), expected, rtol=2**-8, atol=1e-5)


def test_a_layout_that_does_not_fit_is_refused() -> None:
    query, key, value = random_tensors(LAYOUT.tokens - 1)
    with pytest.raises(ValueError, match=f"packed row of {LAYOUT.tokens} tokens does not fit"):
        packed_attention(nn.Identity(), query, key, value, None, hafrm_segments=LAYOUT)


def test_a_position_bias_is_refused() -> None:
    query, key, value = random_tensors(LAYOUT.tokens)
    with pytest.raises(ValueError, match="position bias"):
        packed_attention(nn.Identity(), query, key, value, None, hafrm_segments=LAYOUT, position_bias=query)


def test_a_layout_lost_on_the_way_is_noticed() -> None:
    """The mask of a packed call is not mistaken for one that lets all tokens see each other."""
    query, key, value = random_tensors(LAYOUT.tokens)
    mask = packed_arguments(LAYOUT, CPU)["attention_mask"]
    assert mask.shape == (1, 1, LAYOUT.tokens, LAYOUT.tokens)
    assert mask.untyped_storage().nbytes() == 1
    with pytest.raises(ValueError, match="did not reach"):
        packed_attention(nn.Identity(), query, key, value, mask)
