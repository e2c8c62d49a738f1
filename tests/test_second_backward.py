"""A retained graph gives the same gradients each time, as PyTorch's own functions do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hafrm.logprobs import Foresight, LogitTransform, linear_log_probs
from tests.test_foresight import LENGTHS, dpo_like

TOKENS, HIDDEN, VOCABULARY = sum(LENGTHS), 6, 11


def summed(log_probs: Tensor) -> Tensor:
    index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    return log_probs.new_zeros(len(LENGTHS)).index_add(0, index, log_probs)


@pytest.mark.parametrize("foretold", [False, True])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.5, softcap=2.0)], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_each_backward_gives_the_gradients_of_plain_autograd(
    foretold: bool, transform: LogitTransform, rows: int
) -> None:
    """Gradients are right in the first and second pass and for a multiple of the loss; returned ones never change."""
    torch.manual_seed(0)
    loss_of, slopes = dpo_like(torch.randn(len(LENGTHS), dtype=torch.float64))
    targets = torch.randint(VOCABULARY, (TOKENS,))
    shapes = ((TOKENS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    states, weight, bias = leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    logits = (states @ weight.T + bias) * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    plain = loss_of(summed(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]))
    truth = torch.autograd.grad(plain, leaves)

    log_probs = linear_log_probs(
        states,
        weight,
        targets,
        bias=bias,
        transform=transform,
        foresight=Foresight(LENGTHS, (2,) * (len(LENGTHS) // 2), slopes) if foretold else None,
        chunk_bytes=rows * VOCABULARY * 8,
    )
    loss = loss_of(summed(log_probs))
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for factor in (1.0, 1.0, -0.5, 1.0):
        again = torch.autograd.grad(factor * loss, leaves, retain_graph=True)
        for found, known in zip(again, truth, strict=True):
            torch.testing.assert_close(found, factor * known, rtol=1e-10, atol=1e-12)
    for found, known in zip(first, truth, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)
    loss.backward(retain_graph=True)
    loss.backward()
    for leaf, known in zip(leaves, truth, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * known, rtol=1e-10, atol=1e-12)
