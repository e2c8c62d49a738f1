"""Compute log-probabilities of response tokens from hidden states, without materialising all logits.

Works on hidden states, the weight of an LM head and token ids; independent of models, batch layouts and losses.
Shape letters: T response tokens, H hidden, V vocabulary, S sequences.

The T x V logits of a stock model, of which it needs several copies, are the largest tensors of a training step. Here
they exist only for a few rows at a time, in buffers that all chunks share (on a CPU, allocating that much memory takes
longer than the softmax). The cost of a step, in matrix products of T x H x V:

* no gradients: 1;
* frozen head (LoRA): 2, with no V-wide work in the backward pass. The gradient of a token's state is known up to one
  factor, the token's incoming gradient, so the forward pass computes the rest while it has the softmax;
* trained head: 4. The weight's gradient needs the incoming gradients, so the backward pass recomputes the logits;
* trained head with predicted incoming gradients (`Foresight`): 3, the minimum, if a pair's tokens fit into a chunk, and
  4 for longer pairs, whose logits are computed twice. The forward pass also computes the weight's gradient, and the
  backward pass only checks that the incoming gradients match the prediction up to a common factor. If they don't, it
  recomputes the logits: a wrong prediction costs time but never changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hafrm.numerics import doubled


@dataclass(frozen=True)
class LogitTransform:
    """How a model converts the LM head's products to logits.

    The product (with its bias) is scaled, then capped: softcap * tanh(scale * product / softcap).

    Raises:
        ValueError: scale is 0 or not finite, or softcap is not positive and finite.
    """

    scale: float = 1.0
    """Factor of the product (Cohere's logit_scale; the inverse of Granite's logits_scaling)."""
    softcap: float | None = None
    """Bound of the logits (Gemma 2's final_logit_softcapping), or None."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"scale must be a finite number other than 0, got {self.scale}")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap must be a positive number or None, got {self.softcap}")


_PLAIN = LogitTransform()

_ROWS = 512
"""Tokens of a chunk, at least. With 64, products with a vocabulary of 262,000 take twice as long: each chunk reads the
head's weight, and reads and writes its gradient, and pairs that are longer than a chunk are computed twice.
"""


@dataclass(frozen=True)
class Foresight:
    """Prediction, in the forward pass, of a loss's gradient with respect to the log-probs.

    If pairs don't interact, the derivatives with respect to a pair's two log-probs depend on these two alone. Tokens
    must be sorted by sequence, and the sequences of a unit must be adjacent.
    """

    lengths: Sequence[int]
    """Tokens of each sequence, [S], summing to T."""
    units: Sequence[int]
    """Sizes of groups of adjacent sequences whose derivatives depend on each other, summing to S; 2 for a pair."""
    slopes: Callable[[Tensor, int], Tensor]
    """Function from the summed log-probs of whole units, [n], and the index of their first sequence to the derivatives
    of the loss with respect to them, [n], up to a factor common to all S sequences.
    """

    def blocks(self, rows: int) -> Iterator[tuple[range, slice]]:
        """Yield the sequences and tokens of blocks of units: as many as fit into `rows` tokens, but at least one."""
        first, start, place, stop = 0, 0, 0, 0
        for unit in self.units:
            tokens = sum(self.lengths[place : place + unit])
            if stop > start and stop + tokens - start > rows:
                yield range(first, place), slice(start, stop)
                first, start = place, stop
            place += unit
            stop += tokens
        yield range(first, place), slice(start, stop)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compilation does not help because shapes always change
def linear_log_probs(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = _PLAIN,
    foresight: Foresight | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Compute log-probabilities of tokens: log_softmax(transform(states @ weight.T + bias))[targets].

    Differentiable once with respect to states, weight and bias; gradients that are not required are not computed.
    Matrix products use the dtype of the states (under autocast, that of autocast); softmax and sums use float32. The
    weight's gradient is summed over chunks in float32, whatever the weight's dtype.

    Args:
        states: Hidden states that predict the tokens, [T, H].
        weight: The LM head's weight, [V, H], in the dtype of `states` unless autocast is on.
        targets: Token ids, int64, [T]. Ids outside the vocabulary fail in PyTorch's gather (on a GPU with a device-side
            assertion), because checking them here would synchronise with the device at every step.
        bias: The LM head's bias, [V], or None.
        transform: How logits are computed from products; by default they are equal.
        foresight: Prediction of the incoming gradients, with which a trained head needs only three products.
        chunk_bytes: Bytes of one chunk's logits in float32; peak use is up to 2.5 times as much. Default: those of 512
            tokens, but at least 64 MiB on a CPU and 256 MiB elsewhere.

    Returns:
        Log-probabilities, [T], in float32 (float64 for float64 states).

    Raises:
        ValueError: shapes or dtypes don't fit together, or chunk_bytes is not positive.
    """
    if chunk_bytes is None:
        chunk_bytes = usual_chunk(weight.shape[0], states.device.type)
    _check(states, weight, targets, bias, chunk_bytes)
    if foresight is not None and sum(foresight.lengths) != len(targets):
        raise ValueError(f"foresight covers {sum(foresight.lengths)} tokens, but there are {len(targets)} targets")
    device_type = states.device.type
    dtype = states.dtype
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:  # autocast ignores float64
        dtype = torch.get_autocast_dtype(device_type)
    elif weight.dtype != dtype:
        raise ValueError(f"states are {dtype} and weight is {weight.dtype}: cast one, or run under torch.autocast")
    plan = _Plan(dtype, transform, chunk_bytes)
    keep_slopes = torch.is_grad_enabled() and states.requires_grad
    if not keep_slopes or not weight.requires_grad:
        foresight = None
    log_probs: Tensor = _LinearLogProbs.apply(states, weight, bias, targets, plan, keep_slopes, foresight)  # type: ignore[no-untyped-call]
    return log_probs


def usual_chunk(vocabulary: int, device_type: str) -> int:
    """Return the bytes of one chunk's logits by default; see `linear_log_probs`."""
    return max(2**26 if device_type == "cpu" else 2**28, _ROWS * 4 * vocabulary)


def sum_by_sequence(token_log_probs: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """Sum the log-probs of each sequence's tokens.

    Args:
        token_log_probs: Log-probs, [T].
        sequence_index: Sequence of each token, int64 from 0 to num_sequences - 1, [T].
        num_sequences: S.

    Returns:
        Sums, [S], 0 for a sequence without tokens.

    Raises:
        ValueError: the shapes differ.
    """
    if token_log_probs.ndim != 1 or token_log_probs.shape != sequence_index.shape:
        raise ValueError(
            "token_log_probs and sequence_index must both be [T], got "
            f"{list(token_log_probs.shape)} and {list(sequence_index.shape)}"
        )
    return token_log_probs.new_zeros(num_sequences).index_add(0, sequence_index, token_log_probs)


def _check(states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk_bytes: int) -> None:
    if states.ndim != 2 or weight.ndim != 2 or states.shape[1] != weight.shape[1]:
        raise ValueError(f"states must be [T, H] and weight [V, H], got {list(states.shape)} and {list(weight.shape)}")
    if targets.shape != states.shape[:1]:
        raise ValueError(f"targets must be [T], T = {states.shape[0]}, got {list(targets.shape)}")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 token ids, got {targets.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V], V = {weight.shape[0]}, got {list(bias.shape)}")
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")


@dataclass(frozen=True)
class _Plan:
    """Settings for the products of states and head."""

    dtype: torch.dtype
    """Dtype of matrix products."""
    transform: LogitTransform
    chunk_bytes: int

    @property
    def wide(self) -> torch.dtype:
        """Dtype of everything except matrix products."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


class _Head:
    """An LM head with buffers for one chunk; each method overwrites the result of the previous chunk."""

    def __init__(self, plan: _Plan, weight: Tensor, bias: Tensor | None, tokens: int) -> None:
        self.dtype, self.transform, self.tokens = plan.dtype, plan.transform, tokens
        self.weight = weight.to(plan.dtype)
        self.bias = None if bias is None else bias.to(plan.dtype)
        self.rows = max(1, plan.chunk_bytes // (weight.shape[0] * plan.wide.itemsize))
        size = min(self.rows, tokens), weight.shape[0]
        self._products = torch.empty(size, dtype=plan.dtype, device=weight.device)
        self._logits = self._products if plan.dtype == plan.wide else torch.empty_like(self._products, dtype=plan.wide)
        # On a CPU, log-softmax reads a row before writing it. Only the derivative of a cap also needs the logits.
        in_place = plan.transform.softcap is None and weight.device.type == "cpu"
        self._log_probs = self._logits if in_place else torch.empty_like(self._logits)

    def spans(self, part: slice | None = None) -> list[slice]:
        """Return the row slices of the chunks, for all tokens or a part."""
        part = part or slice(0, self.tokens)
        return [slice(start, min(start + self.rows, part.stop)) for start in range(part.start, part.stop, self.rows)]

    def log_softmax(self, states: Tensor) -> Tensor:
        """Compute log-probs of all next tokens for each of a chunk's states, [n, V]."""
        n = states.shape[0]
        products, logits = self._products[:n], self._logits[:n]
        states = states.to(self.dtype)
        if self.bias is None:
            torch.mm(states, self.weight.t(), out=products)
        else:
            torch.addmm(self.bias, states, self.weight.t(), out=products)
        if self._logits is not self._products:
            logits.copy_(products)
        if self.transform.scale != 1:
            logits.mul_(self.transform.scale)
        if self.transform.softcap is not None:
            logits.div_(self.transform.softcap).tanh_().mul_(self.transform.softcap)
        return torch.log_softmax(logits, dim=1, out=self._log_probs[:n])

    def slopes(self, targets: Tensor) -> Tensor:
        """Compute the gradient of -log p(target) with respect to the scaled products, [n, V]. Overwrites log-probs and
        logits.

        For plain logits that is p - onehot(target). The difference is taken in float32 because it vanishes in bfloat16
        near p(target) = 1.
        """
        n = targets.shape[0]
        slopes, logits = self._log_probs[:n].exp_(), self._logits[:n]
        slopes.scatter_add_(1, targets[:, None], slopes.new_full((n, 1), -1.0))
        if self.transform.softcap is not None:  # the cap's derivative is 1 - (logit / softcap)^2
            slopes.addcmul_(slopes, logits.square_(), value=-(self.transform.softcap**-2))
        return slopes

    def narrow(self, slopes: Tensor) -> Tensor:
        """Cast the slopes to the dtype of matrix products, overwriting the chunk's products."""
        return slopes if slopes.dtype == self.dtype else self._products[: slopes.shape[0]].copy_(slopes)


class _LinearLogProbs(torch.autograd.Function):
    """`linear_log_probs` with a hand-written derivative; see the module's docstring.

    Autocast has no effect here: it skips operations with an `out` argument, such as those of `_Head`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        plan: _Plan,
        keep_slopes: bool,
        foresight: Foresight | None,
    ) -> Tensor:
        log_probs = torch.empty(states.shape[0], dtype=plan.wide, device=states.device)
        state_slopes = torch.empty_like(states, dtype=plan.dtype) if keep_slopes else None
        head = _Head(plan, weight, bias, states.shape[0])
        ctx.foretold = None
        if foresight is not None and state_slopes is not None:
            ctx.foretold = _foretell(head, foresight, states, targets, log_probs, state_slopes)
        else:
            for span in head.spans():
                log_probs[span] = head.log_softmax(states[span]).gather(1, targets[span, None])[:, 0]
                if state_slopes is not None:
                    torch.mm(head.narrow(head.slopes(targets[span])), head.weight, out=state_slopes[span])
        ctx.plan, ctx.states_dtype = plan, states.dtype
        trains_head = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(state_slopes, *((states, weight, bias, targets) if trains_head else ()))
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state_slopes, *inputs = ctx.saved_tensors
        product_grad = grad * -ctx.plan.transform.scale
        grad_states = (state_slopes * product_grad[:, None]).to(ctx.states_dtype) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = None, None
        if inputs:
            states, weight, bias, targets = inputs
            foretold, ctx.foretold = ctx.foretold, None  # usable once: its gradients are modified in place
            factor = None if foretold is None else foretold.factor(grad)
            if foretold is not None and factor is not None:
                grad_weight, grad_bias = foretold.gradients(factor)
            else:
                needed = ctx.needs_input_grad[1:3]
                grad_weight, grad_bias = _head_gradients(ctx.plan, states, weight, bias, targets, product_grad, needed)
            grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
            grad_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        return grad_states, grad_weight, grad_bias, None, None, None, None


@dataclass(frozen=True)
class _Foretold:
    """The head's gradients for the incoming gradients `expected`; for a multiple of them, they are scaled."""

    expected: Tensor
    """Predicted incoming gradients, [T]."""
    grad_weight: Tensor
    """[V, H], in the wide dtype."""
    grad_bias: Tensor | None
    """[V], in the wide dtype."""

    def factor(self, grad: Tensor) -> float | None:
        """Return f for which `grad` = f * `expected` up to rounding; None if there is none."""
        expected, came = doubled(self.expected), doubled(grad)
        factor = came.dot(expected) / expected.dot(expected).clamp_min(torch.finfo(torch.double).tiny)
        rounding = 64 * torch.finfo(grad.dtype).eps * came.abs().max()
        fits = (came - factor * expected).abs().max() <= rounding
        found, holds = torch.stack([factor, fits.to(factor)]).tolist()  # waits for a GPU only once
        return float(found) if holds else None

    def gradients(self, factor: float) -> tuple[Tensor, Tensor | None]:
        """Scale the gradients of weight and bias in place and return them."""
        return self.grad_weight.mul_(factor), None if self.grad_bias is None else self.grad_bias.mul_(factor)


def _foretell(
    head: _Head, foresight: Foresight, states: Tensor, targets: Tensor, log_probs: Tensor, state_slopes: Tensor
) -> _Foretold:
    """Fill log_probs and state_slopes in one pass over the tokens, and sum the head's gradients.

    A block that is larger than a chunk is processed twice, first only for its log-probs.
    """
    wide = log_probs.dtype
    grad_weight = torch.zeros_like(head.weight, dtype=wide)
    grad_bias = None if head.bias is None else torch.zeros_like(head.bias, dtype=wide)
    expected = torch.empty_like(log_probs)
    for sequences, tokens in foresight.blocks(head.rows):
        spans = head.spans(tokens)
        for span in spans:
            log_probs[span] = head.log_softmax(states[span]).gather(1, targets[span, None])[:, 0]
        lengths = torch.tensor([foresight.lengths[i] for i in sequences], device=targets.device)
        index = torch.arange(len(sequences), device=targets.device)
        index = index.repeat_interleave(lengths, output_size=tokens.stop - tokens.start)
        slopes = foresight.slopes(sum_by_sequence(log_probs[tokens], index, len(sequences)), sequences.start)
        expected[tokens] = slopes.to(wide)[index]
        for span in spans:
            if len(spans) > 1:
                head.log_softmax(states[span])
            wanted = head.slopes(targets[span])
            narrow = head.narrow(wanted)
            torch.mm(narrow, head.weight, out=state_slopes[span])
            product_grad = expected[span] * -head.transform.scale
            _add_product(grad_weight, narrow.t(), (states[span] * product_grad[:, None]).to(head.dtype))
            if grad_bias is not None:
                grad_bias.addmv_(wanted.t(), product_grad)
    return _Foretold(expected, grad_weight, grad_bias)


def _head_gradients(
    plan: _Plan,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    product_grad: Tensor,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Compute those gradients of weight and bias that are `needed`, in the wide dtype, from recomputed logits.

    `product_grad` is the factor of each row of slopes, [T].
    """
    head = _Head(plan, weight, bias, states.shape[0])
    grad_weight = torch.zeros_like(weight, dtype=plan.wide) if needed[0] else None
    grad_bias = torch.zeros_like(bias, dtype=plan.wide) if bias is not None and needed[1] else None
    for span in head.spans():
        head.log_softmax(states[span])
        slopes = head.slopes(targets[span])
        if grad_bias is not None:
            grad_bias.addmv_(slopes.t(), product_grad[span])
        if grad_weight is not None:
            rows = (states[span] * product_grad[span, None]).to(plan.dtype)
            _add_product(grad_weight, head.narrow(slopes).t(), rows)
    return grad_weight, grad_bias


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to total, which may have a wider dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
