"""Models that can't be loaded give a remedy: unfinished runs, damaged adapters, files of other versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from hafrm.errors import ConfigError, ModelError, first_line
from hafrm.models.checkpoints import load_run, save_adapter, save_run
from hafrm.models.export import export
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, LoraOptions, chat_template
from hafrm.models.runinfo import RunInfo
from hafrm.models.starts import check_start
from hafrm.models.stock import load_causal_lm
from hafrm.models.tokenizers import load_tokenizer
from tests.models.test_checkpoints import info, trained
from tests.tiny import SMALL, save_tiny

LORA = LoraOptions(rank=4)


def adapter_checkpoint(folder: Path, step: int) -> Path:
    base = save_tiny(folder.parent / "base")
    model, tokenizer = trained(base, LORA)
    checkpoint = folder / f"checkpoint-{step}"
    save_adapter(model, tokenizer, info(base, lora=asdict(LORA)), checkpoint)
    return checkpoint


def test_an_unfinished_run_names_its_newest_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    newest = adapter_checkpoint(run, 20)
    adapter_checkpoint(run, 4)
    (run / "checkpoint-100").mkdir()  # a killed writer's: `hafrm.json` comes last
    (run / "manifest.json").write_text(json.dumps({"format": 1, "status": "running"}))
    for load in (load_run, load_scorer, lambda folder: export(ExportConfig(run=folder))):
        with pytest.raises(ModelError, match=r"unfinished run\. Use its newest checkpoint, \S+checkpoint-20,"):
            load(str(run))
    load_scorer(str(newest))


def test_an_unfinished_run_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "status": "running"}))
    with pytest.raises(ModelError, match=r"unfinished run\. To finish it, run the same training command again"):
        load_scorer(str(tmp_path))


@pytest.mark.parametrize("load", [check_start, load_causal_lm], ids=lambda load: load.__name__)
@pytest.mark.parametrize("kind", ["bert", "roformer", "gpt_neox"])
def test_an_encoder_is_not_a_causal_model(kind: str, load: Callable[[str], Any], tmp_path: Path) -> None:
    """transformers' causal classes of these families see later tokens, if their config says nothing else."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7], [5, 6, 9]])
    first, second = model(ids).logits[:, 0]
    sees_later = not torch.allclose(first, second, atol=1e-6)
    with pytest.raises(ModelError, match="is an encoder") if sees_later else nullcontext():
        load(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "gone", "no head", "no matrix"])
def test_damaged_adapters_are_named(damage: str, tmp_path: Path) -> None:
    checkpoint = adapter_checkpoint(tmp_path / "run", 4)
    file = checkpoint / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "gone":
        file.unlink()
    else:
        lost = "score.weight" if damage == "no head" else "q_proj.lora_B.weight"
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(lost)}
        save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="checkpoint-4"):
        load_run(checkpoint)


def test_a_combined_score_without_a_weight(tmp_path: Path) -> None:
    """The remedy is the same without validation pairs and without a fit on them."""
    base = save_tiny(tmp_path / "base")
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base), tmp_path / "run")
    with pytest.raises(ModelError, match=r"without validation pairs.*--combined_weight"):
        load_scorer(str(tmp_path / "run"), head="combined")


@pytest.mark.parametrize("field", ["reward_loss", "base_digest", "dtype", "sha256", "versions"])
def test_descriptions_without_a_field_are_refused(field: str, tmp_path: Path) -> None:
    description = info(tmp_path, reward_loss="hinge", base_digest="abc", dtype="float32")
    description.save(tmp_path)
    assert RunInfo.load(tmp_path) == description
    values = json.loads((tmp_path / "hafrm.json").read_text())
    del values[field]
    (tmp_path / "hafrm.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=field):
        RunInfo.load(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="No tokenizer"):
        load_tokenizer(str(base))


def test_weights_of_other_shapes_than_the_config_says(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(ModelError, match=r"other shapes than its config\.json"):
        load_causal_lm(str(base), dtype=None)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_chat_template_is_refused(text: str, tmp_path: Path) -> None:
    """The tokenizer's own template would be used instead."""
    (tmp_path / "t.jinja").write_text(text)
    with pytest.raises(ConfigError, match="empty"):
        chat_template(str(tmp_path / "t.jinja"), "chat_template")


def test_an_error_without_a_word_is_called_by_its_kind() -> None:
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(ValueError("\n one\ntwo")) == "one"
