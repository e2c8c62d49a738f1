"""Every shipped config parses into a run that its command accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafrm.cli import rlhf, train
from hafrm.cli.options import options_of
from hafrm.rlhf.options import RlhfConfig
from hafrm.training.config import TrainConfig, training_arguments

ROOT = Path(__file__).parents[2] / "configs"
RLHF_CONFIGS = sorted((ROOT / "rlhf").rglob("*.yaml"))
CONFIGS = sorted(set(ROOT.rglob("*.yaml")) - set(RLHF_CONFIGS))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse(path: Path) -> None:
    parser = train.parser()
    args = parser.parse_args(
        ["--config", str(path), "--data", "hh-harmless", "--eval_data", "hh-harmless", "--out", "o"]
    )
    config = options_of(TrainConfig, parser, args)
    arguments = training_arguments(config, pairs=1000)
    assert arguments.max_steps == 3200
    assert config.lora.enabled == ("mistral" in path.stem)
    assert arguments.learning_rate == (1e-5 if "phi" in path.stem else 3e-5)


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
