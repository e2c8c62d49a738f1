"""Whole training runs from reward models of several forms: they finish, resume and describe their start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hafrm.data import DataOptions
from hafrm.errors import ConfigError, ModelError
from hafrm.models.export import export
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, LoraOptions
from hafrm.models.runinfo import RunInfo
from hafrm.models.stock import quiet_transformers
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from tests.models.test_mixtures import mixture
from tests.models.test_reward_models import classifier
from tests.models.test_starts import of_kind
from tests.tiny import SMALL, save_tiny, some_pairs

FAST = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "report_to": [],
    "eval_steps": 2,
}
STILL = {"max_steps": 1, "learning_rate": 1e-12, "seed": 1}
CONVERSATIONS = [conversation for pair in some_pairs(6) for conversation in pair.conversations]


def rows(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(12)))
    return path


def trained(model: Path, out: Path, *, validate: bool = False, **values: Any) -> Path:
    data = str(rows(out.parent))
    training = FAST | values.pop("training", {})
    if not validate:
        training.pop("eval_steps")
    evaluated = {"eval_data": [data]} if validate else {}
    options = DataOptions(max_length=128)
    given = {"training": training, "data_options": options, **evaluated, **values}
    train(TrainConfig(model=str(model), data=[data], out=str(out), **given))
    return out


def cosine(first: Path, second: Path) -> float:
    heads = [load_file(folder / "model.safetensors")["score.weight"][0].double() for folder in (first, second)]
    return torch.cosine_similarity(*heads, dim=0).item()


@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_finished_run_trains_on_with_its_head(rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = trained(save_tiny(tmp_path / "base"), tmp_path / "first", lora=LoraOptions(rank=rank))
    assert "reward head: fresh (normal)" in capsys.readouterr().err
    second = trained(first, tmp_path / "second", training=STILL)
    assert cosine(first, second) == pytest.approx(1, abs=1e-6)
    assert "reward head: kept (score.weight of" in capsys.readouterr().err
    assert json.loads((second / "manifest.json").read_text())["reward_head"] == "keep"
    fresh = trained(first, tmp_path / "fresh", training=STILL, head_init="normal")
    assert abs(cosine(first, fresh)) < 0.9


@pytest.mark.slow
def test_adapters_on_top_of_adapters_are_resumed(tmp_path: Path) -> None:
    """A LoRA run that started from a checkpoint with only adapters, which it merged."""
    lora = LoraOptions(rank=4)
    first = trained(save_tiny(tmp_path / "base"), tmp_path / "first", lora=lora, validate=True)
    checkpoint = first / "checkpoint-4"
    assert not list(checkpoint.glob("model*"))
    second = trained(checkpoint, tmp_path / "second", lora=lora, validate=True)
    whole = load_scorer(str(second)).score(CONVERSATIONS)
    alone = load_scorer(str(second / "checkpoint-4")).score(CONVERSATIONS)
    best = json.loads((second / "manifest.json").read_text())["best_step"]
    if best == 4:
        assert alone == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_classifier_without_an_lm_head_is_trained_resumed_and_exported(rank: int, tmp_path: Path) -> None:
    model = classifier(tmp_path / "rm")
    lora = LoraOptions(rank=rank)
    with pytest.raises(ModelError, match=r"without an LM head.*--method baseline"):
        trained(model, tmp_path / "haf", lora=lora)
    run = trained(model, tmp_path / "run", method="baseline", lora=lora, validate=True)
    assert resumed(run, lora=lora, method="baseline", model=model) == load_scorer(str(run)).score(CONVERSATIONS)
    (reward,) = export(ExportConfig(run=str(run)))
    assert "policy head was not trained" in (reward / "README.md").read_text()
    again = load_scorer(str(reward)).score(CONVERSATIONS)
    assert again == pytest.approx(load_scorer(str(run)).score(CONVERSATIONS), abs=1e-5)


def resumed(run: Path, **values: Any) -> list[float | None]:
    """Return the rewards of a run that is resumed after its first checkpoint."""
    cut = run.with_name(f"{run.name}-cut")
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoint-4")
    shutil.rmtree(cut / "adapter", ignore_errors=True)
    for path in cut.iterdir():
        if path.is_file() and path.name not in ("manifest.json", "metrics.jsonl"):
            path.unlink()
    manifest = json.loads((cut / "manifest.json").read_text()) | {"status": "running"}
    (cut / "manifest.json").write_text(json.dumps(manifest))
    model = values.pop("model")
    trained(model, cut, validate=True, **values)
    return load_scorer(str(cut)).score(CONVERSATIONS)


@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_dpo_run_has_no_reward_head_and_is_resumed(rank: int, tmp_path: Path) -> None:
    base, lora = save_tiny(tmp_path / "base"), LoraOptions(rank=rank)
    run = trained(base, tmp_path / "run", method="dpo", lora=lora, validate=True)
    assert "score.weight" not in load_file(run / "model.safetensors")
    assert resumed(run, lora=lora, method="dpo", model=base) == load_scorer(str(run)).score(CONVERSATIONS)
    with quiet_transformers():
        _, report = AutoModelForSequenceClassification.from_pretrained(run, output_loading_info=True)
    assert set(report["missing_keys"]) == {"score.weight"}
    assert RunInfo.load(trained(run, tmp_path / "next", method="baseline")).reward_weight == 1


@pytest.mark.slow
def test_lora_on_a_mixture_is_resumed(tmp_path: Path) -> None:
    base, lora = mixture(tmp_path / "base", "mixtral"), LoraOptions(rank=4)
    run = trained(base, tmp_path / "run", lora=lora, validate=True)
    expected = load_scorer(str(run)).score(CONVERSATIONS)
    assert resumed(run, lora=lora, model=base) == pytest.approx(expected, abs=1e-5)


def test_what_cant_be_saved_is_refused_before_data_are_read(tmp_path: Path) -> None:
    decoder = SMALL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 16}
    base = of_kind(tmp_path / "base", "modernbert-decoder", **decoder)
    config = {"model": str(base), "data": [str(tmp_path / "none.jsonl")], "out": str(tmp_path / "out")}
    with pytest.raises(ModelError, match="ModernBertDecoderForSequenceClassification"):
        train(TrainConfig(**config))
    with pytest.raises(ConfigError, match="head_init has no effect"):
        TrainConfig(**config, method="dpo", head_init="keep")
    assert not (tmp_path / "out").exists()
