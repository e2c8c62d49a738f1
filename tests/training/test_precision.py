"""Half precision: references use the policy's precision, and rewards are not rounded to bfloat16."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hafrm.data import DataOptions
from hafrm.encoding import ConversationEncoder
from hafrm.models.hybrid import HybridModel
from hafrm.models.options import LoraOptions
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import SequenceBatch, pad_rows
from hafrm.training.config import TrainConfig
from hafrm.training.loss import LossConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    rows = tmp_path / "train.jsonl"
    rows.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(12)))
    return TrainConfig(
        model=str(save_tiny(tmp_path / "base")),
        data=[str(rows)],
        method="dpo",
        out=str(tmp_path / "run"),
        data_options=DataOptions(max_length=128),
        training={
            "max_steps": 1,
            "per_device_train_batch_size": 12,
            "use_cpu": True,
            "bf16": True,
            "report_to": [],
            "save_strategy": "no",
        },
    )


def first_step(config: TrainConfig) -> dict[str, float]:
    """Return what a run logs for its first step, before any weight has changed."""
    train(config)
    return json.loads((Path(config.out) / "metrics.jsonl").read_text().splitlines()[0])


def in_float32(config: TrainConfig) -> TrainConfig:
    return replace(config, out=config.out + "-float32", training=config.training | {"bf16": False})


@pytest.mark.parametrize("reference", ["precomputed", "frozen_copy"])
def test_dpo_starts_at_log_two_under_bfloat16(reference: str, config: TrainConfig) -> None:
    """The policy equals its reference, and both round in the same way: every log-ratio is 0."""
    step = first_step(replace(config, loss=LossConfig(reference=reference)))
    assert step["loss"] == pytest.approx(math.log(2), abs=2e-5)
    assert step["policy/chosen"] == pytest.approx(0, abs=2e-5)
    assert step["policy/rejected"] == pytest.approx(0, abs=2e-5)


def test_a_float32_runs_reference_is_not_taken_for_a_bfloat16_run(config: TrainConfig) -> None:
    """Both share a cache, weights and token ids; the name of a stored reference includes the precision."""
    single = first_step(in_float32(config))
    half = first_step(config)
    assert abs(half["logps/chosen"] - single["logps/chosen"]) > 1e-3  # otherwise the two could not be distinguished
    for step in (single, half):
        assert step["loss"] == pytest.approx(math.log(2), abs=2e-5)


@pytest.fixture
def model(tmp_path: Path) -> HybridModel:
    base = str(save_tiny(tmp_path / "base"))
    return new_model(base, load_tokenizer(base), lora=LoraOptions()).eval()


def a_batch(tmp_path: Path) -> SequenceBatch:
    encoder = ConversationEncoder(load_tokenizer(str(tmp_path / "base")), 128)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in some_pairs(8)]
    return pad_rows(groups, pad_token_id=3)


@torch.no_grad()
def test_rewards_are_float32_products_under_autocast(model: HybridModel, tmp_path: Path) -> None:
    """The backbone computes in bfloat16; the head's product of its states is not rounded to it."""
    batch = a_batch(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = model(batch, log_probs=False).rewards
        states = model.hidden_states(batch)[batch.score_index]
        rounded = model.score(states).squeeze(-1)
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, F.linear(states.float(), model.score.weight).squeeze(-1), rtol=1e-6, atol=1e-6)
    assert rounded.dtype == torch.bfloat16  # the result of autocast for the head
    assert (rewards - rounded).abs().max() > 1e-4


@torch.no_grad()
def test_a_bfloat16_model_gives_float32_rewards(model: HybridModel, tmp_path: Path) -> None:
    """Two responses whose rewards differ by less than bfloat16 holds must not tie."""
    batch = a_batch(tmp_path)
    rewards = model.bfloat16()(batch, log_probs=False).rewards
    states = model.hidden_states(batch)[batch.score_index]
    assert rewards.dtype == torch.float32
    expected = F.linear(states.float(), model.score.weight.float()).squeeze(-1)
    torch.testing.assert_close(rewards, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(rewards, rewards.bfloat16().float())
