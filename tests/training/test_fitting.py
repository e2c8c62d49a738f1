"""The memory of a training step, compared with PyTorch's allocations and hand-worked values."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hafrm.data import DataOptions
from hafrm.models import attention
from hafrm.training import fitting, run
from hafrm.training.config import TrainConfig
from hafrm.training.fitting import Footprint, fitting_tokens
from tests.tiny import save_tiny, some_pairs


def test_the_usual_size_where_it_fits() -> None:
    assert fitting_tokens(Footprint(state=1000, per_token=10.0), free=100_000, usual=4096) == (4096, "")


def test_fewer_tokens_where_memory_is_short() -> None:
    needs = Footprint(state=1000, per_token=10.0)
    tokens, line = fitting_tokens(needs, free=20_000, usual=4096)
    assert needs.peak(tokens) <= 20_000 < needs.peak(tokens + 1)
    assert str(tokens) in line
    assert "warning" not in line


def test_never_too_few_tokens_to_be_useful() -> None:
    tokens, line = fitting_tokens(Footprint(state=10**9, per_token=10.0), free=1000, usual=4096)
    assert tokens == 256
    assert "warning" in line


def test_a_device_of_unknown_memory_gets_the_usual_size() -> None:
    assert fitting_tokens(Footprint(state=10**9, per_token=10.0), free=None, usual=8192) == (8192, "")


def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> tuple[list[float], Footprint]:
    """Train two steps on a machine with so much free memory; return the losses and the measured footprint."""
    seen: list[Footprint] = []
    measure = run.measure

    def watched(*args: Any, **options: Any) -> Footprint:
        seen.append(measure(*args, **options))
        return seen[-1]

    monkeypatch.setattr(run, "measure", watched)
    monkeypatch.setattr(fitting, "free_bytes", lambda device: free)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(32)))
    base = tmp_path / "base"
    if not base.exists():
        save_tiny(base)
    out = tmp_path / f"run-{free}"
    training = {"max_steps": 2, "per_device_train_batch_size": 16, "use_cpu": True, "report_to": []}
    limit = DataOptions(max_length=128)
    run.train(TrainConfig(model=str(base), data=[str(rows)], out=str(out), training=training, data_options=limit))
    rows_of_metrics = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows_of_metrics if "loss" in row], seen[-1]


def test_short_memory_changes_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plenty, needs = trained(tmp_path, monkeypatch, 2**40)
    assert "tokens_per_batch" not in capsys.readouterr().err
    free = needs.peak(400) + 10
    short, again = trained(tmp_path, monkeypatch, free)
    assert f"batches of up to {again.tokens(free)} tokens" in capsys.readouterr().err
    assert again.per_token == pytest.approx(needs.per_token, rel=0.1)
    assert short == pytest.approx(plenty, rel=1e-5)


def test_a_run_leaves_no_graph_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor activations are kept, which would accumulate over a study's runs."""
    before = {id(each) for each in trainable_tensors()}
    trained(tmp_path, monkeypatch, 2**40)
    gc.collect()
    assert not [tuple(each.shape) for each in trainable_tensors() if id(each) not in before]


def trainable_tensors() -> list[torch.Tensor]:
    return [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.requires_grad]


def test_the_state_is_a_gradient_and_two_moments_for_each_weight_and_a_chunk_of_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    _, needs = trained(tmp_path, monkeypatch, 2**40)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    head = model.config.hidden_size
    assert needs.state == 12 * (sum(weight.numel() for weight in model.parameters()) + head) + 2**26


def test_a_kernel_that_fails_in_training_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel passes the probe, which computes no gradients."""
    by_group = attention._by_group

    def fails(query: torch.Tensor, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no kernel for this device")
        return by_group(query, *args)

    expected, _ = trained(tmp_path, monkeypatch, 2**40)
    monkeypatch.setattr(attention, "_by_group", fails)
    losses, _ = trained(tmp_path, monkeypatch, 2**40 + 1)
    assert "no kernel for this device" in capsys.readouterr().err
    assert losses == pytest.approx(expected, rel=1e-5)
