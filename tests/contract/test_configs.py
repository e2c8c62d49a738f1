"""Every shipped config of a run parses into one that its command accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hafrm.cli import pretrain, rlhf, train
from hafrm.cli.options import options_of
from hafrm.rlhf.options import RlhfConfig
from hafrm.training.config import PretrainConfig, TrainConfig
from hafrm.training.defaults import training_arguments

ROOT = Path(__file__).parents[2] / "configs"
CONFIGS = sorted((ROOT / "paper").glob("*.yaml"))
BACKBONES = sorted((ROOT / "small").glob("*.yaml"))
RLHF_CONFIGS = sorted((ROOT / "rlhf").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse(path: Path) -> None:
    parser = train.parser()
    args = parser.parse_args(
        ["--config", str(path), "--data", "hh-harmless", "--eval_data", "hh-harmless", "--out", "o"]
    )
    config = options_of(TrainConfig, parser, args)
    assert config.training["fp16"] is True  # Table 5, for a GPU, which may be missing here
    without = {name: value for name, value in config.training.items() if name != "fp16"}
    arguments = training_arguments(replace(config, training=without), pairs=1000)
    assert arguments.max_steps == 3200
    assert config.lora.enabled == ("mistral" in path.stem)
    assert arguments.learning_rate == (1e-5 if "phi" in path.stem else 3e-5)


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: path.stem)
def test_recipes_of_backbones_parse(path: Path) -> None:
    parser = pretrain.parser()
    instruct = ["--model", "m"] * path.stem.endswith("instruct")
    args = parser.parse_args(["--config", str(path), "--data", "t.jsonl", "--out", "o", *instruct])
    assert options_of(PretrainConfig, parser, args).training["learning_rate"] > 0
    assert f"hafrm pretrain --config configs/small/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RLHF_CONFIGS, ids=lambda path: path.stem)
def test_configs_of_policies_parse(path: Path) -> None:
    parser = rlhf.parser()
    args = parser.parse_args(["m", "--config", str(path), "--reward", "r", "--data", "hh-helpful", "--out", "o"])
    config = options_of(RlhfConfig, parser, args)
    assert config.lora.enabled
    assert (config.batch_size, config.learning_rate, config.sampling.top_p) == (16, 2e-5, 0.9)


def test_there_are_configs() -> None:
    assert RLHF_CONFIGS
    assert {path.stem for path in CONFIGS} >= {"phi-2", "mistral-base", "mistral-instruct"}
    assert {path.stem for path in BACKBONES} >= {"mini-base", "mini-instruct"}
    of_accelerate = {*(ROOT / "distributed").glob("*.yaml")}  # see tests/training/test_distributed_configs.py
    assert {*CONFIGS, *BACKBONES, *RLHF_CONFIGS} == {*ROOT.rglob("*.yaml")} - of_accelerate
