"""Fields of TrainingArguments: those without effect are refused, the others reach the trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState, TrainingArguments

from hafrm.cli.train import parser
from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.models.options import LoraOptions
from hafrm.numerics import bfloat16_speedup
from hafrm.training.arguments import checked_arguments, total_steps
from hafrm.training.config import TrainConfig
from hafrm.training.defaults import training_arguments
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs


def config(*, evaluated: bool = True, **training: Any) -> TrainConfig:
    return TrainConfig(model="m", data=["d"], eval_data=["e"] if evaluated else [], out="o", training=training)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label_smoothing_factor", 0.1, r"set loss\.label_smoothing"),
        ("bf16_full_eval", True, "precision of training"),
        ("average_tokens_across_devices", False, "mean over the pairs"),
        ("remove_unused_columns", True, "no columns"),
        ("length_column_name", "tokens", "no columns"),
        ("include_for_metrics", ["loss"], "no predictions"),
        ("batch_eval_metrics", True, "no predictions"),
        ("use_liger_kernel", True, "work on stock models"),
        ("do_train", True, "set data"),
        ("resume_from_checkpoint", "o/checkpoint-3", "by itself"),
        ("include_num_input_tokens_seen", True, "can't count"),
        ("neftune_noise_alpha", 5, "embeddings"),
        ("auto_find_batch_size", True, "gradient_accumulation_steps"),
        ("dataloader_drop_last", True, "uncounted"),
        ("save_only_model", True, "other weights"),
        ("accelerator_config", {"dispatch_batches": True}, "by tokens"),
        ("enable_jit_checkpoint", True, "finished"),
        ("push_to_hub", True, "hf upload"),
        ("hub_token", "secret", "hf upload"),
        ("output_dir", None, "set `out`"),
        ("train_sampling_strategy", "group_by_length", "how long pairs are"),
        ("train_sampling_strategy", "batch_rebalance", "how long pairs are"),
        ("max_steps", 0, "at least 1, or -1"),
        ("max_steps", -5, "at least 1, or -1"),
        ("optim", "adam", "Did you mean adamw_torch"),
        ("lr_scheduler_type", "cosin", "Did you mean cosine"),
        ("save_strategy", "sometimes", "epoch"),
        ("gradient_accumulation_steps", 0, "at least 1"),
    ],
)
def test_fields_without_effect_are_refused_with_the_reason(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name}.*{message}"):
        config(**{name: value})


def test_values_that_do_nothing_pass() -> None:
    values = {"remove_unused_columns": False, "push_to_hub": False, "include_num_input_tokens_seen": "no"}
    values |= {"label_smoothing_factor": 0, "include_for_metrics": [], "train_sampling_strategy": "sequential"}
    assert checked_arguments(values) == values


@pytest.mark.parametrize(
    ("name", "value"),
    [("eval_strategy", "steps"), ("eval_steps", 5), ("eval_on_start", True), ("load_best_model_at_end", True)],
)
def test_evaluation_needs_validation_pairs(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="needs validation pairs"):
        config(evaluated=False, **{name: value})


def test_weights_in_float16_are_for_adapters() -> None:
    with pytest.raises(ConfigError, match=r"float16 weights can't be trained.*lora\.rank"):
        TrainConfig(model="m", data=["d"], out="o", dtype="float16")
    TrainConfig(model="m", data=["d"], out="o", dtype="float16", lora=LoraOptions(rank=2))


def arguments_of(**options: Any) -> TrainingArguments:
    return training_arguments(TrainConfig(model="m", data=["d"], out="o", **options), pairs=51_200)


def test_a_name_may_be_a_number() -> None:
    assert arguments_of(training={"run_name": 5}).run_name == "5"


def test_weights_in_bfloat16_are_for_adapters() -> None:
    """An AdamW update at 1e-5 is less than half the distance between adjacent bfloat16 weights."""
    with pytest.raises(ConfigError, match=r"hardly be trained.*training\.bf16 true.*lora\.rank"):
        arguments_of(dtype="bfloat16")
    assert arguments_of(dtype="bfloat16", lora=LoraOptions(rank=2)).bf16 is False


@pytest.mark.parametrize(
    ("launched", "training", "said"),
    [
        ("bf16", {}, "The launcher asks for mixed precision bf16"),
        ("fp16", {"bf16": True, "use_cpu": True}, "The launcher asks for mixed precision fp16"),
        ("bf16", {"bf16": True, "use_cpu": True}, ""),
        ("no", {"bf16": True, "use_cpu": True}, ""),
        ("no", {"fp16": True}, "training.fp16 has no effect on a CPU"),
    ],
)
def test_policy_and_reference_run_in_one_precision(
    launched: str, training: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference uses the options' precision; a launcher's would only affect the policy."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    if not said:
        assert arguments_of(training=training).bf16
        return
    with pytest.raises(ConfigError, match=said):
        arguments_of(training=training)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.nan),
        ("weight_decay", math.inf),
        ("num_train_epochs", 0),
        ("eval_steps", 0),
        ("save_steps", -1),
        ("seed", -1),
        ("seed", 10**20),
        ("data_seed", 2**32),
        ("dataloader_num_workers", -1),
    ],
)
def test_numbers_that_train_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name} must be"):
        config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_steps", "abc"),
        ("data_seed", "abc"),
        ("data_seed", 1.5),
        ("seed", True),
        ("bf16", 1),
        ("tf32", "yes"),
        ("learning_rate", "fast"),
        ("warmup_steps", 1.5),
        ("max_steps", 2.5),
        ("save_total_limit", "x"),
        ("optim_args", 3),
        ("report_to", 3),
        ("report_to", ["none", 3]),
        ("lr_scheduler_kwargs", "x"),
        ("lr_scheduler_type", 3),
        ("eval_strategy", True),
        ("debug", ["x"]),
    ],
)
def test_values_of_other_types_are_refused_before_anything_is_read(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name} must be"):
        config(**{name: value})


def test_a_value_of_another_type_is_refused_in_every_field() -> None:
    for name in TrainingArguments.__dataclass_fields__:
        with pytest.raises(ConfigError, match=rf"^training\.{name} "):
            config(**{name: object()})


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.3, 0.999])
@pytest.mark.parametrize("length", [{"max_steps": 1}, {"max_steps": 37}, {"num_train_epochs": 2}], ids=str)
def test_shares_of_the_steps_are_counted_as_transformers_counts_them(share: float, length: dict[str, float]) -> None:
    shares = dict.fromkeys(("warmup_steps", "logging_steps", "eval_steps", "save_steps"), share)
    args = training_arguments(config(**shares, **length), pairs=1000)
    steps = total_steps(args.to_dict(), 1000)
    theirs, state = TrainingArguments(output_dir="o", eval_strategy="steps", **shares), TrainerState()
    state.compute_steps(theirs, steps)
    assert args.warmup_steps == theirs.get_warmup_steps(steps)
    assert (args.logging_steps, args.eval_steps, args.save_steps) == (
        (state.logging_steps, state.eval_steps, state.save_steps)
    )


@pytest.mark.parametrize("steps", range(1, 60))
def test_every_saved_share_is_an_evaluated_one(steps: int) -> None:
    args = training_arguments(config(eval_steps=0.1, save_steps=0.3, max_steps=steps), pairs=1000)
    assert args.save_steps == 3 * args.eval_steps


def test_shares_and_numbers_of_steps_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match=r"training\.eval_steps is 0\.1 and training\.save_steps 100"):
        config(eval_steps=0.1, save_steps=100)


def test_a_logger_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training: tensorbord is not supported, only .*tensorboard"):
        arguments_of(training={"report_to": "tensorbord"})


def test_early_stopping_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match="needs evaluations"):
        TrainConfig(model="m", data=["d"], eval_data=["e"], out="o", early_stopping=1, training={"eval_strategy": "no"})


@pytest.mark.parametrize(
    ("training", "evaluated", "saved"),
    [
        ({"eval_steps": 50}, ("steps", 50), ("steps", 50)),
        ({"save_steps": 30}, ("steps", 30), ("steps", 30)),
        ({"eval_steps": 50, "save_steps": 100}, ("steps", 50), ("steps", 100)),
        ({"eval_strategy": "epoch"}, ("epoch", 80), ("epoch", 80)),
        ({"save_strategy": "epoch"}, ("epoch", 80), ("epoch", 80)),
        ({"eval_strategy": "no"}, ("no", 80), ("steps", 80)),
        ({"save_strategy": "best"}, ("steps", 80), ("best", 80)),
    ],
    ids=str,
)
def test_saving_goes_with_evaluating(training: dict, evaluated: tuple, saved: tuple) -> None:
    args = training_arguments(config(**training), pairs=51_200)
    assert (args.eval_strategy, args.eval_steps) == evaluated
    assert (args.save_strategy, args.save_steps) == saved
    assert args.load_best_model_at_end == (training.get("eval_strategy") != "no")


@pytest.mark.parametrize(
    "training",
    [
        {"max_steps": 7},
        {"max_steps": -1},
        {"num_train_epochs": 1.5},
        {"num_train_epochs": 2, "gradient_accumulation_steps": 3},
        {"max_steps": -1, "num_train_epochs": 1},
    ],
    ids=str,
)
def test_steps_are_counted_as_transformers_counts_them(training: dict, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(25)))
    fast = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": []} | training
    told = TrainConfig(
        model=str(base),
        data=[str(tmp_path / "train.jsonl")],
        out=str(tmp_path / "run"),
        method="baseline",
        data_options=DataOptions(max_length=128),
        training=fast,
    )
    assert train(told).steps == total_steps(training_arguments(told, pairs=25).to_dict(), 25)


def test_without_steps_there_are_transformers_three_epochs() -> None:
    args = training_arguments(config(max_steps=-1), pairs=16_000)
    assert args.num_train_epochs == 3
    assert args.eval_steps == 75  # 0.025 of 3000


def test_epochs_beside_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no effect with training\.max_steps"):
        config(max_steps=3200, num_train_epochs=1)


def test_the_help_states_the_defaults() -> None:
    """Every default that differs from transformers', with the values of a real run."""
    text = " ".join(parser().format_help().split())
    args = training_arguments(config(), pairs=51200)
    plain = TrainingArguments(output_dir="o")
    for name in ("max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "save_total_limit"):
        assert f"{name} {getattr(args, name)}" in text
        assert getattr(args, name) != getattr(plain, name)
    for written in ("learning_rate 1e-5", "adam_epsilon 1e-5", "0.9 and 0.999", "weight_decay 0,", "seed 0"):
        assert written in text
    assert (args.learning_rate, args.adam_epsilon, args.adam_beta1, args.adam_beta2) == (1e-5, 1e-5, 0.9, 0.999)
    assert (args.weight_decay, args.max_grad_norm, args.seed, args.optim) == (0, 1, 0, "adamw_torch")


@pytest.mark.parametrize(
    ("speedup", "options", "fast"),
    [
        (6.0, {}, True),
        (2.0, {}, True),
        (1.2, {}, False),
        (6.0, {"dtype": "float32"}, False),
        (6.0, {"training": {"bf16": False}}, False),
        (1.0, {"training": {"bf16": True}}, True),
    ],
)
def test_a_cpu_that_multiplies_faster_in_bfloat16_does_so(
    speedup: float, options: dict[str, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hafrm.numerics.bfloat16_speedup", lambda: speedup)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    told = TrainConfig(model="m", data=["d"], out="o", **options)
    assert training_arguments(told, pairs=8).bf16 == fast
    resumed = training_arguments(told, pairs=8, started={"bf16": True, "fp16": False}).bf16
    assert resumed == told.training.get("bf16", True)


def test_the_speedup_is_a_ratio_of_this_machine() -> None:
    assert 0.01 < bfloat16_speedup.__wrapped__() < 100
