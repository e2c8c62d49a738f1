"""Choose and check how a run's weights are sharded over its processes, and gather them for checkpoints.

Plain data parallelism (DDP) keeps every weight in every process. FSDP2 and DeepSpeed's ZeRO shard the weights,
gradients or optimizer. transformers and accelerate do the work; this module refuses configurations that they accept but
this package does not support, since the layout probe, the reference and the fingerprint of the weights are computed
before training from a model that is whole in every process.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, str_to_bool
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, StateDictType
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import FSDP_MODEL_NAME
from transformers.training_args import ParallelMode

from hafrm.errors import ConfigError
from hafrm.models.checkpoints import restore_weights
from hafrm.models.hybrid import HybridModel


def sharding(args: TrainingArguments, *, quantized: bool) -> str | None:
    """Return the sharding of a run: `fsdp2`, `zero1` to `zero3`, or None if each process has everything.

    Args:
        args: The trainer's arguments, which include the settings of `accelerate launch`.
        quantized: Whether the backbone's weights are stored in 4 bits.

    Raises:
        ConfigError: the requested sharding is not supported.
    """
    kind = _fsdp(args) or _zero(args)
    if kind is not None and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(
            f"{kind} shards over the processes of `torchrun` or `accelerate launch`: start it with one of them "
            "(docs/distributed.md)."
        )
    if kind is not None and quantized:
        raise ConfigError(
            f"lora.quantize: {kind} can't shard 4-bit weights. Train with plain data parallelism "
            "(configs/distributed/ddp.yaml), or leave it out."
        )
    return kind


def _fsdp_plugin(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """Return accelerate's FSDP settings, from `training.fsdp` or `accelerate launch`; None if FSDP is off."""
    if args.fsdp_plugin_args is None and not str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return None
    return FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))


def _fsdp(args: TrainingArguments) -> str | None:
    plugin = _fsdp_plugin(args)
    if plugin is None:
        return None
    where = "configs/distributed/fsdp2.yaml shows what serves."
    if plugin.fsdp_version != 2:
        raise ConfigError(f"FSDP must be of version 2 here (fsdp_version: 2). {where}")
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ConfigError(
            "FSDP checkpoints must be FULL_STATE_DICT (fsdp_state_dict_type): sharded ones contain a pickle, which "
            f"hafrm never loads, and no file that stock transformers loads. {where}"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading loads weights in the first process only, but each must run the model "
            f"before it is sharded, for the probe and the reference: set it to false. {where}"
        )
    return "fsdp2"


def _zero(args: TrainingArguments) -> str | None:
    plugin = args.deepspeed_plugin
    if plugin is None:
        return None
    where = "configs/distributed/deepspeed.yaml shows what serves."
    if plugin.zero_stage == 3 and plugin.zero3_init_flag:
        raise ConfigError(
            "DeepSpeed's zero3_init_flag loads weights in parts, but each process must run the model before it is "
            f"sharded, for the probe and the reference: set it to false. {where}"
        )
    if plugin.zero_stage == 3 and not plugin.zero3_save_16bit_model:
        raise ConfigError(f"ZeRO-3 must gather weights to save them: set zero3_save_16bit_model to true. {where}")
    return f"zero{plugin.zero_stage}"


def load_whole_weights() -> None:
    """Let transformers load weights whole from now on: accelerate tells it to load them in parts under ZeRO-3, whatever
    `zero3_init_flag` says.
    """
    unset_hf_deepspeed_config()


class ShardedTrainer(Trainer):
    """transformers' trainer of a `HybridModel` whose weights FSDP or ZeRO may shard."""

    model: HybridModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:
            _share_heads_with_root(self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._empty = _without_weights(self.model)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator as transformers does; let FSDP also run on CPUs, in one process's precision, and save
        memory.
        """
        super().create_accelerator_and_postprocess()
        load_whole_weights()
        state = self.accelerator.state
        if self.accelerator.distributed_type == DistributedType.MULTI_CPU and (plugin := _fsdp_plugin(self.args)):
            state.fsdp_plugin = plugin  # accelerate only does this on GPUs
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled:
            # Autocast computes in half precision, as without FSDP; accelerate's policy would also round rewards to it.
            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
            # Otherwise the gradients of accumulated batches would stay unsharded and use the memory that FSDP saves.
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True

    def whole_model(self) -> HybridModel | None:
        """Return the model, in the first process a copy with whole weights if they are sharded; None in the others.

        All processes must call it.
        """
        zero: Any = self.deepspeed
        zero3 = zero if zero is not None and zero.zero_optimization_partition_weights() else None
        sharded = self.model if self.is_fsdp_enabled else zero3
        if sharded is None:
            return self.model
        weights = self.accelerator.get_state_dict(sharded)
        return _with_weights(self._empty, weights) if weights else None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.is_fsdp_enabled and self.args.should_save:
            (Path(output_dir) / f"{FSDP_MODEL_NAME}.bin").unlink()  # the weights, which are already saved there

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        elif self.state.best_model_checkpoint:
            self.restore(Path(self.state.best_model_checkpoint))

    def restore(self, folder: Path) -> None:
        """Load a checkpoint's weights, also into a model that FSDP shards; all processes must call it."""
        if not self.is_fsdp_enabled:
            restore_weights(self.model, folder)
            return
        weights: dict[str, Any] = {}
        if (model := self.whole_model()) is not None:
            restore_weights(model, folder)
            weights |= model.state_dict()
        set_model_state_dict(
            self.model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        )


def _without_weights(model: HybridModel) -> HybridModel:
    """Copy a model without its weights, which are on the meta device, before they are sharded."""
    left_out: dict[int, Any] = {}
    for weight in model.state_dict(keep_vars=True).values():
        meta = torch.empty_like(weight, device="meta")
        left_out[id(weight)] = nn.Parameter(meta, weight.requires_grad) if isinstance(weight, nn.Parameter) else meta
    return copy.deepcopy(model, left_out)


def _with_weights(empty: HybridModel, weights: Mapping[str, Tensor]) -> HybridModel:
    """Copy a model from `_without_weights`, with the weights of a state dict, which are not copied."""
    model = copy.deepcopy(empty)
    model.load_state_dict(weights, assign=True)
    model.stock_lm.tie_weights()
    return model


def _share_heads_with_root(model: HybridModel) -> None:
    """Let ZeRO-3 gather both heads' weights in the model's forward, which uses them outside their modules."""
    from deepspeed import zero  # an extra that only ZeRO needs

    for head in (model.reward_head, model.stock_lm.get_output_embeddings()):
        for weight in head.parameters() if head is not None else ():
            zero.register_external_parameter(model, weight)
