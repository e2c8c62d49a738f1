"""What a training run is told: the options of `hafrm train`, with the paper's defaults (Table 5, Appendix A).

Where the paper is silent, the choice stands in the field's docstring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import is_tensorboard_available

from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.losses import OPTIONS_READ, POLICY_LOSSES, REWARD_LOSSES
from hafrm.models.hybrid import HeadInit
from hafrm.models.layout import LayoutChoice
from hafrm.models.lora import LoraOptions

__all__ = ["BEST_METRICS", "LossConfig", "Method", "TrainConfig", "training_arguments"]

Method = Literal["haf", "baseline", "dpo"]
"""`haf` trains both heads (Eq. 5), `baseline` the reward head alone (Eq. 2), `dpo` the policy head alone (Eq. 4)."""

BEST_METRICS = {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "chosen_reward": "rewards/chosen"}
"""Readings of the paper's "checkpoint that achieves the highest reward on the validation set" (Appendix A)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which losses train the shared backbone, and how they are weighed."""

    reward_weight: float = 1.0
    """Weight of the reward loss."""

    policy_ratio: float = 0.2
    """Weight of the policy loss: the paper's alpha (Eq. 5). 0 trains the reward head alone; may be negative."""

    reward_loss: Literal["bradley_terry", "hinge", "probit", "cauchy"] = "bradley_terry"
    """How reward differences are judged: Bradley-Terry is Eq. 2; probit and Cauchy are other priors."""

    policy_loss: Literal["dpo", "ipo", "slic", "simpo", "orpo", "kto_pair", "sft"] = "dpo"
    """How response log-probs are judged: DPO is Eq. 4."""

    beta: float = 0.1
    """Sharpness of the policy loss: the paper's tau (section 2.2)."""

    label_smoothing: float = 0.0
    """Assumed share of flipped labels in the reward loss."""

    policy_label_smoothing: float = 0.0
    """The same in the policy loss: conservative DPO."""

    target_margin: float = 0.5
    """SimPO's target margin; other losses ignore it."""

    centering: float = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around zero."""

    reference: Literal["auto", "precomputed", "adapter_off", "frozen_copy"] = "auto"
    """Where reference log-probs come from; `auto` computes them once before training and keeps them on disk."""

    def __post_init__(self) -> None:
        for name in ("reward_weight", "policy_ratio", "beta", "centering", "target_margin"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"loss.{name} must be a finite number, got {getattr(self, name)}")
        if self.reward_weight < 0:
            raise ConfigError(f"loss.reward_weight must be 0 or more, got {self.reward_weight}")
        if self.beta <= 0:
            raise ConfigError(f"loss.beta must be more than 0, got {self.beta}")
        for name in ("label_smoothing", "policy_label_smoothing"):
            if not 0 <= getattr(self, name) < 0.5:
                raise ConfigError(f"loss.{name} must be in [0, 0.5), got {getattr(self, name)}")
        if self.reward_weight == 0 and self.policy_ratio == 0:
            raise ConfigError("loss.reward_weight and loss.policy_ratio are both 0, so nothing would be trained.")
        if self.reward_loss not in REWARD_LOSSES or self.policy_loss not in POLICY_LOSSES:
            raise ConfigError(f"unknown loss {self.reward_loss!r} or {self.policy_loss!r}")
        if self.policy_label_smoothing and "label_smoothing" not in OPTIONS_READ[self.policy_loss]:
            raise ConfigError(f"loss.policy_label_smoothing has no effect on {self.policy_loss}: leave it out.")

    def for_method(self, method: Method) -> LossConfig:
        """The two weights as a method fixes them; `haf` leaves them as they are."""
        if method == "baseline":
            return replace(self, reward_weight=1.0, policy_ratio=0.0)
        if method == "dpo":
            return replace(self, reward_weight=0.0, policy_ratio=1.0)
        return self


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a reward model on preference pairs."""

    model: str
    """The causal language model to start from: a folder or a hub id."""

    data: list[str]
    """Training pairs: files or names (`hafrm data list`), several allowed."""

    out: str
    """The run's folder."""

    eval_data: list[str] = field(default_factory=list)
    """Validation pairs. With them, the best checkpoint is kept; without, the last."""

    method: Method = "haf"
    """`haf`, `baseline` (reward loss alone) or `dpo` (policy loss alone)."""

    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraOptions = field(default_factory=LoraOptions)
    data_options: DataOptions = field(default_factory=DataOptions)

    training: dict[str, Any] = field(default_factory=dict)
    """Any field of transformers' TrainingArguments, such as `--training.learning_rate 3e-5`."""

    best_by: Literal["accuracy", "margin", "chosen_reward"] = "accuracy"
    """What the best checkpoint is best at on the validation pairs. The paper says "the highest reward"."""

    early_stopping: int = 0
    """Stop after so many evaluations without a better one; 0 never stops. Appendix B calls for it with HAF."""

    head_init: HeadInit = "normal"
    """How the reward head starts: `normal`, variance 1 / (hidden + 1), or `zero`, as the authors' code does."""

    layout: LayoutChoice = "auto"
    """`auto` encodes a pair's prompt once and pads nothing, where a probe shows that the model can; else `padded`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The weights' dtype. `auto`: float32; for LoRA on a GPU bfloat16."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Such code can do anything that you can: leave it off."""

    overwrite: bool = False
    """Delete what the run's folder holds and start anew. Otherwise an interrupted run goes on where it stopped."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("data: name at least one file or data set to train on.")
        if self.early_stopping < 0:
            raise ConfigError(f"early_stopping must be 0 or more, got {self.early_stopping}")
        if self.early_stopping and not self.eval_data:
            raise ConfigError("early_stopping needs validation pairs: set eval_data.")
        if self.resolved_loss.reference == "adapter_off" and not self.lora.enabled:
            raise ConfigError("loss.reference: adapter_off needs LoRA: set lora.rank.")
        known = TrainingArguments.__dataclass_fields__
        for name in self.training:
            if name not in known:
                near = get_close_matches(name, known, n=3)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise ConfigError(f"training.{name} is no field of transformers' TrainingArguments.{hint}")
        if "output_dir" in self.training:
            raise ConfigError("training.output_dir is the run's folder: set `out` instead.")
        read = {name: _training_value(name, value) for name, value in self.training.items()}
        object.__setattr__(self, "training", read)

    @property
    def resolved_loss(self) -> LossConfig:
        """The losses with the method's two weights."""
        return self.loss.for_method(self.method)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The weights' dtype; see `dtype`."""
        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        return torch.bfloat16 if self.lora.enabled and torch.cuda.is_available() else torch.float32


def training_arguments(config: TrainConfig, *, pairs: int) -> TrainingArguments:
    """The trainer's arguments: the paper's Table 5, then what the user set.

    The paper evaluates every 0.025 of the steps; here at most every 20 steps, so that short runs are not all
    evaluation. The learning rate is the paper's for Phi-2 (1e-5; its Mistral runs use 3e-5). The paper names no
    schedule: the rate falls linearly, transformers' default.

    Args:
        config: The run.
        pairs: How many training pairs there are, for the number of steps that whole epochs make.

    Raises:
        ConfigError: transformers refuses the arguments.
    """
    on_gpu = torch.cuda.is_available()
    half = config.torch_dtype == torch.float32 and on_gpu
    values: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "learning_rate": 1e-5,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": 3200,
        "seed": 0,
        "bf16": half and torch.cuda.is_bf16_supported(),
        "fp16": half and not torch.cuda.is_bf16_supported(),
        "logging_steps": 1,
        "save_total_limit": 2,
        "report_to": ["tensorboard"] if is_tensorboard_available() else [],
        "disable_tqdm": True,  # our own progress line
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
    }
    if "num_train_epochs" in config.training:
        values["max_steps"] = -1
    values |= config.training
    every = max(20, math.ceil(0.025 * _total_steps(values, pairs)))
    evaluates = bool(config.eval_data)
    schedule = {
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "load_best_model_at_end": evaluates,
        "metric_for_best_model": BEST_METRICS[config.best_by],
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": config.early_stopping > 0,  # the count of its patience
    }
    try:
        arguments = TrainingArguments(output_dir=config.out, **(schedule | values))
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error
    if arguments.n_gpu > 1:  # one process drives one device; `torchrun` or `accelerate launch` starts several
        arguments._n_gpu = 1
    return arguments


def _training_value(name: str, value: Any) -> Any:
    """A value for a field of TrainingArguments, of the field's type where its default tells one.

    Raises:
        ConfigError: it is of another type, or no batch size.
    """
    if name.endswith("_strategy") and value is False:  # YAML reads a bare `no` so
        return "no"
    default = TrainingArguments.__dataclass_fields__[name].default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    wants = "a whole number" if type(default) is int else "a number" if type(default) is float else ""
    if wants and not (number and (type(default) is float or isinstance(value, int))):
        raise ConfigError(f"training.{name} must be {wants}, got {value!r}")
    if name.endswith("batch_size") and number and value < 1:
        raise ConfigError(f"training.{name} must be at least 1, got {value}")
    return value


def _total_steps(values: dict[str, Any], pairs: int) -> int:
    """Optimizer steps of the run on one device."""
    if values["max_steps"] > 0:
        return int(values["max_steps"])
    batch: int = values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1)
    epochs: float = values.get("num_train_epochs", 1)
    return math.ceil(pairs / batch * epochs)
