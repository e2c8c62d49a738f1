"""Choose and check how a run's weights are sharded over its processes.

Plain data parallelism (DDP) keeps every weight in every process. FSDP2 and DeepSpeed's ZeRO shard the weights,
gradients or optimizer. transformers and accelerate do the work; this module refuses configurations that they accept but
this package does not support, since the layout probe, the reference and the fingerprint of the weights are computed
before training from a model that is whole in every process.
"""

from __future__ import annotations

import os

from accelerate.utils import FullyShardedDataParallelPlugin, str_to_bool
from torch.distributed.fsdp import StateDictType
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.training_args import ParallelMode

from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel


def sharding(args: TrainingArguments, *, lora: bool) -> str | None:
    """Return the sharding of a run: `fsdp2`, `zero1` to `zero3`, or None if each process has everything.

    Args:
        args: The trainer's arguments, which include the settings of `accelerate launch`.
        lora: Whether the run trains adapters.

    Raises:
        ConfigError: the requested sharding is not supported.
    """
    kind = _fsdp(args) or _zero(args)
    if kind is not None and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(
            f"{kind} shards over the processes of `torchrun` or `accelerate launch`: start it so (docs/distributed.md)."
        )
    if kind is not None and lora:
        raise ConfigError(
            f"lora: adapters can't be saved and merged from weights that {kind} shards. Train them with plain data "
            "parallelism (configs/distributed/ddp.yaml): they need no optimizer state worth sharding."
        )
    return kind


def fsdp_plugin(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """Return accelerate's FSDP settings, from `training.fsdp` or `accelerate launch`; None if FSDP is off."""
    if args.fsdp_plugin_args is None and not str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return None
    return FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))


def _fsdp(args: TrainingArguments) -> str | None:
    plugin = fsdp_plugin(args)
    if plugin is None:
        return None
    where = "configs/distributed/fsdp2.yaml shows what serves."
    if plugin.fsdp_version != 2:
        raise ConfigError(f"FSDP must be of version 2 here (fsdp_version: 2). {where}")
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ConfigError(
            "FSDP checkpoints must be FULL_STATE_DICT (fsdp_state_dict_type): sharded ones hold a pickle, which is "
            f"never loaded here, and no file that stock transformers loads. {where}"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading leaves the weights to the first process, and each must run the model "
            f"before it is sharded, for the probe and the reference: set it to false. {where}"
        )
    return "fsdp2"


def _zero(args: TrainingArguments) -> str | None:
    if args.deepspeed_plugin is None:
        return None
    if is_deepspeed_zero3_enabled():
        raise ConfigError(
            "DeepSpeed's zero3_init_flag loads weights in parts, and each process must run the model before it is "
            "sharded, for the probe and the reference: set it to false, as in configs/distributed/zero3.yaml."
        )
    return f"zero{args.deepspeed_plugin.zero_stage}"


def share_heads_with_root(model: HybridModel) -> None:
    """Let ZeRO-3 gather both heads' weights in the model's forward, which uses them outside their modules."""
    from deepspeed.zero import register_external_parameter  # an extra that only ZeRO needs

    for head in (model.reward_head, model.policy_head):
        for weight in head.parameters():
            register_external_parameter(model, weight)
