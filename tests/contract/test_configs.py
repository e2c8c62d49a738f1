"""Every shipped config of a run parses into one that its command accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafrm.cli import train
from hafrm.cli.options import options_of
from hafrm.training.config import TrainConfig, training_arguments

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml"))


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


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"phi-2", "mistral-base", "mistral-instruct"}
