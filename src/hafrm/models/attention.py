"""Attention over packed rows, through transformers' attention interface.

Works on query, key and value tensors and the groups of a row (`Segments`); independent of models, losses and tokens.
Shape letters: R rows, L tokens of a row, N query heads, K key heads (N / K queries share one), D width of a head.

`PACKED_ATTENTION` is the name of an attention function for `model.set_attn_implementation`. For a packed batch, call
the model with `packed_arguments`: the layout is a keyword argument, which models that use the attention interface pass
through unchanged, and attention is computed per group. Without a layout (padded batches, generation), the function is
the stock one.

Within [prompt | response] a token's index *is* its position, so lengths suffice for causality, sliding windows and
offsets. The function supports what a model passes with its tensors: scaling, sliding window, soft cap, attention sinks,
shared key heads, dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from hafrm.packing import Segments

PACKED_ATTENTION = "hafrm_packed"
"""Name of the attention implementation for both packed and padded batches."""

_NO_MASK = torch.uint8


def packed_arguments(segments: Segments, device: torch.device) -> dict[str, Any]:
    """Return a packed batch's extra arguments for the model: its layout, and a placeholder mask.

    Models pass four-dimensional masks through unchanged, so no L x L mask is ever created; this one takes no memory.
    Its dtype is one that no real mask has, which reveals calls that lost their layout.
    """
    placeholder = torch.ones((), dtype=_NO_MASK, device=device).expand(1, 1, segments.tokens, segments.tokens)
    return {"attention_mask": placeholder, "hafrm_segments": segments}


@dataclass(frozen=True)
class _Rules:
    """A layer's attention settings."""

    scaling: float | None
    window: int | None
    """Number of visible tokens: a token itself and those just before it. None: all."""
    softcap: float | None
    sinks: Tensor | None
    """Logit per head that takes part in the softmax but has no value, [N]."""
    dropout: float


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    hafrm_segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention; transformers calls this for each layer.

    Args:
        query: [R, N, L, D]. R is 1 in a packed batch.
        key: [R, K, L, D].
        value: [R, K, L, D].
        attention_mask: The mask function's result for a padded batch; ignored for a packed batch.
        scaling: Factor of the logits; None: 1 / sqrt(D).
        dropout: Dropout probability of attention weights; models pass 0 in evaluation mode.
        sliding_window: Number of tokens that a token sees, by positions in its own sequence; None: all.
        softcap: Logits become softcap * tanh(logits / softcap); None: unchanged.
        s_aux: Attention sinks, [N], or None.
        hafrm_segments: The packed row's layout; None for a padded batch.
        **kwargs: The model's other arguments, for the stock function.

    Returns:
        The attention output, [R, L, N, D], and None in place of attention weights.

    Raises:
        ValueError: the layout does not match these tensors, or the model needs something unsupported.
    """
    rules = _Rules(scaling, sliding_window or None, softcap, s_aux, dropout)
    if hafrm_segments is None:
        return _padded(module, query, key, value, attention_mask, rules, kwargs), None
    if kwargs.get("position_bias") is not None:
        raise ValueError("attention with a position bias can't be packed")
    if query.device.type == "cuda" and not dropout:
        return _by_block_mask(module, query, key, value, hafrm_segments, rules), None
    if query.device.type == "cpu":
        return _in_float32(query, key, value, hafrm_segments, rules), None
    return _by_group(query, key, value, hafrm_segments, rules), None


def _padded(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rules: _Rules,
    kwargs: dict[str, Any],
) -> Tensor:
    """Compute attention with the mask of the stock mask function, which includes the window."""
    if mask is not None and mask.dtype == _NO_MASK:
        raise ValueError("the layout of a packed row did not reach the attention layer")
    if rules.softcap is None and rules.sinks is None:
        stock = AttentionInterface()["sdpa"]
        output, _ = stock(module, query, key, value, mask, scaling=rules.scaling, dropout=rules.dropout, **kwargs)
        return cast(Tensor, output)
    return _explicit(query, key, value, mask, rules).transpose(1, 2).contiguous()


def _in_float32(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rules: _Rules) -> Tensor:
    """Compute attention per group, in at least float32, and return it in the query's dtype.

    PyTorch's CPU kernel takes four times as long for the gradients in bfloat16 as in float32, and casts cost little.
    """
    with torch.autocast("cpu", enabled=False):  # autocast would cast them back
        wide_query, wide_key, wide_value = (
            tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value)
        )
        return cast(Tensor, _by_group(wide_query, wide_key, wide_value, segments, rules)).to(query.dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_group(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rules: _Rules) -> Tensor:
    """Compute attention per group, with fused kernels on contiguous parts of the row.

    A prompt and its first response form one plain causal sequence. Every other response attends to a copy of the
    prompt's keys and to itself. Rows are split in one operation: each slice would create a zero-filled gradient of the
    whole row's length. Excluded from compilation because every batch is split at different places.
    """
    if (query.shape[0], query.shape[2], key.shape[2]) != (1, segments.tokens, segments.tokens):
        raise ValueError(
            f"a packed row of {segments.tokens} tokens does not fit query {list(query.shape)} and key {list(key.shape)}"
        )
    sizes = [n for group in segments.groups for n in (group.prompt + group.responses[0], *group.responses[1:])]
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for group in segments.groups:
        q, k, v = next(parts)
        outputs.append(_attend(q, k, v, rules))
        prompt_k, prompt_v = k[:, :, : group.prompt], v[:, :, : group.prompt]
        for _ in group.responses[1:]:
            q, k, v = next(parts)
            outputs.append(_attend(q, torch.cat((prompt_k, k), dim=2), torch.cat((prompt_v, v), dim=2), rules))
    return torch.cat(outputs, dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, rules: _Rules) -> Tensor:
    """Compute causal attention from the last positions of a sequence to all of it, [1, queries, N, D]."""
    mask = _visible(query.shape[2], key.shape[2], rules.window, query.device)
    if rules.softcap is not None or rules.sinks is not None:
        output = _explicit(query, key, value, mask, rules)
    else:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=rules.dropout,
            is_causal=mask is None,
            scale=rules.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return output.transpose(1, 2)


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return which keys each of a sequence's last positions sees, [queries, keys]; None: a plain causal square."""
    if queries == keys and (window is None or keys <= window):
        return None
    mask = _causal(queries, keys, device)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: _Rules) -> Tensor:
    """Compute attention without a fused kernel, as needed for soft caps and sinks, [R, N, queries, D].

    Without a mask the queries are a sequence's last positions. Softmax uses at least float32, as in stock models.
    """
    if mask is None:
        mask = _causal(query.shape[2], key.shape[2], query.device)
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scaling = query.shape[-1] ** -0.5 if rules.scaling is None else rules.scaling
    logits = query @ key.transpose(-1, -2) * scaling
    if rules.softcap is not None:
        logits = rules.softcap * torch.tanh(logits / rules.softcap)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    if rules.sinks is not None:
        sinks = rules.sinks.to(logits.dtype).view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat((logits, sinks), dim=-1)
    weights = logits.softmax(dim=-1)[..., : key.shape[2]]
    return F.dropout(weights.to(value.dtype), rules.dropout) @ value


def _by_block_mask(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, segments: Segments, rules: _Rules
) -> Tensor:
    """Compute attention over the whole row in one compiled flex-attention kernel, which skips fully masked blocks.

    transformers' own flex function handles soft caps, sinks and shared key heads. Written for CUDA devices but *not yet
    run on one*: on a CPU its compiled forward pass agrees with `_by_group` (except for sinks, which flex only supports
    on GPUs), and the tests check `visibility` against `_by_group`. If it fails or differs, the probe at load detects
    this and the model uses padded batches.
    """
    block_mask = _block_mask(segments, rules.window, query.device)
    output, _ = AttentionInterface()["flex_attention"](
        module, query, key, value, block_mask, scaling=rules.scaling, softcap=rules.softcap, s_aux=rules.sinks
    )
    return cast(Tensor, output)


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]  # otherwise it is compiled again per layout
@functools.lru_cache(maxsize=4)  # shared by all layers of a batch; some models alternate between two windows
def _block_mask(segments: Segments, window: int | None, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # scoring and training may share the mask
        return create_block_mask(
            visibility(segments, window, device), 1, None, segments.tokens, segments.tokens, str(device), _compile=True
        )


def visibility(
    segments: Segments, window: int | None, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return a packed row's visibility rule, in flex attention's form (`mask_mod`), for a `window` of tokens or all.

    Returns:
        A function of batch, head, query and key indices: whether the query's token sees the key's.
    """
    group, response, position = (tensor.to(device) for tensor in segments.coordinates())

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_sequence = (response[key] == 0) | (response[key] == response[query])
        seen = (group[key] == group[query]) & same_sequence & (key <= query)
        return seen if window is None else seen & (position[query] - position[key] < window)

    return sees


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
