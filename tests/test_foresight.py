"""Foresight: a head's gradient is computed in the forward pass, because the loss announced its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hafrm import logprobs
from hafrm.logprobs import Foresight, LogitTransform, linear_log_probs, sum_by_sequence
from hafrm.losses import POLICY_LOSSES
from hafrm.training.loss import LossConfig
from tests.tiny import save_tiny
from tests.training.test_trainer import first_batch, trainer


def dpo_like(reference: Tensor):
    """A loss of pairs with an awkward derivative, and its prediction."""

    def loss(log_probs: Tensor, first: int = 0) -> Tensor:
        ratio = log_probs - reference[first : first + len(log_probs)].to(log_probs)
        return -torch.nn.functional.logsigmoid(0.3 * (ratio[0::2] - ratio[1::2])).sum()

    def slopes(log_probs: Tensor, first: int) -> Tensor:
        with torch.enable_grad():
            leaf = log_probs.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf, first), leaf)[0]

    return loss, slopes


LENGTHS = (3, 5, 1, 2, 9, 4, 2, 2)
"""The third pair is longer than a chunk of ten rows."""


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.5, softcap=2.0)], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 10, 100])
@pytest.mark.parametrize("factor", [1.0, 0.2, -3.0, 0.0])
def test_foresight_changes_no_gradient(with_bias: bool, transform: LogitTransform, rows: int, factor: float) -> None:
    """With a prediction that is right up to a factor, gradients are those of the ordinary backward pass."""
    torch.manual_seed(0)
    tokens, hidden, vocabulary = sum(LENGTHS), 6, 11
    reference = torch.randn(len(LENGTHS), dtype=torch.float64)
    index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    targets = torch.randint(vocabulary, (tokens,))
    loss, slopes = dpo_like(reference)

    def gradients(foresight: Foresight | None) -> list[Tensor]:
        torch.manual_seed(1)
        states = torch.randn(tokens, hidden, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(vocabulary, hidden, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(vocabulary, dtype=torch.float64, requires_grad=True) if with_bias else None
        found = linear_log_probs(
            states,
            weight,
            targets,
            bias=bias,
            transform=transform,
            foresight=foresight,
            chunk_bytes=rows * vocabulary * 8,
        )
        (factor * loss(sum_by_sequence(found, index, len(LENGTHS)))).backward()
        return [found.detach(), *(leaf.grad for leaf in (states, weight, bias) if leaf is not None)]

    for told, plain in zip(
        gradients(Foresight(LENGTHS, (2,) * (len(LENGTHS) // 2), slopes)), gradients(None), strict=True
    ):
        torch.testing.assert_close(told, plain, rtol=1e-12, atol=1e-12)


def test_a_wrong_word_changes_no_gradient() -> None:
    """If the actual gradient differs from the prediction, the head's gradient is computed from the actual one."""
    torch.manual_seed(0)
    states = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (8,))
    wrong = Foresight((2, 2, 2, 2), (2, 2), lambda log_probs, first: torch.ones_like(log_probs))
    grads = []
    for foresight in (wrong, None):
        states.grad = weight.grad = None
        found = linear_log_probs(states, weight, targets, foresight=foresight)
        (found * torch.arange(8.0)).sum().backward()
        grads.append((states.grad, weight.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


def test_foresight_spares_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a correct prediction the backward pass computes no logits; without one it does."""
    calls = []
    original = logprobs._Head.log_softmax
    monkeypatch.setattr(logprobs._Head, "log_softmax", lambda self, s: calls.append(len(s)) or original(self, s))
    loss, slopes = dpo_like(torch.zeros(len(LENGTHS)))
    index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    made = []
    for foresight in (Foresight(LENGTHS, (2,) * (len(LENGTHS) // 2), slopes), None):
        calls.clear()
        states, weight = torch.randn(sum(LENGTHS), 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
        found = linear_log_probs(states, weight, torch.zeros(len(index), dtype=torch.long), foresight=foresight)
        loss(sum_by_sequence(found, index, len(LENGTHS))).backward()
        made.append(sum(calls))
    assert made == [sum(LENGTHS), 2 * sum(LENGTHS)]


def test_foresight_of_other_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens, but there are 3"):
        linear_log_probs(
            torch.zeros(3, 2),
            torch.zeros(5, 2),
            torch.zeros(3, dtype=torch.long),
            foresight=Foresight((2, 2), (2,), lambda log_probs, first: log_probs),
        )


@pytest.mark.parametrize("kind", sorted(POLICY_LOSSES))
def test_the_objective_tells_the_truth(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy loss with independent pairs avoids computing logits in the backward pass."""
    made = []
    original = logprobs._head_gradients
    monkeypatch.setattr(logprobs, "_head_gradients", lambda *a: made.append(1) or original(*a))
    smoothing = 0.1 if kind == "exo_pair" else 0.0
    one = trainer(
        save_tiny(tmp_path / "base"), tmp_path, LossConfig(policy_loss=kind, policy_label_smoothing=smoothing)
    )
    one.model.train()
    one.compute_loss(one.model, first_batch(one)).backward()
    assert bool(made) == (kind in ("kto_pair", "aot", "aot_unpaired"))
