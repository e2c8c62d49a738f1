"""The trainer's arguments: the paper's defaults (Table 5), the schedule of evaluations, and what the user set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks, is_tensorboard_available

from hafrm.errors import ConfigError
from hafrm.numerics import is_bfloat16_fast
from hafrm.training.arguments import in_steps, launched_processes, pairs_per_step, total_steps
from hafrm.training.config import BEST_METRICS, TrainConfig

_NEED_A_MODEL = ("galore", "apollo", "lomo", "adalomo")
"""Optimizers that transformers only builds for a whole model."""


_LENGTH = {"max_steps", "num_train_epochs"}
_AT_MOST = {"max_steps": -1, "num_train_epochs": 3}
"""The longest run by default: as many epochs as TRL and LLaMA-Factory train."""


def training_arguments(
    config: TrainConfig, *, pairs: int, started: Mapping[str, Any] | None = None
) -> TrainingArguments:
    """Build the trainer's arguments: the paper's Table 5, overridden by what the user set.

    The paper trains 3,200 steps on each of its sets; here a run has by default as many, but at most three epochs.
    The paper evaluates every 0.025 of the steps; here the interval is at least 20 steps, so that short runs don't spend
    their time on evaluation. The learning rate is the paper's for Phi-2 (1e-5; its Mistral runs use 3e-5). The paper
    names no schedule; transformers' default is used (linear decay).

    Args:
        pairs: Number of training pairs, which gives the number of steps for runs of whole epochs.
        started: The settings of the interrupted run that is resumed, whose precision is kept on any machine.

    Raises:
        ConfigError: transformers refuses the arguments.
    """
    precision = {name: started[name] for name in ("bf16", "fp16") if name in started} if started else {}
    values = _defaults(config) | precision | config.training
    if not _LENGTH & config.training.keys():  # the paper's steps would be many epochs of a small data set
        values["max_steps"] = min(values["max_steps"], total_steps(values | _AT_MOST, pairs))
    if values["bf16"] and not torch.accelerator.is_available():  # transformers refuses bf16 unless use_cpu is set
        values = {"use_cpu": True} | values
    steps = total_steps(values, pairs)
    values = in_steps(values, steps)
    try:
        arguments = TrainingArguments(output_dir=config.out, **(_schedule(config, values, steps) | values))
        get_reporting_integration_callbacks(arguments.report_to)  # raises for loggers that don't exist
        _require_optimizer(arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error
    _require_precision(config, arguments)
    if arguments.n_gpu > 1:  # each process drives one device; `torchrun` or `accelerate launch` starts several
        arguments._n_gpu = 1
    return arguments


def autocast_of(args: TrainingArguments) -> torch.autocast:
    """Return the context of the trainer's mixed precision, for passes outside the trainer."""
    half = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(args.device.type, dtype=half, enabled=args.bf16 or args.fp16)


def pairs_needed(config: TrainConfig, *, processes: int) -> int | None:
    """Return the number of pairs of all steps; None if the run's length is in epochs."""
    values = _defaults(config) | config.training
    return pairs_per_step(values, processes) * values["max_steps"] if values["max_steps"] > 0 else None


def _require_optimizer(arguments: TrainingArguments) -> None:
    """Build the optimizer and the schedule for a single weight: they refuse, for example, a negative learning rate.

    Raises:
        ValueError: raised by the optimizer or the schedule, as is TypeError.
    """
    if arguments.optim.startswith(_NEED_A_MODEL):
        return
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(1),
        num_training_steps=1,
        scheduler_specific_kwargs=cast(Any, arguments.lr_scheduler_kwargs),
    )


def _require_precision(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Raise for a dtype that can't represent an optimizer step, or if policy and reference differ in precision."""
    if config.dtype == "bfloat16" and not config.lora.enabled and arguments.deepspeed_plugin is None:
        raise ConfigError(
            "dtype: steps are too small for bfloat16 weights to represent, so they would hardly be trained. Use "
            "training.bf16 true, which keeps float32 weights, or set lora.rank."
        )
    if arguments.fp16 and arguments.device.type == "cpu":
        raise ConfigError("training.fp16 has no effect on a CPU: leave it out.")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # would override the options
    if launched not in ("no", "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"):
        raise ConfigError(
            f"The launcher asks for mixed precision {launched}, but training's options do not. Launch without it, and "
            f"set training.{launched} true if you want it."
        )


def _defaults(config: TrainConfig) -> dict[str, Any]:
    on_cpu = config.training.get("use_cpu") or not torch.accelerator.is_available()
    on_gpu = not on_cpu and torch.cuda.is_available()
    half = config.torch_dtype == torch.float32 and on_gpu
    free = config.dtype == "auto" and not {"bf16", "fp16"} & config.training.keys()
    fast = free and on_cpu and launched_processes() == 1 and is_bfloat16_fast()
    return {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "learning_rate": 1e-5,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": -1 if "num_train_epochs" in config.training else 3200,
        "seed": 0,
        "bf16": fast or (half and torch.cuda.is_bf16_supported()),
        "fp16": half and not torch.cuda.is_bf16_supported(),
        "logging_steps": 1,
        "log_level_replica": "error",  # only the first process reports
        "ddp_find_unused_parameters": False,  # untrained parameters are frozen: see `HybridModel.freeze_unused`
        "save_total_limit": 2,
        "report_to": ["tensorboard"] if is_tensorboard_available() else [],
        "disable_tqdm": True,  # replaced by our own progress line
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
    }


def _schedule(config: TrainConfig, values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Schedule evaluation and saving at the same steps, so that the best checkpoint is on disk."""
    every = max(20, math.ceil(0.025 * steps))
    evaluated = values.get("eval_steps") or values.get("save_steps") or every
    saved = values.get("save_strategy")
    strategy = values.get("eval_strategy") or (saved if saved == "epoch" else "steps")
    evaluates = bool(config.eval_data) and strategy != "no"
    return {
        "eval_strategy": strategy if evaluates else "no",
        "eval_steps": evaluated,
        "save_strategy": strategy if evaluates else "steps",
        "save_steps": evaluated,
        "load_best_model_at_end": evaluates,
        "metric_for_best_model": BEST_METRICS[config.best_by],
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": config.early_stopping > 0,  # restores the patience counter
    }
