"""Exports give the same reward in transformers 4, sentence-transformers, LLaMA-Factory, PEFT and vLLM."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hafrm.models.checkpoints import save_run
from hafrm.models.export import export
from hafrm.models.interchange import add_older_names
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig
from hafrm.models.stock import quiet_transformers
from hafrm.pairs import Conversation
from tests.models.test_checkpoints import LORA, info, trained
from tests.overlays import overlay, told
from tests.tiny import save_tiny, some_pairs

TALK = Conversation.of("How are you? " * 4, "Fine, thanks, and " + "you " * 12)
MESSAGES = [turn.as_dict() for turn in TALK.turns]
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 64}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "phi": ("phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}}),
    "gpt_neox": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
}


def exported(folder: Path, name: str = "llama", *, lora: Any = None, **values: Any) -> tuple[Path, float]:
    """An exported reward model, and the run's reward of the conversation."""
    base = save_tiny(folder / "base", name, **values)
    model, tokenizer = trained(base, lora) if lora else trained(base)
    save_run(model, tokenizer, info(base, lora=asdict(lora) if lora else None, max_length=250), folder / "run")
    reward, _ = export(ExportConfig(run=str(folder / "run")))
    (expected,) = load_scorer(str(folder / "run")).score([TALK])
    assert expected is not None
    return reward, expected


def ids_of(folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen2", *ROPES])
def test_older_names_change_no_config_of_this_version(kind: str, tmp_path: Path) -> None:
    name, values = ROPES.get(kind, (kind, {}))
    config = AutoConfig.for_model(name, **values)
    config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    before = AutoConfig.from_pretrained(tmp_path).rope_parameters
    add_older_names(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == before
    written = json.loads((tmp_path / "config.json").read_text())
    if kind == "gemma3_text":
        assert (written["rope_theta"], written["rope_local_base_freq"]) == (1_000_000.0, 10_000.0)
    else:
        assert written["rope_theta"] == before["rope_theta"]
    assert ("rope_scaling" in written) == (kind == "yarn")


def test_files_have_the_modes_of_the_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        reward, _ = exported(tmp_path, lora=LORA)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (reward, *reward.rglob("*")) if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in reward.rglob("*") if path.is_file()} == {0o644}


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_an_export_shares_prompts_and_gives_the_rewards_of_its_stock_class(name: str, tmp_path: Path) -> None:
    reward, _ = exported(tmp_path, name)
    talks = [conversation for pair in some_pairs(6) for conversation in pair.conversations]
    scorer = load_scorer(str(reward))
    assert scorer.layout.packed
    tokenizer = AutoTokenizer.from_pretrained(reward)
    stock = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    expected = []
    for talk in talks:
        messages = [turn.as_dict() for turn in talk.turns]
        inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(stock(**inputs).logits[0, 0].item())
    assert scorer.score(talks) == pytest.approx(expected, abs=1e-5)


def test_llama_factory_reads_the_value_head(tmp_path: Path) -> None:
    """As in `load_valuehead_params` and `AutoModelForCausalLMWithValueHead`: the head on the last hidden state."""
    reward, expected = exported(tmp_path)
    head = load_file(reward / "value_head.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {
        "v_head.summary.weight": (1, 32),
        "v_head.summary.bias": (1,),
    }
    with quiet_transformers(), torch.no_grad():
        hidden = AutoModelForCausalLM.from_pretrained(reward)(ids_of(reward), output_hidden_states=True).hidden_states
    value = hidden[-1][0, -1] @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
    assert value.item() == pytest.approx(expected, abs=1e-4)
    assert load_scorer(str(reward)).score([TALK]) == pytest.approx([expected], abs=1e-5)


def test_llama_factory_attaches_the_reward_adapter(tmp_path: Path) -> None:
    """As in `create_reward_model`: a second adapter on the policy's base, then the value head."""
    reward, expected = exported(tmp_path, lora=LORA)
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    policy = PeftModel.from_pretrained(base, tmp_path / "run" / "export" / "policy" / "adapter")
    policy.load_adapter(reward / "adapter", "reward")
    policy.set_adapter("reward")
    head = load_file(reward / "adapter" / "value_head.safetensors")
    with torch.no_grad():
        hidden = policy.eval()(ids_of(reward), output_hidden_states=True).hidden_states
    value = hidden[-1][0, -1] @ head["v_head.summary.weight"][0]
    assert value.item() == pytest.approx(expected, abs=1e-3)


def test_auto_peft_loads_the_adapter(tmp_path: Path) -> None:
    reward, expected = exported(tmp_path, lora=LORA)
    with quiet_transformers(), torch.no_grad():
        model = AutoPeftModelForSequenceClassification.from_pretrained(reward / "adapter", num_labels=1).eval()
        assert model(ids_of(reward)).logits.item() == pytest.approx(expected, abs=1e-3)


def test_vllm_loads_the_classifier_alone(tmp_path: Path) -> None:
    """vLLM loads every safetensors file of a folder that its index, if there is one, does not exclude."""
    reward, _ = exported(tmp_path)
    index = json.loads((reward / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {"model.safetensors"}
    assert index.keys() == load_file(reward / "model.safetensors").keys()
    config = json.loads((reward / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"


CLASSIFIER = f"""
import json, sys, torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
found = [transformers.__version__]
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer.apply_chat_template({MESSAGES!r}, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        found.append(model(**inputs).logits[0, 0].item())
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["4.57.6", "4.53.3"])
def test_transformers_4_computes_the_same_rewards(version: str, tmp_path: Path) -> None:
    """Uncommon rotary frequencies: with transformers 4's defaults, rewards would differ."""
    tokenizers = "tokenizers>=0.22,<0.23" if version >= "4.56" else "tokenizers>=0.21,<0.22"
    old = overlay(tmp_path / "old", f"transformers=={version}", "huggingface_hub<1", tokenizers)
    made = {kind: exported(tmp_path / kind, name, **values) for kind, (name, values) in ROPES.items()}
    found, *rewards = told(CLASSIFIER, *(folder for folder, _ in made.values()), path=old)
    assert found == version
    assert dict(zip(made, rewards, strict=True)) == pytest.approx({k: r for k, (_, r) in made.items()}, abs=1e-4)
    bare = json.loads((made["llama"][0] / "config.json").read_text())
    del bare["rope_theta"]
    (made["llama"][0] / "config.json").write_text(json.dumps(bare))
    _, wrong = told(CLASSIFIER, made["llama"][0], path=old)
    assert wrong != pytest.approx(made["llama"][1], abs=1e-2)


CROSS_ENCODER = f"""
import json, sys
from sentence_transformers import CrossEncoder
model = CrossEncoder(sys.argv[1], device="cpu")
print(json.dumps([float(model.predict([{MESSAGES!r}])[0])]))
"""


@pytest.mark.slow
def test_sentence_transformers_returns_the_reward(tmp_path: Path) -> None:
    packages = overlay(tmp_path / "packages", "sentence-transformers==6.2.0")
    reward, expected = exported(tmp_path)
    assert told(CROSS_ENCODER, reward, path=packages) == pytest.approx([expected], abs=1e-4)
