"""Validate the fields of transformers' TrainingArguments that a run sets, and count its optimizer steps.

A field that has no effect here, or would break a run, is refused with the reason: an option that is silently accepted
looks as if it worked. The list was checked against the source of transformers 5.23.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

from transformers import TrainingArguments

from hafrm.errors import ConfigError
from hafrm.options import Rule, choices, problem

FIELDS = TrainingArguments.__dataclass_fields__

_REFUSED: dict[tuple[str, ...], str] = {
    ("output_dir",): "is the run's folder: set `out` instead",
    ("label_smoothing_factor",): "has no effect here: set loss.label_smoothing or loss.policy_label_smoothing",
    ("bf16_full_eval", "fp16_full_eval"): "has no effect here: evaluation runs in the precision of training",
    ("average_tokens_across_devices",): "has no effect here: the loss is a mean over the pairs of all processes",
    ("remove_unused_columns", "label_names", "length_column_name"): "has no effect here: pairs have no columns",
    (
        "include_for_metrics",
        "batch_eval_metrics",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
    ): "has no effect here: evaluation keeps each pair's metrics, and no predictions",
    ("use_liger_kernel", "liger_kernel_config"): "has no effect here: Liger's kernels only work on stock models",
    ("do_train", "do_eval", "do_predict"): "has no effect here: set data and eval_data",
    ("resume_from_checkpoint",): "has no effect here: the same command resumes from the last checkpoint by itself",
    ("include_num_input_tokens_seen",): "can't count the tokens of batches of pairs",
    ("neftune_noise_alpha",): "can't find the embeddings of a model with two heads",
    ("auto_find_batch_size",): (
        "would change the batch without the manifest recording it: set training.per_device_train_batch_size and "
        "training.gradient_accumulation_steps"
    ),
    ("dataloader_drop_last",): "would leave out validation pairs uncounted",
    ("save_only_model", "ignore_data_skip"): "would let a resumed run end with other weights than an uninterrupted one",
    ("deepspeed",): (
        "would load weights in parts, before hafrm can probe the model: start with `accelerate launch --config_file "
        "configs/distributed/deepspeed.yaml`"
    ),
    ("parallelism_config",): "would split models and sequences in ways that batches of pairs do not support",
    ("accelerator_config",): "would split batches its own way: each process takes a share of a step's pairs by tokens",
    ("save_on_each_node",): "has no effect here: all nodes must see the run's folder",
    ("enable_jit_checkpoint",): "would mark a stopped run as finished, so it would not resume",
    (
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    ): "would upload checkpoints but not the result: upload the folder afterwards with `hf upload`",
}
"""Fields that can't be set, grouped by the reason. Setting one to its default is harmless; see also `_HARMLESS`."""

_HARMLESS: dict[str, tuple[Any, ...]] = {
    "remove_unused_columns": (False,),
    "include_num_input_tokens_seen": (False, "no"),
    "include_for_metrics": (None, []),
}
"""Further harmless values, for fields where the default is not the only one."""

FREE_ON_RESUME = frozenset(
    """
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id logging_strategy
    logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica log_on_each_node disable_tqdm
    save_total_limit dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context ddp_timeout skip_memory_metrics
    torch_empty_cache_steps activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs
    """.split()
)
"""Fields that may change when a run is resumed: they affect logging or saving, but no result."""

_SHARES = ("warmup_steps", "logging_steps", "eval_steps", "save_steps")
"""Numbers of steps that may also be shares of the run's steps, below 1."""

_LIMITS: Mapping[str, Rule] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), Rule(least=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Rule(least=0, below=1)),
    **dict.fromkeys(("seed", "data_seed"), Rule(least=0, below=2**32)),  # as numpy's seeds are
    **dict.fromkeys(("eval_steps", "save_steps", "num_train_epochs"), Rule(above=0)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Rule(least=1)),
    "gradient_accumulation_steps": Rule(least=1),
    "dataloader_num_workers": Rule(least=0),
}


@cache
def _kinds() -> Mapping[str, Any]:
    """Return the types of the fields. Words and mappings could also be texts there, but are only checked later."""
    found = get_type_hints(TrainingArguments)
    for name, kind in found.items():
        if words := [each for each in choices(kind) if isinstance(each, type) and issubclass(each, Enum)]:
            found[name] = words[0]
        elif name.endswith("_kwargs"):
            found[name] = dict | None
    found["fsdp"] = bool | str | list[str] | None  # declared as a text, documented as `true`
    return found


def checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the TrainingArguments fields that a user set.

    Raises:
        ConfigError: a field is unknown, has no effect or would break the run, or its value is of another type.
    """
    read = {name: _as_given(name, value) for name, value in given.items()}
    for name, value in read.items():
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"training.{name} is not a field of transformers' TrainingArguments.{hint}")
        _refuse_without_effect(name, value)
        if wrong := problem(value, _kinds()[name], _LIMITS.get(name)):
            raise ConfigError(f"training.{name} {wrong}")
    _check_steps(read)
    if read.get("train_sampling_strategy", "random") not in ("random", "sequential"):
        raise ConfigError(
            f"training.train_sampling_strategy: {read['train_sampling_strategy']} can't tell how long pairs are. Use "
            "`random` or `sequential`; packed batches have no padding that sorting could save."
        )
    return read


def _as_given(name: str, value: Any) -> Any:
    """Return a value as it was written: YAML makes `no` false, and a name such as 5 a number."""
    if name.endswith("_strategy") and value is False:
        return "no"
    return str(value) if name in ("run_name", "project") and type(value) in (int, float) else value


def _refuse_without_effect(name: str, value: Any) -> None:
    for names, reason in _REFUSED.items():
        if name in names and (name == "output_dir" or value not in _HARMLESS.get(name, (FIELDS[name].default, None))):
            raise ConfigError(f"training.{name} {reason}.")


def _check_steps(given: Mapping[str, Any]) -> None:
    """Raise if the numbers of steps don't go together."""
    steps = given.get("max_steps", -1)
    if steps < 1 and steps != -1:
        raise ConfigError(f"training.max_steps must be at least 1, or -1 for training.num_train_epochs; got {steps}")
    if "num_train_epochs" in given and steps > 0:
        raise ConfigError(
            "training.num_train_epochs has no effect with training.max_steps: leave one out, or set "
            "training.max_steps to -1."
        )
    for name in _SHARES:
        if (value := given.get(name) or 0) > 1 and value != int(value):
            raise ConfigError(f"training.{name} must be a whole number, or a share of the steps below 1, got {value}")
    evaluated, saved = given.get("eval_steps"), given.get("save_steps")
    if evaluated and saved and (evaluated < 1) != (saved < 1):
        raise ConfigError(
            f"training.eval_steps is {evaluated} and training.save_steps {saved}: give both as numbers of steps, or "
            "both as shares of the run's steps, below 1."
        )


def in_steps(values: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Return fields with shares of a run's `total` steps as numbers of steps, as transformers counts them.

    Saving stays a multiple of evaluating if it is one in shares, so that the best checkpoint is on disk.
    """
    shares = {name: share for name in _SHARES if 0 < (share := values.get(name) or 0) < 1}
    found = {name: math.ceil(share * total) for name, share in shares.items()}
    if {"eval_steps", "save_steps"} <= shares.keys():
        times = shares["save_steps"] / shares["eval_steps"]
        if math.isclose(times, round(times)):
            found["save_steps"] = found["eval_steps"] * round(times)
    return {**values, **found}


def launched_processes() -> int:
    """Return the number of processes that `torchrun` or `accelerate launch` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pairs_per_step(values: Mapping[str, Any], processes: int) -> int:
    """Return the pairs of one optimizer step by fields of TrainingArguments, of which missing ones count as 1."""
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return math.prod(int(values.get(name, 1)) for name in sizes) * processes


def total_steps(values: Mapping[str, Any], pairs: int) -> int:
    """Return a run's optimizer steps, as transformers counts them; missing fields have transformers' defaults."""
    steps, epochs, accumulated = (
        values.get(name, FIELDS[name].default)
        for name in ("max_steps", "num_train_epochs", "gradient_accumulation_steps")
    )
    if steps > 0:
        return int(steps)
    batches = math.ceil(pairs / (values["per_device_train_batch_size"] * launched_processes()))
    whole: int = math.ceil(epochs * max(1, math.ceil(batches / accumulated)))
    return whole
