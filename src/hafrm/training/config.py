"""Options of `hafrm train` and `hafrm pretrain`, with the paper's defaults (Table 5, Appendix A).

Where the paper is silent, the field's docstring says what was chosen. An option without effect is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hafrm.data import DataOptions, MemoryData, data_names_of
from hafrm.errors import ConfigError
from hafrm.losses import PLACKETT_LUCE
from hafrm.models.options import HeadInit, LayoutChoice, LoraOptions, Method
from hafrm.options import check, option
from hafrm.pretraining.shape import LlamaShape
from hafrm.training.loss import LossConfig

if not TYPE_CHECKING:  # jsonargparse runs the block of a plain `if TYPE_CHECKING`, which would load torch
    pass
else:
    import torch

BEST_METRICS = {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "chosen_reward": "rewards/chosen"}
"""Readings of the paper's "checkpoint that achieves the highest reward on the validation set" (Appendix A)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a reward model on preference pairs.

    Example:
        >>> TrainConfig(model="Qwen/Qwen3-0.6B", data=["train.jsonl"], out="runs/mine", training={"max_steps": 600})
    """

    model: str
    """The model to start from, a folder or a hub id: a causal language model, or any reward model on one (a run, its
    export, a sequence classifier, or a folder of a value head or of PEFT).
    """

    data: list[str] | Any
    """Training pairs: one or more files or names (`hafrm data list`). NAME#SPLIT selects a split other than train,
    NAME[:1000] the first rows, NAME*0.3 a random share. In Python also rows in memory; see `hafrm.load_pairs`.
    """

    out: str
    """The run's folder."""

    eval_data: list[str] | Any = field(default_factory=list)
    """Validation pairs. With them, the best checkpoint is kept instead of the last. NAME#SPLIT as in data."""

    method: Method = "haf"
    """`haf`, `baseline` (reward loss only), `dpo` (policy loss only), or `grm`: GRM with its SFT regularizer, that is
    .99 of the reward loss and .01 of `grm_sft`, here on a linear reward head.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraOptions = field(default_factory=LoraOptions)
    data_options: DataOptions = field(default_factory=DataOptions)

    training: dict[str, Any] = field(default_factory=dict)
    """Any field of transformers' TrainingArguments, such as `--training.learning_rate 3e-5`.

    Defaults that differ from transformers' (from the paper's Table 5): max_steps 3200, but at most 3 epochs,
    per_device_train_batch_size 16, learning_rate 1e-5 (for Phi-2; 3e-5 for Mistral) falling linearly without warm-up,
    optim adamw_torch with betas 0.9 and 0.999, adam_epsilon 1e-5, weight_decay 0, max_grad_norm 1, seed 0. eval_steps
    0.025 of the steps, but at least 20; save_steps as eval_steps, save_total_limit 2. On a GPU, products of float32
    weights are in bf16, or in fp16 where there is no bf16; the paper's are in fp16 (`--training.fp16 true`). Not in the
    paper: per_device_eval_batch_size 32, logging_steps 1, report_to tensorboard if it is installed.
    """

    chat_template: str | None = None
    """Chat template that replaces the model's own or a missing one, and is saved with the result: a file, or `default`
    for hafrm's plain template.
    """

    best_by: Literal["accuracy", "margin", "chosen_reward"] = "accuracy"
    """Metric on the validation pairs that selects the best checkpoint. The paper says "the highest reward"."""

    early_stopping: int = option(0, least=0)
    """Stop after this many evaluations without improvement; 0 never stops. The paper uses it with HAF (Appendix B)."""

    head_init: HeadInit = "auto"
    """Initialization of the reward head: `keep` keeps the model's own, `normal` draws weights of variance 1 / (hidden +
    1), `zero` is what the authors' code does, `fit` fits the head to the training pairs before the first step, with the
    backbone frozen (linear probing before fine-tuning). `auto`: `keep` if the model has a reward head, else `normal`.
    """

    disable_dropout: bool = True
    """Switch off the model's own dropout, so that policy and reference differ only by training (as in TRL; the paper
    does not say). Does not affect `lora.dropout`.
    """

    layout: LayoutChoice = "auto"
    """`auto` encodes a pair's prompt once and without padding if a probe shows that the model supports it; else
    `padded`.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights. `auto`: float32, with products in bfloat16 (`training.bf16`) on a GPU, and on a CPU that is
    measured to multiply much faster in it; for LoRA, bfloat16 on a GPU that supports it. Half precision is only for
    LoRA, and bfloat16 also for DeepSpeed, which keeps float32 copies; otherwise use training.bf16.
    """

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Such code can do anything that you can, so leave this off."""

    overwrite: bool = False
    """Delete the files that an earlier run wrote in the folder, and only those, and start over. Otherwise an
    interrupted run resumes where it stopped.
    """

    def __post_init__(self) -> None:
        for name in ("data", "eval_data"):
            object.__setattr__(self, name, data_names_of(getattr(self, name)))
        check(self)
        if not self.data:
            raise ConfigError("data: name at least one file or data set to train on.")
        if self.resolved_loss.reward_loss == PLACKETT_LUCE and self.data_options.batch_by != "prompt":
            raise ConfigError(
                "loss.reward_loss: plackett_luce compares all responses to a prompt: set data_options.batch_by prompt."
            )
        if self.resolved_loss.length_control and self.data_options.off_topic:
            raise ConfigError(
                "loss.length_control measures how strongly longer responses are preferred, which off-topic pairs would "
                "hide: leave out one of loss.length_control and data_options.off_topic."
            )
        if self.resolved_loss.reference == "adapter_off" and not self.lora.enabled:
            raise ConfigError("loss.reference: adapter_off needs LoRA: set lora.rank.")
        if self.dtype == "float16" and not self.lora.enabled:  # AdamW divides by squares that underflow to 0
            raise ConfigError("dtype: float16 weights can't be trained. Use float32, or set lora.rank.")
        object.__setattr__(self, "training", _checked(self.training))
        endless = [name for name in self.data if isinstance(name, MemoryData) and name.size is None]
        if endless:
            self._require_steps(endless[0].description)
        if self.early_stopping and self.training.get("eval_strategy") == "no":
            raise ConfigError("early_stopping needs evaluations: leave out training.eval_strategy.")
        for name in ("metric_for_best_model", "greater_is_better"):
            if name in self.training:
                raise ConfigError(f"training.{name} has no effect here: set best_by.")
        self._require_validation_pairs()
        if self.head_init != "auto" and not self.resolved_loss.reward_weight:
            raise ConfigError("head_init has no effect without a reward loss: leave it out.")

    def _require_steps(self, rows: str) -> None:
        """Raise if the run's length is in epochs, for rows whose number is unknown."""
        from hafrm.training.defaults import pairs_needed

        if pairs_needed(self, processes=1) is None:
            raise ConfigError(
                f"data: the number of rows of {rows} is unknown, so the run can't have epochs: set training.max_steps."
            )

    def _require_validation_pairs(self) -> None:
        """Raise if an option is set that has no effect without validation pairs."""
        if self.eval_data:
            return
        if self.early_stopping:
            raise ConfigError("early_stopping needs validation pairs: set eval_data.")
        if self.best_by != "accuracy":
            raise ConfigError("best_by needs validation pairs: set eval_data.")
        for name in ("eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end"):
            if self.training.get(name) not in (None, False, "no"):
                raise ConfigError(f"training.{name} needs validation pairs: set eval_data.")

    @property
    def resolved_loss(self) -> LossConfig:
        """Return the losses as the method fixes them."""
        return self.loss.for_method(self.method)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of the weights; see `dtype`."""
        import torch

        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        half = self.lora.enabled and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a small causal language model on text, or continue training one."""

    data: list[str]
    """Files of rows with `text` (a document) or `messages` (a conversation, of which the last turn is learned). Rows
    whose `split` is valid, validation, val, dev, test or eval are held out.
    """

    out: str
    """The model's folder."""

    model: str | None = None
    """A causal language model to continue training, with its tokenizer. Default: a new Llama of `shape`."""

    shape: LlamaShape = field(default_factory=LlamaShape)
    """Size of a new model."""

    tokenizer_texts: int = option(20_000, least=1)
    """New model: number of training texts that its tokenizer is trained on."""

    untie: bool = True
    """New model: give it a separate LM head, initially equal to its embeddings, like the paper's models."""

    context: int | None = option(None, least=1)
    """Continued model: tokens per block. Default: the model's maximum."""

    validation_blocks: int = option(64, least=1)
    """Maximum number of held-out blocks to evaluate."""

    training: dict[str, Any] = field(default_factory=dict)
    """Any field of transformers' TrainingArguments. Defaults that differ from transformers': one epoch, 16 blocks per
    step, learning_rate 2e-3 (5e-4 for a continued model) with warm-up over 5% of the steps and cosine decay to 5% of
    the rate, AdamW with betas 0.9 and 0.95, weight_decay 0.1, max_grad_norm 1, seed 0; evaluated and saved every tenth
    of the steps.
    """

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("data: name at least one file.")
        check(self)
        if self.model is None and self.context is not None:
            raise ConfigError("context has no effect on a new model: set shape.context.")
        if self.model is not None:
            default = PretrainConfig(data=self.data, out=self.out)
            for name in _OF_A_NEW_MODEL:
                if getattr(self, name) != getattr(default, name):
                    raise ConfigError(f"{name} has no effect when an existing model is trained further: leave it out.")
        object.__setattr__(self, "training", _checked(self.training))

    def asked(self) -> dict[str, Any]:
        """Return the options that determine the model: all but its folder and those that don't apply."""
        unread = {"out", "context"} if self.model is None else {"out", *_OF_A_NEW_MODEL}
        return {name: value for name, value in asdict(self).items() if name not in unread}


_OF_A_NEW_MODEL = ("shape", "tokenizer_texts", "untie")
"""Options that only apply to a new model."""


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Validate fields of TrainingArguments; transformers is imported only if there are any."""
    if not given:
        return {}
    from hafrm.training.arguments import checked_arguments

    return checked_arguments(given)
