"""Too little memory and non-finite numbers give errors that say where, and which option to change."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from hafrm.data import DataOptions
from hafrm.errors import NoMemoryError, NonFiniteLossError
from hafrm.memory import enough_memory
from hafrm.models import references
from hafrm.models.hybrid import HybridModel
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.scorers import HybridScorer
from hafrm.training.config import TrainConfig
from hafrm.training.resuming import last_checkpoint
from hafrm.training.run import train
from tests.faults.runs import saved_run
from tests.tiny import save_tiny, some_pairs


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(12)))
    training = {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 1, "use_cpu": True, "report_to": []}
    return TrainConfig(
        model=str(save_tiny(tmp_path / "base")),
        data=[str(rows)],
        out=str(tmp_path / "run"),
        data_options=DataOptions(max_length=128),
        training=training,
    )


def fit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches of more tokens than this request more memory than there is."""
    forward = HybridModel.forward

    def allocate(self: HybridModel, batch: Any, **options: Any) -> Any:
        if batch.input_ids.numel() > limit:
            torch.empty(1 << 50)
        return forward(self, batch, **options)

    monkeypatch.setattr(HybridModel, "forward", allocate)


def losses(folder: str) -> list[float]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.slow
def test_memory_runs_out_in_training(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run resumes with smaller batches, says so, and has the same losses."""
    config = replace(config, method="baseline")
    train(replace(config, out=config.out + "-undisturbed"))
    fit(200, monkeypatch)
    train(config)
    said = capsys.readouterr().err
    assert "step 1, a batch of 4 pairs" in said
    assert re.search(r"batches of \d+ tokens", said)
    assert losses(config.out) == pytest.approx(losses(config.out + "-undisturbed"), rel=1e-5)


@pytest.mark.slow
def test_memory_runs_out_with_a_chosen_size(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the option, and the run resumes with that option changed, to the same losses."""
    config = replace(config, method="baseline", data_options=replace(config.data_options, tokens_per_batch=2000))
    train(replace(config, out=config.out + "-undisturbed"))
    step, limit = Trainer.training_step, 200  # of a part of the batch

    def later(self: Trainer, *args: Any) -> Any:
        if self.state.global_step == 2:
            fit(limit, monkeypatch)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", later)
        with pytest.raises(NoMemoryError, match=r"step 3, a batch of 4 pairs and \d+ tokens.*data_options\.tokens_per"):
            train(config)
    fit(limit, monkeypatch)
    checkpointing = config.training | {"activation_checkpointing": True}
    smaller = replace(config.data_options, tokens_per_batch=limit)
    train(replace(config, data_options=smaller, training=checkpointing))
    assert losses(config.out) == pytest.approx(losses(config.out + "-undisturbed"), rel=1e-5)


def test_memory_that_no_split_saves(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single pair that does not fit is an error, not an endless series of attempts."""
    fit(20, monkeypatch)
    with pytest.raises(NoMemoryError):
        train(replace(config, method="baseline"))


def test_memory_runs_out_before_training(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option also limits the reference's batches, and reference values already computed are kept."""
    monkeypatch.setattr(references, "_PART", 4)
    fit(150, monkeypatch)
    large = replace(config, data_options=replace(config.data_options, tokens_per_batch=1024))
    with pytest.raises(NoMemoryError, match=r"reference log-probs, batches of 1024 tokens.*data_options\.tokens_per"):
        train(large)
    train(replace(config, data_options=replace(config.data_options, tokens_per_batch=150)))


def test_memory_runs_out_in_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved_run(save_tiny(tmp_path / "base"), tmp_path / "run")
    conversations = [conversation for pair in some_pairs(8) for conversation in pair.conversations]
    expected = load_scorer(str(run)).score(conversations)
    scorer, policy = load_scorer(str(run)), load_scorer(str(run), head="policy")
    assert isinstance(policy, HybridScorer)
    fit(200, monkeypatch)
    for score in (scorer.score, policy.token_log_ratios):
        with pytest.raises(NoMemoryError, match=r"a batch of 16 responses and \d+ tokens.*score\.tokens_per_batch"):
            score(conversations)
    options = ScoreOptions(tokens_per_batch=200)
    assert load_scorer(str(run), options=options).score(conversations) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError()])
def test_every_kind_of_too_little_memory(error: Exception) -> None:
    said = r"Out of memory \(a batch\)\. Turn the knob\."
    with pytest.raises(NoMemoryError, match=said), enough_memory("a batch", "Turn the knob."):
        raise error


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, torch.distributed.DistBackendError])
def test_other_errors_are_not_for_want_of_memory(kind: type[Exception]) -> None:
    """All of these are RuntimeErrors, like torch's out-of-memory error."""
    with pytest.raises(kind, match="shapes differ"), enough_memory("a batch", "Turn the knob."):
        raise kind("shapes differ")


def test_a_gradient_that_is_not_finite(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the step and its rows, no weight has changed, and the last checkpoint is intact."""
    step = Trainer.training_step  # of a part of the batch

    def spoilt(self: Trainer, *args: Any) -> torch.Tensor:
        loss = step(self, *args)
        if self.state.global_step == 2:
            self.model.score.weight.grad[0, 0] = math.nan
        return loss

    monkeypatch.setattr(Trainer, "training_step", spoilt)
    with pytest.raises(NonFiniteLossError, match=r"gradient is not finite at step 3.*4 pairs: .*pairs\.jsonl:\d+, "):
        train(replace(config, method="baseline"))
    checkpoint = last_checkpoint(Path(config.out))
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert not (Path(config.out) / "model.safetensors").exists()
