"""Layout of a model's batches: packed if a probe allows it, padded otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from hafrm.encoding import TokenGroup
from hafrm.errors import ModelError, first_line
from hafrm.models.attention import PACKED_ATTENTION
from hafrm.models.hybrid import HybridModel
from hafrm.models.modules import evaluating
from hafrm.models.options import LayoutChoice
from hafrm.numerics import doubled
from hafrm.packing import SequenceBatch, batches_by_length, pack_rows, pad_rows, plan_batches


@dataclass(frozen=True)
class Layout:
    """How groups become batches; picklable, so that data loaders can send it to their workers."""

    packed: bool
    pad_token_id: int
    padding_side: str = "right"

    def batch(self, groups: Sequence[TokenGroup]) -> SequenceBatch:
        """Lay groups out as one batch."""
        if self.packed:
            return pack_rows(groups)
        return pad_rows(groups, pad_token_id=self.pad_token_id, padding_side=self.padding_side)

    def plan(self, groups: Sequence[TokenGroup], *, sequences: int, tokens: int) -> list[list[int]]:
        """Spread groups over batches, which are returned as indices into `groups`.

        Args:
            sequences: Maximum sequences of a padded batch; packed rows have no such limit.
            tokens: Maximum tokens of a batch, padding included. A larger group gets its own batch.
        """
        if self.packed:
            return plan_batches([group.unique_tokens for group in groups], tokens)
        most = max((len(group.responses) for group in groups), default=1)
        longest = [max(group.lengths) for group in groups]
        return batches_by_length(longest, max(1, sequences // most), max(1, tokens // most))


def choose_layout(
    model: HybridModel,
    pad_token_id: int,
    *,
    max_length: int,
    choice: LayoutChoice = "auto",
    padding_side: str = "right",
    report: Callable[[str], None] = lambda reason: None,
) -> Layout:
    """Choose the layout for a model and put the model into the matching state.

    Args:
        model: The model, on its final device and in its final dtype.
        pad_token_id: Fills short rows of the padded layout.
        report: Called with the reason if the probe decides on padding.

    Raises:
        ModelError: the model supports neither packed nor padded rows.
    """
    packed = False
    if choice == "auto":
        reason = None if model.supports_packing else probe_packing(model, max_length=max_length)
        packed = reason is None
        if reason is not None:
            report(reason)
    if not packed and (wrong := probe_padding(model, pad_token_id=pad_token_id, side=padding_side)):
        raise ModelError(
            f"{type(model.stock_lm).__name__} can't run batches of texts of different lengths: {wrong}. Use another "
            "architecture."
        )
    return Layout(packed, pad_token_id, padding_side)


_FAR_ROW = "hafrm_far_row"
_UNREACHED = "its layers are not reached through transformers' attention interface"
_LONG = 4096  # tokens of the longest test sequence
_Lengths = tuple[tuple[int, tuple[int, ...]], ...]
_LENGTHS: _Lengths = ((9, (5, 12)), (3, (7, 1)))  # lengths of the prompt and of the responses of each test group


@torch.no_grad()
def probe_packing(model: HybridModel, *, max_length: int) -> str | None:
    """Test whether a model computes packed rows like separate sequences; if so, enable them.

    The only lasting change is the model's attention implementation: `PACKED_ATTENTION`, for packed and padded batches,
    if the test succeeds, otherwise the previous one. The cost is seven forward passes of fewer than 100 tokens each,
    and three of `max_length` tokens, up to 4096. Call it on the device and in the dtype in which the model will run.

    Args:
        model: The model, before any wrapper for parallel training.
        max_length: Maximum length of a sequence, prompt plus response, to be packed.

    Returns:
        None if the model supports packed rows; else the reason, as a clause.
    """
    before = model.config._attn_implementation
    with evaluating(model):
        try:
            # long sequences too, for models that treat distant tokens differently
            distant = ((max(1, min(max_length, _LONG) - 8), (8, 5)),)
            reason = _hidden_rule(model, max_length) or _difference(model, before, _LENGTHS, ("packed", "padded"))
            reason = reason or _difference(model, before, distant, ("packed",))
        except Exception as error:  # models can fail in any way on unexpected arguments
            reason = f"it fails with {type(error).__name__}: {first_line(error)}"
        if reason is not None:
            model.stock_lm.set_attn_implementation(before)
    return reason


@torch.no_grad()
def probe_padding(model: HybridModel, *, pad_token_id: int, side: str = "right") -> str | None:
    """Return, as a clause, by how much a padded row differs in its states from its sequence alone; None if not."""
    groups = random_groups(model)
    batch = pad_rows(groups, pad_token_id=pad_token_id, padding_side=side)
    with evaluating(model):
        truth = _alone(model, groups)
        errors = _errors(_states_by_sequence(model, batch), truth)
    # Counted padding affects several rows; a single row may differ because of a near-tie between experts.
    error, tolerance = errors.sort().values[-2].item(), _tolerance(truth[0].dtype)
    if error <= tolerance:
        return None
    return f"a padded row gives different states than its sequence alone (by {error:.2g}, over {tolerance:g})"


def _difference(model: HybridModel, stock: str, lengths: _Lengths, layouts: Collection[str]) -> str | None:
    """Return why states differ from those of separate sequences, or None; leaves the packed implementation set."""
    groups = random_groups(model, lengths=lengths)
    model.stock_lm.set_attn_implementation(stock)
    truth = _alone(model, groups)
    model.stock_lm.set_attn_implementation(PACKED_ATTENTION)
    if not model.supports_packing:
        return _UNREACHED
    tolerance = _tolerance(truth[0].dtype)
    for layout in layouts:
        batch = Layout(layout == "packed", groups[0].prompt[0]).batch(groups)
        error = _errors(_states_by_sequence(model, batch), truth).max().item()
        if not error <= tolerance:  # true for NaN, too
            size = f"by {error:.2g}, over {tolerance:g}"
            return f"{layout} rows give different states than its own attention does ({size})"
    return None


def _errors(states: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """Return the relative error of each sequence's states, [S]."""
    return torch.stack(tuple(map(_relative_error, states, truth)))


def _alone(model: HybridModel, groups: Sequence[TokenGroup]) -> list[Tensor]:
    """Compute the states of each sequence in its own batch."""
    alone = [TokenGroup(group.prompt, (response,)) for group in groups for response in group.responses]
    return [_states_by_sequence(model, pad_rows([group], pad_token_id=group.prompt[0]))[0] for group in alone]


def random_groups(model: HybridModel, *, lengths: _Lengths = _LENGTHS) -> list[TokenGroup]:
    """Create groups of random tokens of these lengths (prompt, responses), without training's random generators."""
    generator = random.Random(0)
    layers = (model.stock_lm.get_input_embeddings(), model.stock_lm.get_output_embeddings())
    sizes = [weight.shape[0] for layer in layers if (weight := getattr(layer, "weight", None)) is not None]
    vocabulary = range(min(filter(None, sizes)))  # some models embed tokens that they never predict, or have no LM head

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(generator.choices(vocabulary, k=length))

    return [TokenGroup(tokens(prompt), tuple(map(tokens, responses))) for prompt, responses in lengths]


def _states_by_sequence(model: HybridModel, batch: SequenceBatch) -> list[Tensor]:
    """Compute each sequence's hidden states that predict its response or are scored, [tokens + 1, H]."""
    batch = batch.to(model.score.weight.device)
    states = model.hidden_states(batch)
    predictors = states[batch.predictor_index].split(batch.response_lengths.tolist())
    return [torch.cat((before, states[last][None])) for before, last in zip(predictors, batch.score_index, strict=True)]


def _relative_error(states: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean over a sequence's states of |difference| / |truth|.

    A wrong context affects all states of a sequence, whereas a single state may differ because of a near-tie between
    two experts of a mixture.
    """
    states, truth = doubled(states), doubled(truth)
    difference = (states - truth).norm(dim=-1)
    length = truth.norm(dim=-1)
    tiny = torch.finfo(length.dtype).tiny  # the state of a padding token may be zero
    return torch.mean(difference / length.clamp(min=tiny))


def _tolerance(dtype: torch.dtype) -> float:
    """Return a tolerance well above rounding in deep models and well below the effect of a wrong context."""
    # stock models compute the softmax in float32 even in float64
    return {torch.float64: 1e-5, torch.float32: 1e-4}.get(dtype, 5e-2)


def _hidden_rule(model: HybridModel, max_length: int) -> str | None:
    """Return why packed attention would hide other tokens than the model does, or None.

    Each layer's rule is checked where it matters most: for a query at the last of `max_length` positions. A mask
    function returns that one row, and an attention function compares it with the window that it receives.
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
    """Return which keys a query at the last position sees, [1, 1, 1, kv_length]."""
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
    """Record whether the row matches the layer's window; return zeros."""
    if hafrm_layers is not None:
        hafrm_layers.append(attention_mask is not None and _is_window(attention_mask, sliding_window))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _is_window(row: Tensor, window: int | None) -> bool:
    length = row.shape[-1]
    distance = torch.arange(length - 1, -1, -1, device=row.device)
    return torch.equal(row.flatten(), distance < (window or length))


AttentionInterface.register(_FAR_ROW, _far_row_attention)
AttentionMaskInterface.register(_FAR_ROW, _far_row_mask)
