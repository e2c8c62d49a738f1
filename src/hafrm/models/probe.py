"""Whether a model takes packed rows: tried out when it is loaded, not looked up in a list of names.

A model may keep a state that runs along the row (Mamba), attend by code of its own (ALiBi models) or hide tokens by a
rule that it does not hand to its attention function. All of these give wrong numbers and no error. So two short groups
go through the model in both layouts and one sequence at a time, a long one packed and alone, and each layer is asked
what it hides at the far end of the longest sequence. Padded rows are tried as well where they are all that is left:
a model that counts its padding would give wrong numbers there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from hafrm.encoding import TokenGroup
from hafrm.errors import first_line
from hafrm.models.attention import PACKED_ATTENTION
from hafrm.models.hybrid import HybridModel
from hafrm.models.modes import evaluating
from hafrm.packing import SequenceBatch, pack_rows, pad_rows

__all__ = ["probe_packing", "probe_padding", "random_groups"]

_FAR_ROW = "hafrm_far_row"
_UNREACHED = "its layers are not reached through transformers' attention interface"
_LONG = 4096  # tokens of the longest sequence that is tried
_LENGTHS = ((9, (5, 12)), (3, (7, 1)))  # of the prompt and of the responses of each group that is tried


@torch.no_grad()
def probe_packing(model: HybridModel, *, max_length: int) -> str | None:
    """Find out whether a model computes packed rows as it computes each sequence alone, and let it take them if so.

    Leaves nothing behind but the model's attention implementation: `PACKED_ATTENTION`, which takes packed and padded
    batches alike, if the answer is yes, and the one that it had if it is no. Costs seven forward passes of less than
    100 tokens each, and three of `max_length` tokens, up to 4096. Call it on the device and in the dtype that the model
    will run in.

    Args:
        model: The model, before any wrapper for parallel training.
        max_length: The longest sequence, prompt and response, that will be packed.

    Returns:
        None if the model takes packed rows; else the reason why not, as a clause.
    """
    before = model.config._attn_implementation
    with evaluating(model):
        try:
            reason = _hidden_rule(model, max_length) or _difference(model, before)
            reason = reason or _long_difference(model, before, min(max_length, _LONG))
        except Exception as error:  # whatever a model does with a call it does not know
            reason = f"it fails with {type(error).__name__}: {first_line(error)}"
        if reason is not None:
            model.stock_lm.set_attn_implementation(before)
    return reason


@torch.no_grad()
def probe_padding(model: HybridModel, *, pad_token_id: int, side: str = "right") -> str | None:
    """Find out whether a model computes a padded row as it computes the sequence alone.

    Args:
        model: The model, with its own attention.
        pad_token_id: Fills the rows.
        side: Where they are filled.

    Returns:
        None if it does; else by how much the two differ, as a clause.
    """
    groups = random_groups(model)
    batch = pad_rows(groups, pad_token_id=pad_token_id, padding_side=side)
    with evaluating(model):
        truth = _alone(model, groups)
        errors = torch.stack(tuple(map(_relative_error, _states_by_sequence(model, batch), truth)))
    # Padding that counts shows in several rows; a single one may differ by an undecided expert.
    error, tolerance = errors.sort().values[-2].item(), _tolerance(truth[0].dtype)
    if error <= tolerance:
        return None
    return f"a padded row gives other states than its sequence alone (by {error:.2g}, over {tolerance:g})"


def _difference(model: HybridModel, stock: str) -> str | None:
    """Why states are not those of each sequence alone, or None; leaves the model with the packed implementation."""
    groups = random_groups(model)
    pad = groups[0].prompt[0]
    model.stock_lm.set_attn_implementation(stock)
    truth = _alone(model, groups)
    model.stock_lm.set_attn_implementation(PACKED_ATTENTION)
    if not model.supports_packing:
        return _UNREACHED
    for layout, batch in (("packed", pack_rows(groups)), ("padded", pad_rows(groups, pad_token_id=pad))):
        if reason := _too_far(layout, _states_by_sequence(model, batch), truth):
            return reason
    return None


def _long_difference(model: HybridModel, stock: str, length: int) -> str | None:
    """The same of one group whose sequences are long, for models that treat what is far away otherwise."""
    groups = random_groups(model, lengths=((max(1, length - 8), (8, 5)),))
    model.stock_lm.set_attn_implementation(stock)
    truth = _alone(model, groups)
    model.stock_lm.set_attn_implementation(PACKED_ATTENTION)
    return _too_far("packed", _states_by_sequence(model, pack_rows(groups)), truth)


def _too_far(layout: str, states: list[Tensor], truth: list[Tensor]) -> str | None:
    error, tolerance = _largest_error(states, truth), _tolerance(truth[0].dtype)
    if error <= tolerance:
        return None
    return f"{layout} rows give other states than its own attention does (by {error:.2g}, over {tolerance:g})"


def _largest_error(states: list[Tensor], truth: list[Tensor]) -> float:
    """The largest of the sequences' errors; NaN if any is."""
    return torch.stack(tuple(map(_relative_error, states, truth))).max().item()


def _alone(model: HybridModel, groups: Sequence[TokenGroup]) -> list[Tensor]:
    """The states of each sequence in a batch of its own."""
    alone = [TokenGroup(group.prompt, (response,)) for group in groups for response in group.responses]
    return [_states_by_sequence(model, pad_rows([group], pad_token_id=group.prompt[0]))[0] for group in alone]


def random_groups(model: HybridModel, *, lengths: Sequence[tuple[int, tuple[int, ...]]] = _LENGTHS) -> list[TokenGroup]:
    """Groups to try a model with, of random tokens drawn without touching the generators of training.

    Args:
        model: The model.
        lengths: Of each group's prompt and responses; by default two short groups.
    """
    generator = random.Random(0)
    layers = (model.stock_lm.get_input_embeddings(), model.stock_lm.get_output_embeddings())
    sizes = [weight.shape[0] for layer in layers if (weight := getattr(layer, "weight", None)) is not None]
    vocabulary = range(min(sizes))  # some embed what they never predict

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(generator.choices(vocabulary, k=length))

    return [TokenGroup(tokens(prompt), tuple(map(tokens, responses))) for prompt, responses in lengths]


def _states_by_sequence(model: HybridModel, batch: SequenceBatch) -> list[Tensor]:
    """Each sequence's hidden states, those that predict its response and that which is scored, [tokens + 1, H]."""
    batch = batch.to(model.score.weight.device)
    states = model.hidden_states(batch)
    predictors = states[batch.predictor_index].split(batch.response_lengths.tolist())
    return [torch.cat((before, states[last][None])) for before, last in zip(predictors, batch.score_index, strict=True)]


def _relative_error(states: Tensor, truth: Tensor) -> Tensor:
    """The mean over a sequence's states of |difference| / |truth|.

    A wrong context shows in every state of a sequence, while one state may differ by bad luck: a mixture of experts
    that is undecided between two of them.
    """
    difference = (states.double() - truth.double()).norm(dim=-1)
    length = truth.double().norm(dim=-1)
    tiny = torch.finfo(length.dtype).tiny  # the state of a padding token may be zero
    return torch.mean(difference / length.clamp(min=tiny))


def _tolerance(dtype: torch.dtype) -> float:
    """Well above rounding through a deep model, well below the effect of a wrong context."""
    return {torch.float64: 1e-5, torch.float32: 1e-4}.get(dtype, 5e-2)  # stock softmax in float64 models is float32's


def _hidden_rule(model: HybridModel, max_length: int) -> str | None:
    """Why packed attention would hide other tokens than the model does, or None.

    The rule of a layer is asked for where it matters most: what a query at the last of `max_length` positions sees.
    A mask function answers with that one row, an attention function compares it with the window that it is handed.
    """
    model.stock_lm.set_attn_implementation(_FAR_ROW)
    if model.config._attn_implementation != _FAR_ROW:
        return _UNREACHED
    layers: list[bool] = []
    device = model.score.weight.device
    model.backbone(
        input_ids=torch.zeros(1, 1, dtype=torch.long, device=device),
        attention_mask=torch.ones(1, max_length, dtype=torch.long, device=device),
        position_ids=torch.zeros(1, 1, dtype=torch.long, device=device),
        use_cache=False,
        hafrm_layers=layers,
    )
    if not layers:
        return _UNREACHED
    if not all(layers):
        wrong = layers.count(False)
        return f"{wrong} of its {len(layers)} attention layers hide tokens by a rule other than a sliding window"
    return None


def _far_row_mask(
    *, kv_length: int, mask_function: Callable[..., Tensor], device: torch.device, **kwargs: Any
) -> Tensor:
    """What a query at the last position sees, [1, 1, 1, kv_length]."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    keys = torch.arange(kv_length, device=device).view(1, 1, 1, -1)
    return mask_function(zero, zero, zero + kv_length - 1, keys).expand(1, 1, 1, kv_length)


def _far_row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    hafrm_layers: list[bool] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Note whether the row is that of the window which the layer hands over; attend to nothing."""
    if hafrm_layers is not None:
        hafrm_layers.append(attention_mask is not None and _is_window(attention_mask, sliding_window))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _is_window(row: Tensor, window: int | None) -> bool:
    length = row.shape[-1]
    distance = torch.arange(length - 1, -1, -1, device=row.device)
    return torch.equal(row.flatten(), distance < (window or length))


AttentionInterface.register(_FAR_ROW, _far_row_attention)
AttentionMaskInterface.register(_FAR_ROW, _far_row_mask)
