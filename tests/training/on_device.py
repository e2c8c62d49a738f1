"""A training step away from the CPU: no tensor is left behind, the numbers are the same, and the host hardly waits.

`test_devices.py` runs these tests in a process of their own, because the pretend device has to exist from its start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hafrm.models.layout import choose_layout
from hafrm.models.references import frozen_copy_reference
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective
from tests.models.test_packed_model import MAX_LENGTH, hybrid
from tests.pretend_device import NAME, WAITS, pretend_device
from tests.training.test_objective import batch_of_rows

LOSSES: dict[str, dict[str, Any]] = {
    "haf": {},
    "baseline": {"policy_ratio": 0.0},
    "dpo": {"reward_weight": 0.0, "policy_ratio": 1.0},
    "sft": {"policy_loss": "sft"},
    "simpo": {"policy_loss": "simpo"},
    "consistency": {"consistency_weight": 0.1},
    "length control": {"length_control": True},
    "rankings": {"reward_loss": "plackett_luce"},
}


def gradients(model: torch.nn.Module, objective: Objective, batch: Any, reference: torch.Tensor) -> list[list[float]]:
    """Return the loss of each pair, and the gradients of all parameters."""
    model.zero_grad()
    losses = objective.pair_losses(model, batch, reference).loss
    losses.sum().backward()
    found = [losses.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]
    return [each.cpu().flatten().tolist() for each in found]


@pytest.mark.parametrize(("architecture", "name"), [*(("llama", name) for name in LOSSES), ("gemma2", "haf")])
def test_a_step_on_another_device_is_the_same(architecture: str, name: str, tmp_path: Path) -> None:
    model = hybrid(architecture)
    choose_layout(model, 3, max_length=MAX_LENGTH)
    objective = Objective(LossConfig(**LOSSES[name]), -1.0 if name == "length control" else 0.0)
    batch = batch_of_rows(tmp_path)
    reference = torch.linspace(-9, -4, 6, dtype=torch.float64)
    expected = gradients(model, objective, batch, reference)
    with pretend_device() as device:
        there = model.to(device)
        there.causal_lm.tie_weights()  # parameters of another type are new objects
        moved = batch.to(device)
        WAITS.clear()
        losses = objective.pair_losses(there, moved, reference.to(device)).loss.sum()
        losses.backward()
        assert len(WAITS) <= 1  # whether the policy loss's gradient is the predicted one
        found = gradients(there, objective, moved, reference.to(device))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("options", [{}, {"reward_loss": "probit", "policy_loss": "ipo"}], ids=["haf", "probit"])
def test_a_device_without_float64_trains(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Apple's MPS: the layout is probed and a step computed there."""
    model = hybrid("llama").float()
    objective, batch = Objective(LossConfig(**options)), batch_of_rows(tmp_path)
    reference = torch.linspace(-9, -4, 6)
    choose_layout(model, 3, max_length=MAX_LENGTH)
    expected = gradients(model, objective, batch, reference)
    monkeypatch.setattr("hafrm.numerics._WITHOUT_FLOAT64", {NAME})
    with pretend_device(float64=False) as device:
        there = model.to(device)
        there.causal_lm.tie_weights()
        choose_layout(there, 3, max_length=MAX_LENGTH)
        found = gradients(there, objective, batch.to(device), reference.to(device))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_a_reference_is_computed_where_the_model_is(tmp_path: Path) -> None:
    model = hybrid("llama")
    choose_layout(model, 3, max_length=MAX_LENGTH)
    sequences = batch_of_rows(tmp_path).sequences
    expected = frozen_copy_reference(model)(sequences).tolist()
    with pretend_device() as device:
        found = frozen_copy_reference(model.to(device))(sequences.to(device))
        assert found.device.type == device
        assert found.cpu().tolist() == pytest.approx(expected)


def test_the_pretend_device_refuses_mixed_operations() -> None:
    with pretend_device() as device:
        ours, theirs = torch.ones(3, device=device), torch.ones(3)
        with pytest.raises(RuntimeError, match="two devices"):
            ours + theirs
        assert (ours + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]
