"""A run from its options to its folder: counts, resuming, refusals."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hafrm.data import DataOptions
from hafrm.errors import ConfigError, ModelError, NonFiniteLossError
from hafrm.models.checkpoints import load_run
from hafrm.models.options import LoraOptions
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RunInfo
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from hafrm.training.arguments import total_steps
from hafrm.training.config import PretrainConfig, TrainConfig
from hafrm.training.defaults import training_arguments
from hafrm.training.loss import LossConfig
from hafrm.training.manifest import git_revision
from hafrm.training.pretrain import pretrain
from hafrm.training.resuming import last_checkpoint
from hafrm.training.run import TrainResult, train
from tests.tiny import pair, save_tiny, some_pairs, tiny_tokenizer

FAST = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, "report_to": []}


CONFIG = TrainConfig(
    model="base",
    data=["train.jsonl"],
    eval_data=["valid.jsonl"],
    out="run",
    data_options=DataOptions(max_length=128),
    training=FAST,
)
"""Paths are relative, so that tests can copy each other's folders."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the run reads."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "base")
    lines = [json.dumps(pair.as_row()) for pair in some_pairs(24)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "valid.jsonl").write_text("\n".join(lines[:8]))
    return folder


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The finished run, which tests only read."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAFRM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        return replace(train(CONFIG), folder=folder / "run")


@pytest.fixture
def config(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A run that has not started."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return CONFIG


@pytest.fixture
def finished(config: TrainConfig, trained: TrainResult) -> TrainConfig:
    """A finished copy of the run."""
    shutil.copytree(trained.folder, config.out)
    return config


def stopped(config: TrainConfig, **changes: object) -> TrainConfig:
    """Turn a finished run into an interrupted one; apply changes to its manifest."""
    path = Path(config.out) / "manifest.json"
    manifest = json.loads(path.read_text()) | {"status": "running"}
    manifest["effective"] |= changes
    path.write_text(json.dumps(manifest))
    return config


def test_a_run_leaves_its_account(trained: TrainResult) -> None:
    folder = trained.folder
    assert trained.steps == 4
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["config"]["loss"]["policy_ratio"] == 0.2
    assert manifest["data"]["train"]["pairs"] == 24
    assert manifest["data"]["train"]["sources"][0]["rows"] == 24
    assert manifest["eval_metrics"]["eval_rewards/accuracies"] == trained.metrics["eval_rewards/accuracies"]
    info = RunInfo.load(folder)
    assert (info.method, info.reward_weight, info.policy_ratio) == ("haf", 1.0, 0.2)
    assert info.combined_weight is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    for name in ("loss", "loss/reward", "loss/policy", "rewards/accuracies", "rewards/margins", "grad_norm"):
        assert name in lines[0]


@pytest.mark.parametrize(("method", "weights"), [("baseline", (1.0, 0.0)), ("dpo", (0.0, 1.0))])
def test_a_method_is_two_weights(method: str, weights: tuple[float, float], config: TrainConfig) -> None:
    train(replace(config, method=method))
    info = RunInfo.load(Path(config.out))
    assert (info.reward_weight, info.policy_ratio) == weights
    assert info.combined_weight is None
    assert info.default_head == ("reward" if method == "baseline" else "policy")
    assert bool(info.base_digest) == (method == "dpo")  # the digest identifies the reference
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (config.model, config.out))
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"]) == (method == "baseline")


def test_lora_runs_keep_small_checkpoints_and_a_whole_result(config: TrainConfig) -> None:
    train(replace(config, lora=LoraOptions(rank=4)))
    folder = Path(config.out)
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "model.safetensors").exists()
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    assert not list(checkpoint.glob("model*"))


def test_overlong_pairs_are_counted(config: TrainConfig) -> None:
    train(replace(config, data_options=DataOptions(max_length=45)))
    account = json.loads((Path(config.out) / "manifest.json").read_text())["data"]["train"]
    assert 0 < account["pairs"] < 24
    assert account["pairs"] + sum(account["dropped_in_encoding"].values()) == 24


def test_a_finished_run_is_not_overwritten_unasked(finished: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="finished run"):
        train(finished)
    train(replace(finished, overwrite=True))


def test_foreign_folders_are_left_alone(config: TrainConfig) -> None:
    Path(config.out).mkdir()
    keep = Path(config.out) / "thesis.tex"
    keep.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no run of hafrm"):
            train(replace(config, overwrite=overwrite))
    assert keep.read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": LossConfig(beta=0.5)}, r"loss\.beta \(was 0\.1, now 0\.5\)"),
        ({"training": FAST | {"learning_rate": 1e-4}}, r"training\.learning_rate"),
    ],
    ids=["loss", "training"],
)
def test_resuming_with_other_options_is_refused(change: dict, message: str, finished: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(stopped(finished), **change))


@pytest.mark.parametrize(
    ("now", "changed"), [({}, None), ({"heads": 3}, r"heads \(was 1, now 3\)")], ids=["same", "set"]
)
def test_a_run_of_a_version_without_an_option_has_its_default(
    now: dict, changed: str | None, finished: TrainConfig
) -> None:
    config = stopped(finished)
    path = Path(config.out) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["loss"]["heads"], manifest["config"]["lora"]
    path.write_text(json.dumps(manifest))
    if changed is None:
        assert train(config).steps
    else:
        with pytest.raises(ConfigError, match=changed):
            train(replace(config, loss=replace(config.loss, **now)))


def test_a_limit_over_the_models_positions_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="256 positions"):
        train(replace(config, data_options=DataOptions(max_length=512)))


def test_early_stopping_stops(config: TrainConfig) -> None:
    still = {"max_steps": 12, "learning_rate": 0.0, "eval_steps": 1, "save_steps": 1}
    result = train(replace(config, early_stopping=2, training=config.training | still))
    assert result.steps == 3  # the first evaluation is the best; two more bring nothing better


def test_the_best_checkpoint_is_kept(config: TrainConfig) -> None:
    """A huge last step ruins the model; the saved checkpoint is from before."""
    steps = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "lr_scheduler_type": "constant"}
    result = train(replace(config, best_by="margin", training=config.training | steps))
    manifest = json.loads((Path(config.out) / "manifest.json").read_text())
    logged = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in logged if "eval_loss" in line), key=lambda line: line["eval_rewards/margins"])
    assert result.metrics["eval_rewards/margins"] == pytest.approx(best["eval_rewards/margins"], rel=1e-6)
    assert manifest["best_step"] in (2, 4, 6)


def test_the_last_validation_names_the_checkpoint_that_is_kept(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of 0 no later validation beats the first, also in a run that was killed at its end."""
    steps = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "learning_rate": 0.0}
    config = replace(config, training=config.training | steps)
    for ended in (False, True):
        train(stopped(config) if ended else config)
        lines = [line for line in capsys.readouterr().err.splitlines() if " validation: " in line]
        said = [line.split(" validation: ")[0] for line in lines]
        assert said == [*([] if ended else [f"step {step}/6" for step in (2, 4, 6)]), "best checkpoint (step 2)"]
        assert json.loads((Path(config.out) / "manifest.json").read_text())["best_step"] == 2


def test_evaluating_at_the_start_and_rows_in_order(config: TrainConfig) -> None:
    options = {"eval_on_start": True, "train_sampling_strategy": "sequential"}
    train(replace(config, training=config.training | options))
    lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4]


@pytest.mark.parametrize("content", ['{"global_step": 9', "[9]", "{}"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(content: str, tmp_path: Path) -> None:
    for step, state in ((4, '{"global_step": 4}'), (9, content)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (tmp_path / f"checkpoint-{step}" / name).touch()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize(
    ("training", "pairs", "steps"),
    [
        ({}, 160, 30),
        ({}, 161, 33),
        ({}, 17_066, 3200),
        ({}, 60_000, 3200),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 160, 60),
        ({"max_steps": 3200}, 160, 3200),
        ({"num_train_epochs": 5}, 160, 50),
        ({"num_train_epochs": 1}, 160_000, 10_000),
    ],
)
def test_a_run_has_by_default_three_epochs_at_most(training: dict[str, Any], pairs: int, steps: int) -> None:
    config = TrainConfig(model="m", data=["d"], out="o", training=training)
    assert total_steps(training_arguments(config, pairs=pairs).to_dict(), pairs) == steps


def test_paper_defaults() -> None:
    """Table 5 and Appendix A."""
    args = training_arguments(TrainConfig(model="m", data=["d"], eval_data=["e"], out="o"), pairs=51200)
    assert (args.max_steps, args.per_device_train_batch_size, args.seed) == (3200, 16, 0)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-5)
    assert (args.weight_decay, args.max_grad_norm, args.learning_rate) == (0.0, 1.0, 1e-5)
    assert args.eval_steps == args.save_steps == 80  # 0.025 of 3200
    assert args.metric_for_best_model == "rewards/accuracies"
    assert LossConfig().policy_ratio == 0.2
    assert LossConfig().beta == 0.1
    assert LoraOptions().alpha == 16
    assert DataOptions().max_length == 512


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"max_step": 3}}, "Did you mean max_steps"),
        ({"training": {"output_dir": "x"}}, "set `out`"),
        ({"data": []}, "name at least one"),
        ({"early_stopping": 2}, "needs validation pairs"),
        ({"loss": LossConfig(reference="adapter_off")}, "needs LoRA"),
        ({"best_by": "margin"}, "best_by needs validation pairs"),
        ({"training": {"metric_for_best_model": "loss"}}, r"metric_for_best_model has no effect here: set best_by"),
        ({"method": "dpo", "head_init": "zero"}, "head_init has no effect without a reward loss"),
        ({"method": "HAF"}, "method must be haf, baseline, dpo or grm, got 'HAF'"),
        ({"dtype": "fp32"}, "dtype must be auto, float32"),
        ({"head_init": "foo"}, "head_init must be auto, keep"),
        ({"disable_dropout": "no"}, "disable_dropout must be true or false, got 'no'"),
        ({"early_stopping": True}, "early_stopping must be a whole number, got True"),
        ({"loss": {"beta": 0.2}}, "loss must be LossConfig"),
    ],
)
def test_impossible_options_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**({"model": "m", "data": ["d"], "out": "o"} | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy_ratio": float("nan")}, "finite"),
        ({"centering": -0.1}, r"loss\.centering must be at least 0"),
        ({"consistency_weight": -0.1}, r"loss\.consistency_weight must be at least 0"),
        ({"beta": 0.0}, r"loss\.beta must be above 0"),
        ({"policy_loss": "simpo", "target_margin": -0.5}, r"loss\.target_margin must be at least 0"),
        ({"reward_weight": 0.0, "policy_ratio": 0.0}, "nothing would be trained"),
        ({"label_smoothing": 0.7}, "at least 0 and below 0.5"),
        ({"reward_loss": "nope"}, r"loss\.reward_loss"),
        ({"reference": "adaptor_off"}, r"loss\.reference must be auto, .* Did you mean adapter_off"),
        ({"heads": 4, "heads_from": "Laplace"}, r"loss\.heads_from must be bootstrap or laplace"),
        ({"heads": 2.5}, r"loss\.heads must be a whole number, got 2\.5"),
        ({"beta": "0.1"}, r"loss\.beta must be a number, got '0\.1'"),
        ({"policy_loss": "ipo", "policy_label_smoothing": 0.1}, "no effect on ipo"),
        ({"target_margin": 0.7}, r"loss\.target_margin has no effect on dpo"),
        ({"policy_loss": "orpo", "reference": "frozen_copy"}, "orpo, which has no reference"),
        ({"policy_ratio": 0.0, "beta": 0.3}, r"loss\.beta has no effect without a policy loss"),
    ],
)
def test_impossible_losses_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**values)


@pytest.mark.parametrize(
    ("method", "loss", "message"),
    [
        ("dpo", {"policy_ratio": 0.5}, r"policy_ratio is 0\.5, but --method dpo fixes it at 1"),
        ("baseline", {"reward_weight": 2.0}, r"reward_weight is 2\.0, but --method baseline fixes it at 1"),
        ("baseline", {"policy_ratio": 0.1}, "fixes it at 0"),
        ("grm", {"policy_ratio": 0.2, "policy_loss": "simpo"}, "policy_loss is simpo, but --method grm fixes it"),
        ("dpo", {"reward_loss": "hinge"}, "reward_loss has no effect without a reward loss"),
        ("dpo", {"centering": 0.1}, "centering has no effect"),
        ("dpo", {"label_smoothing": 0.1}, "label_smoothing has no effect"),
        ("dpo", {"consistency_weight": 0.1}, "consistency_weight has no effect without a reward loss"),
        ("baseline", {"consistency_weight": 0.1}, "consistency_weight has no effect without a policy loss"),
        ("baseline", {"beta": 0.3}, "beta has no effect without a policy loss"),
        ("baseline", {"policy_loss": "ipo"}, "policy_loss has no effect"),
        ("baseline", {"reference": "frozen_copy"}, "reference has no effect"),
    ],
)
def test_loss_options_that_a_method_does_not_read_are_refused(method: str, loss: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(model="m", data=["d"], out="o", method=method, loss=LossConfig(**loss))


def test_weights_that_a_method_fixes_may_be_spelt_out() -> None:
    for method, loss in (("dpo", LossConfig(policy_ratio=1.0)), ("baseline", LossConfig(policy_ratio=0.0))):
        config = TrainConfig(model="m", data=["d"], out="o", method=method, loss=loss)
        assert config.resolved_loss == LossConfig().for_method(method)
    grm = LossConfig().for_method("grm")
    assert (grm.reward_weight, grm.policy_ratio, grm.policy_loss, grm.beta) == (0.99, 0.01, "grm_sft", 0.1)


def test_overwriting_deletes_nothing_before_the_new_run_is_sound(finished: TrainConfig, tmp_path: Path) -> None:
    weights = (Path(finished.out) / "model.safetensors").read_bytes()
    broken = save_tiny(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    again = replace(finished, overwrite=True)
    with pytest.raises(ModelError):
        train(replace(again, model=str(broken)))
    with pytest.raises(ConfigError, match="256 positions"):
        train(replace(again, data_options=DataOptions(max_length=512)))
    assert (Path(finished.out) / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("name", ["model", "data", "eval_data", "linked", "split"])
def test_a_run_does_not_read_from_the_folder_that_it_may_delete(
    name: str, finished: TrainConfig, tmp_path: Path
) -> None:
    out = Path(finished.out)
    shutil.copy(finished.data[0], out / "train.jsonl")
    (tmp_path / "link").symlink_to(out / "train.jsonl")
    changes = {
        "model": {"model": str(out)},
        "data": {"data": [*finished.data, str(out / "train.jsonl")]},
        "eval_data": {"eval_data": [str(out / ".." / out.name / "train.jsonl")]},
        "linked": {"data": [str(tmp_path / "link")]},
        "split": {"data": [f"{out}#train"]},
    }[name]
    with pytest.raises(ConfigError, match="is in the run's own folder"):
        train(replace(finished, overwrite=True, **changes))
    assert (out / "model.safetensors").exists()
    assert (out / "train.jsonl").exists()


@pytest.mark.parametrize("inside", ["new", "checkpoint-2/new", "checkpoint-2/a/b"])
def test_no_run_begins_in_a_models_folder(inside: str, finished: TrainConfig, tmp_path: Path) -> None:
    out = Path(finished.out) / inside
    (tmp_path / "link").symlink_to(finished.out)
    for place in (out, tmp_path / "link" / inside):
        with pytest.raises(ConfigError, match="inside a model's folder"):
            train(replace(finished, out=str(place)))
    assert not out.exists()
    with pytest.raises(ConfigError, match="inside a model's folder"):
        pretrain(PretrainConfig(data=finished.data, out=str(out)))


def test_resuming_on_changed_data_is_refused(finished: TrainConfig) -> None:
    config = stopped(finished)
    path = Path(config.eval_data[0])
    path.write_text(path.read_text().replace("yes", "yes!", 1))
    with pytest.raises(ConfigError, match=r"other data: .*valid\.jsonl \(was 8 pairs, sha256 .*, now 8 pairs"):
        train(config)
    train(replace(config, overwrite=True))


def test_resuming_with_another_tokenizer_is_refused(finished: TrainConfig) -> None:
    """The rows are the same, but fewer fit the limit."""
    config = stopped(finished)
    wordy = DEFAULT_CHAT_TEMPLATE.replace("message['content']", "message['content'] * 4")
    assert wordy != DEFAULT_CHAT_TEMPLATE
    tiny_tokenizer(template=wordy).save_pretrained(config.model)
    with pytest.raises(ConfigError, match=r"pairs of train data within the limit.* \(was 24, now \d+\)"):
        train(config)


@pytest.mark.parametrize(
    ("name", "was"),
    [("dtype", "bfloat16"), ("sharding", "fsdp2"), ("model_revision", "abc"), ("weights", "abc")],
)
def test_resuming_in_other_settings_is_refused(name: str, was: object, finished: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=rf"other settings: {name} \(was {was}, now"):
        train(stopped(finished, **{name: was}))


def test_a_resumed_run_keeps_its_precision(finished: TrainConfig) -> None:
    """Its default may differ on another machine."""
    train(stopped(finished, bf16=True))
    assert json.loads((Path(finished.out) / "manifest.json").read_text())["effective"]["bf16"] is True


def test_resuming_adapters_on_other_weights_is_refused(config: TrainConfig) -> None:
    """This holds even without a reference: the adapters were trained on weights that no longer exist."""
    train(replace(config, method="baseline", lora=LoraOptions(rank=2)))
    config = stopped(replace(config, method="baseline", lora=LoraOptions(rank=2)))
    checkpoint = Path(config.out) / "checkpoint-4"
    load_run(checkpoint)
    shutil.rmtree(config.model)
    save_tiny(Path(config.model), seed=5)
    with pytest.raises(ConfigError, match=r"other settings: weights \(was [0-9a-f]{32}, now [0-9a-f]{32}\)"):
        train(config)
    with pytest.raises(ModelError, match="no longer contains"):
        load_run(checkpoint)


def test_a_run_that_an_older_hafrm_began_goes_on(finished: TrainConfig) -> None:
    """The manifest did not record the initial weights."""
    config = stopped(finished)
    path = Path(config.out) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["effective"]["weights"]
    path.write_text(json.dumps(manifest))
    assert train(config).steps == 4


def test_a_run_that_goes_on_keeps_the_account_of_its_beginning(finished: TrainConfig) -> None:
    config = stopped(finished)
    path = Path(config.out) / "manifest.json"
    beginning = {"started": "2020-01-01T00:00:00+00:00", "git_revision": "old", "versions": {"torch": "1.0"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | beginning))
    train(config)
    train(stopped(config))
    manifest = json.loads(path.read_text())
    assert beginning.items() <= manifest.items()
    assert [each["versions"]["torch"] for each in manifest["resumed"]] == [torch.__version__] * 2


def test_a_loss_that_joins_pairs_keeps_its_parts(config: TrainConfig) -> None:
    """kto_pair's means are per part, so another token budget would change the loss."""
    config = replace(config, loss=LossConfig(policy_loss="kto_pair"))
    train(config)
    smaller = replace(config, data_options=replace(config.data_options, tokens_per_batch=64))
    with pytest.raises(ConfigError, match=r"other settings: part \(was \[1024, 1\], now \[64, 1\]\)"):
        train(stopped(smaller))


def test_processes_and_accumulation_may_change_but_not_the_pairs_of_a_step(finished: TrainConfig) -> None:
    config = stopped(finished, world_size=2, per_device_train_batch_size=2)
    halves = config.training | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert train(replace(config, training=halves)).steps == 4
    with pytest.raises(ConfigError, match=r"other settings: pairs of a step \(was 16, now 4\)"):
        train(stopped(config, world_size=4, per_device_train_batch_size=4, gradient_accumulation_steps=1))


def test_zero_keeps_its_optimizer_process_by_process(finished: TrainConfig) -> None:
    config = stopped(finished, world_size=2, per_device_train_batch_size=2, sharding="zero3")
    with pytest.raises(ConfigError, match=r"sharding \(was zero3, now None\), world_size \(was 2, now None\)"):
        train(config)


def test_what_does_no_harm_may_change_on_resuming(finished: TrainConfig) -> None:
    config = stopped(finished, device="cuda:7")
    harmless = {"logging_steps": 2, "save_total_limit": 1, "dataloader_num_workers": 0, "disable_tqdm": True}
    assert train(replace(config, training=config.training | harmless)).steps == 4


def test_a_run_stopped_after_its_last_step_takes_none_more(finished: TrainConfig) -> None:
    folder = Path(finished.out)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    metrics = (folder / "metrics.jsonl").read_text()
    measured = json.loads((folder / "manifest.json").read_text())["eval_metrics"]
    again = train(stopped(finished))
    assert (folder / "metrics.jsonl").read_text() == metrics
    assert again.steps == 4
    assert again.metrics["eval_loss"] == measured["eval_loss"]
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


def test_shares_of_the_steps_are_numbers_of_steps(config: TrainConfig, tmp_path: Path) -> None:
    """Also for a run that resumes."""
    numbers = {"max_steps": 8, "warmup_steps": 2, "logging_steps": 2, "eval_steps": 2, "save_steps": 4}
    shares = numbers | {"warmup_steps": 0.25, "logging_steps": 0.25, "eval_steps": 0.25, "save_steps": 0.5}
    runs = [
        replace(config, out=str(tmp_path / name), best_by="margin", training=config.training | each)
        for name, each in (("numbers", numbers), ("shares", shares))
    ]
    for run in runs:
        train(run)
    shutil.rmtree(tmp_path / "shares" / "checkpoint-8")
    (tmp_path / "shares" / "model.safetensors").unlink()
    train(stopped(runs[1]))
    expected, found = (
        [
            load_file(folder / "model.safetensors"),
            json.loads((folder / "manifest.json").read_text())["effective"],
            [line.get("eval_loss") for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())],
        ]
        for folder in (tmp_path / "numbers", tmp_path / "shares")
    )
    assert found[1:] == expected[1:]
    assert all(torch.equal(tensor, found[0][name]) for name, tensor in expected[0].items())


def test_the_manifest_holds_what_the_options_came_to(finished: TrainConfig) -> None:
    effective = json.loads((Path(finished.out) / "manifest.json").read_text())["effective"]
    expected = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "bf16": False,
        "fp16": False,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "seed": 0,
        "eval_steps": 20,
        "save_steps": 20,
        "dtype": "float32",
        "device": "cpu",
        "world_size": 1,
        "model_revision": None,
    }
    assert expected.items() <= effective.items()


def test_a_run_says_what_it_will_do(config: TrainConfig, capfd) -> None:
    train(replace(config, eval_data=[]))
    said = capfd.readouterr().err
    assert "24 training pairs: 4 steps of 4 pairs (0.667 epochs), learning rate 0.001, packed batches" in said
    assert "warning" not in said


def test_off_topic_pairs_are_of_training_alone_and_resumed(config: TrainConfig, tmp_path: Path, capfd) -> None:
    """A run that stops at its third step resumes to the same weights; with another share it is refused."""
    options = replace(config.data_options, off_topic=0.5)
    whole = replace(config, data_options=options, training=FAST | {"save_steps": 2, "eval_steps": 2})
    train(whole)
    assert "off-topic pairs: 12" in capfd.readouterr().err
    found = json.loads(Path("run/manifest.json").read_text())["data"]
    assert (found["train"]["pairs"], found["train"]["sources"][0]["off_topic"]) == (36, 12)
    assert (found["eval"]["pairs"], found["eval"]["sources"][0]["off_topic"]) == (8, 0)

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    other = replace(whole, out="other")
    with pytest.raises(KeyboardInterrupt):
        train(other, callbacks=[Stop()])
    with pytest.raises(ConfigError, match=r"data_options\.off_topic"):
        train(replace(other, data_options=replace(options, off_topic=0.25)))
    train(other)
    weights = [load_file(f"{run}/model.safetensors") for run in ("run", "other")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(ConfigError, match="length_control"):
        replace(whole, loss=LossConfig(length_control=True))


def test_a_run_says_what_it_leaves_out(config: TrainConfig, tmp_path: Path, capfd) -> None:
    """Two pairs are over the limit, by the prompt or by a response, one row is bad, and two responses tie."""
    rows = [each.as_row() for each in some_pairs(21)]
    long = [pair("a " * 200, "yes", "no").as_row(), pair("a", "yes " * 99, "no").as_row()]
    ranking = {"prompt": "How hot?", "responses": ["a", "b", "c"], "scores": [1, 1, 2]}
    for name, found in {"train": [*rows, *long, {**rows[0], "chosen": []}], "ties": [ranking]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)))
    options = replace(config.data_options, on_bad_row="skip")
    train(replace(config, data=["train.jsonl", "ties.jsonl"], data_options=options))
    said = capfd.readouterr().err
    (line,) = (line for line in said.splitlines() if "training pairs" in line and "steps" in line)
    assert line.startswith("warning: 23 of 27 training pairs (2 over 128 tokens left out: --data_options.max_length")
    assert "1 tied" in line
    assert "1 empty_response" in line
    assert "8 validation pairs: 4 steps" in line
    assert "ties.jsonl: read as responses with scores" in said
    train(replace(config, data=["ties.jsonl"], out="other"))
    assert "warning" not in next(
        line for line in capfd.readouterr().err.splitlines() if "2 of 3 training pairs" in line
    )


def test_pairs_and_margins_that_teach_nothing_are_told(config: TrainConfig, tmp_path: Path, capfd) -> None:
    """Truncated to one token, "yes ..." and "yes, ..." are equal; dpo ignores margins."""
    alike = pair("a question", "yes " * 90 + "good", "yes " * 90 + "bad").as_row()
    against = {"score_chosen": 1, "score_rejected": 2}
    rows = [alike, *({**each.as_row(), "margin": 1.5, **against} for each in some_pairs(4))]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = replace(config.data_options, max_length=64, overlong="truncate")
    train(replace(config, method="dpo", eval_data=[], data_options=options))
    said = capfd.readouterr().err
    assert "warning: in 1 training pairs both responses have the same tokens" in said
    assert "warning: the rows' margins have no effect" in said
    assert "warning: 4 pairs have a `score_chosen` below" in said
    assert "train.jsonl:2" in said
    manifest = json.loads((Path(config.out) / "manifest.json").read_text())
    assert manifest["data"]["train"]["identical_responses"] == 1


@pytest.mark.parametrize("lora", [LoraOptions(), LoraOptions(rank=2)])
def test_weights_that_are_not_finite_are_not_saved(lora: LoraOptions, config: TrainConfig) -> None:
    """A loss would show non-finite weights one step later, and after the last step never."""
    broken = config.training | {"max_steps": 1, "adam_epsilon": 0.0}  # 0 / 0 where the gradient is 0
    with pytest.raises(NonFiniteLossError, match=r"weight is not finite after step 1, though losses"):
        train(replace(config, lora=lora, eval_data=[], training=broken))
    assert not [*Path(config.out).rglob("*.safetensors")]
    assert json.loads((Path(config.out) / "manifest.json").read_text())["status"] == "running"


def test_prompts_in_training_and_validation_data_are_counted(config: TrainConfig, tmp_path: Path, capfd) -> None:
    mixed = [pair.as_row() for pair in some_pairs(3)] + [pair(f"new {i}", "yes", "no").as_row() for i in range(4)]
    (tmp_path / "valid.jsonl").write_text("\n".join(json.dumps(row | {"group": "one"}) for row in mixed))
    train(config)
    assert "warning: 3 prompts of the validation data are in the training data too" in capfd.readouterr().err
    assert json.loads((Path(config.out) / "manifest.json").read_text())["data"]["shared_prompts"] == 3


def test_another_projects_revision_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an installed package, in an environment inside another project's checkout."""
    (tmp_path / "module.py").touch()
    monkeypatch.setattr("hafrm.training.manifest.__file__", str(tmp_path / "module.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init"], ["commit", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    git_revision.cache_clear()
    assert git_revision() is None
    for words in (["add", "module.py"], ["commit", "-m", "ours"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    git_revision.cache_clear()
    assert len(git_revision() or "") == 40
    git_revision.cache_clear()


@pytest.mark.parametrize("disabled", [True, False])
def test_the_models_dropout_is_an_option(disabled: bool, config: TrainConfig, tmp_path: Path) -> None:
    """Without dropout, policy and reference are equal in the first step, so its policy loss is log 2."""
    base = save_tiny(tmp_path / "gpt2", "gpt2", resid_pdrop=0.5)
    training = config.training | {"max_steps": 1}
    train(replace(config, model=str(base), disable_dropout=disabled, training=training))
    first = json.loads((Path(config.out) / "metrics.jsonl").read_text().splitlines()[0])
    assert (abs(first["loss/policy"] - math.log(2)) < 1e-5) == disabled


def test_the_description_names_losses_and_reference(config: TrainConfig) -> None:
    train(replace(config, loss=LossConfig(reward_loss="probit")))
    info = RunInfo.load(Path(config.out))
    tokenizer = load_tokenizer(config.model)
    digest = weights_digest(new_model(config.model, tokenizer, lora=LoraOptions()))
    assert (info.reward_loss, info.base_digest) == ("probit", digest)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    """After kill -9 in mid-run, the same command gives exactly the weights of an undisturbed run."""
    steps = {"max_steps": 16, "save_steps": 2, "eval_steps": 2, "save_total_limit": None}
    command = [sys.executable, "-m", "hafrm", "train", "--model", config.model, "--data", *config.data]
    command += ["--eval_data", *config.eval_data, "--data_options.max_length", "128", "--training.report_to", "[]"]
    for name, value in (FAST | steps).items():
        command += [f"--training.{name}={'null' if value is None else value}"] if name != "report_to" else []
    environment = {**os.environ, "HAFRM_CACHE": str(tmp_path / "cache")}

    def run(out: Path, *, kill_at: int | None) -> None:
        with (
            (tmp_path / "log").open("a") as log,
            subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=log, stderr=log) as process,
        ):
            while kill_at and process.poll() is None:
                if (out / f"checkpoint-{kill_at}" / "trainer_state.json").exists():
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
            process.wait(timeout=120)
        assert (process.returncode == 0) == (kill_at is None), (tmp_path / "log").read_text()

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, kill_at=None)
    run(killed, kill_at=4)
    assert not (killed / "model.safetensors").exists()
    run(killed, kill_at=None)
    expected, found = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name

    def losses(folder: Path) -> list:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses(whole) == losses(killed)
