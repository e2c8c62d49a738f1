"""The files in `configs/distributed` are readable by accelerate and supported; unsupported settings are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.training_args import ParallelMode

from hafrm.errors import ConfigError
from hafrm.training.arguments import checked_arguments
from hafrm.training.sharding import sharding

CONFIGS = Path(__file__).parents[2] / "configs" / "distributed"
ZERO = {"zero3_init_flag": False, "zero3_save_16bit_model": True}
FULL = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}


def launched(name: str) -> Any:
    """Return what `accelerate launch` reads from a config file."""
    told = launch_command_parser().parse_args(["--config_file", str(CONFIGS / name), "train.py"])
    args, *_ = _validate_launch_command(told)
    return args


def arguments(
    *, fsdp: dict[str, Any] | None = None, zero: int | None = None, launcher: bool = True, **changes: bool
) -> Any:
    """The attributes of TrainingArguments that `sharding` reads."""
    return SimpleNamespace(
        fsdp_plugin_args=fsdp,
        deepspeed_plugin=None if zero is None else SimpleNamespace(zero_stage=zero, **(ZERO | changes)),
        parallel_mode=ParallelMode.DISTRIBUTED if launcher else ParallelMode.NOT_PARALLEL,
    )


def test_accelerate_reads_what_serves_from_the_fsdp_config(monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched("fsdp2.yaml")
    assert args.use_fsdp
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(name, value)
    assert sharding(arguments(), quantized=False) == "fsdp2"


def test_accelerate_reads_the_configs_of_ddp_and_zero() -> None:
    assert launched("ddp.yaml").multi_gpu
    zero = launched("deepspeed.yaml")
    assert zero.use_deepspeed
    assert (zero.zero_stage, zero.zero3_init_flag, zero.zero3_save_16bit_model) == (3, False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fsdp_version": 1, "reshard_after_forward": "FULL_SHARD"}, "version 2"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "contain a pickle"),
        ({"cpu_ram_efficient_loading": True}, "set it to false"),
    ],
    ids=["version", "pickle", "loading"],
)
def test_fsdp_that_cannot_serve_is_refused(change: dict[str, Any], message: str, monkeypatch) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # accelerate's plugin sets it
    assert sharding(arguments(fsdp=FULL), quantized=False) == "fsdp2"
    with pytest.raises(ConfigError, match=message):
        sharding(arguments(fsdp=FULL | change), quantized=False)


def test_sharding_needs_processes_and_whole_weights() -> None:
    assert sharding(arguments(), quantized=True) is None
    assert sharding(arguments(zero=2), quantized=False) == "zero2"
    with pytest.raises(ConfigError, match="zero3 shards over the processes of"):
        sharding(arguments(zero=3, launcher=False), quantized=False)
    with pytest.raises(ConfigError, match=r"4-bit .*ddp\.yaml"):
        sharding(arguments(zero=3), quantized=True)


@pytest.mark.parametrize("name", ZERO)
def test_zero_that_cannot_serve_is_refused(name: str) -> None:
    assert sharding(arguments(zero=3), quantized=False) == "zero3"
    assert sharding(arguments(zero=1, **{name: not ZERO[name]}), quantized=False) == "zero1"
    with pytest.raises(ConfigError, match=name):
        sharding(arguments(zero=3, **{name: not ZERO[name]}), quantized=False)


@pytest.mark.parametrize("name", ["deepspeed", "parallelism_config", "save_on_each_node"])
def test_fields_that_would_break_parallel_runs_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name}"):
        checked_arguments({name: True})
