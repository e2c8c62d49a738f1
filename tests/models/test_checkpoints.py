"""A run's folder loads everywhere without custom code, with the same rewards."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError, ModelError
from hafrm.models import tokenizers
from hafrm.models.checkpoints import load_run, restore_weights, save_adapter, save_run
from hafrm.models.export import export
from hafrm.models.layout import choose_layout
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions
from hafrm.models.runinfo import RunInfo
from hafrm.models.starts import new_model
from hafrm.models.stock import load_causal_lm, quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import pad_rows
from tests.tiny import save_tiny, some_pairs, tiny_tokenizer

LORA = LoraOptions(rank=4)
FULL = LoraOptions()


def info(base: Path, **values) -> RunInfo:
    defaults = {
        "method": "haf",
        "base_model": str(base),
        "reward_weight": 1.0,
        "policy_ratio": 0.2,
        "policy_loss": "dpo",
        "beta": 0.1,
        "max_length": 128,
        "overlong": "drop",
        "pad_token": "<pad>",
    }
    return RunInfo(**(defaults | values))


def trained(base: Path, lora: LoraOptions = FULL, *, seed: int = 0):
    """A model whose weights have changed since initialisation."""
    tokenizer = load_tokenizer(str(base))
    model = new_model(str(base), tokenizer, lora=lora, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), tokenizer


def stock_rewards(folder: Path, conversations, *, batch_size: int, side: str) -> list[float]:
    """Compute rewards as a user without hafrm would."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rewards = []
    for start in range(0, len(conversations), batch_size):
        messages = [[m.as_dict() for m in c.turns] for c in conversations[start : start + batch_size]]
        inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt", padding=True)
        # GPT-2's absolute positions count from the row's start, padding included, unless they are given.
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            rewards += model(**inputs, position_ids=positions).logits[:, 0].tolist()
    return rewards


_MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "mistral", "phi", "gpt2", "gpt_neox")]


@pytest.mark.parametrize("name", ["llama", *_MORE])
def test_200_rewards_equal_stock_transformers(name: str, tmp_path: Path) -> None:
    """Batch sizes 1, 7 and 32, either padding side, float32, to 1e-5."""
    base = save_tiny(tmp_path / "base", name)
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base), tmp_path / "run")
    conversations = [c for pair in some_pairs(100) for c in pair.conversations]
    expected = stock_rewards(tmp_path / "run", conversations, batch_size=1, side="right")
    assert np.std(expected) > 0.01
    for batch_size in (1, 7, 32):
        for side in ("left", "right"):
            options = ScoreOptions(batch_size=batch_size, padding_side=side, layout="padded")
            ours = load_scorer(str(tmp_path / "run"), options=options).score(conversations)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
        options = ScoreOptions(tokens_per_batch=64 * batch_size)  # packed
        ours = load_scorer(str(tmp_path / "run"), options=options).score(conversations)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    theirs = stock_rewards(tmp_path / "run", conversations, batch_size=32, side="left")
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=1e-5)


def test_the_policy_head_loads_as_a_stock_causal_lm(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base), tmp_path / "run")
    with quiet_transformers():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, model.stock_lm.state_dict()[name]), name
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    assert config["pad_token_id"] == tokenizer.pad_token_id


def test_export_writes_pure_checkpoints(tmp_path: Path) -> None:
    """Each folder contains only its own head and loads without missing or unexpected keys."""
    base = save_tiny(tmp_path / "base")
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base), tmp_path / "run")
    reward, policy = export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "export")))
    for folder, stock_class in ((reward, AutoModelForSequenceClassification), (policy, AutoModelForCausalLM)):
        _, report = stock_class.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert "library_name: transformers" in (folder / "README.md").read_text()
    assert "lm_head.weight" not in load_file(reward / "model.safetensors")
    assert "score.weight" not in load_file(policy / "model.safetensors")
    conversations = [c for pair in some_pairs(8) for c in pair.conversations]
    ours = load_scorer(str(tmp_path / "run")).score(conversations)
    np.testing.assert_allclose(load_scorer(str(reward)).score(conversations), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # gpt2's linear layers are transposed
def test_lora_runs_load_merged_and_apart(name: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    model, tokenizer = trained(base, LORA)
    description = info(base, lora=asdict(LORA))
    save_run(model, tokenizer, description, tmp_path / "run")
    save_adapter(model, tokenizer, description, tmp_path / "checkpoint")
    encoder = ConversationEncoder(tokenizer, 128)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in some_pairs(6)]
    batch = pad_rows(groups, pad_token_id=tokenizer.pad_token_id)
    with torch.no_grad():
        expected = model(batch)
        for folder in ("run", "checkpoint"):
            loaded = load_run(tmp_path / folder)[0](batch)
            torch.testing.assert_close(loaded.rewards, expected.rewards, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(loaded.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
        with model.adapters_disabled():
            assert not torch.allclose(model(batch).log_probs, expected.log_probs, atol=1e-2)
    assert not list((tmp_path / "checkpoint").glob("model*"))
    reward, policy = export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "export")))
    with quiet_transformers():
        classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        causal = AutoModelForCausalLM.from_pretrained(base)
    classifier = PeftModel.from_pretrained(classifier, reward / "adapter").eval()
    causal = PeftModel.from_pretrained(causal, policy / "adapter").eval()
    ids = torch.tensor([groups[0].prompt + groups[0].responses[0]])
    with torch.no_grad():
        torch.testing.assert_close(classifier(ids).logits[0, 0], expected.rewards[0], rtol=1e-4, atol=1e-4)
        merged = AutoModelForCausalLM.from_pretrained(policy)(ids).logits
        torch.testing.assert_close(causal(ids).logits, merged, rtol=1e-3, atol=1e-3)


def test_adapters_apart_score_batches_once_the_base_is_as_the_card_says(tmp_path: Path, monkeypatch) -> None:
    """The base's tokenizer has no pad token to spare, so the run has one token more than the base has rows."""
    monkeypatch.setattr(tokenizers, "_KNOWN_PADS", ())
    source = save_tiny(tmp_path / "base", tokenizer=tiny_tokenizer(pad=None))
    model, tokenizer = trained(source, LORA)
    save_run(model, tokenizer, info(source, lora=asdict(LORA)), tmp_path / "run")
    reward, _ = export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "export")))
    with quiet_transformers():
        base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
        whole = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    assert len(tokenizer) > base.get_input_embeddings().num_embeddings
    _, steps, *_ = (reward / "README.md").read_text().split("`adapter/`")[-1].split("```python")
    exec(steps.split("```")[0], {"base": base, "tokenizer": tokenizer})
    adapted = PeftModel.from_pretrained(base, reward / "adapter").eval()
    batch = tokenizer(["a", "a longer one"], padding=True, padding_side="right", return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, whole(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_lora_trains_the_adapters_and_the_reward_head_alone(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model = new_model(str(base), load_tokenizer(str(base)), lora=LORA)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "score.weight" in names
    assert all("lora_" in name for name in names - {"score.weight"})
    assert not any("lm_head" in name for name in names)
    targets = {name.split(".")[-4] for name in names - {"score.weight"}}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_unknown_lora_targets_are_named_with_those_there_are(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    with pytest.raises(ConfigError, match="q_proj"):
        new_model(str(base), load_tokenizer(str(base)), lora=LoraOptions(rank=4, targets=["attn_qkv"]))
    with pytest.raises(ConfigError, match=r"lora\.targets: .*matches o_porj"):  # beside one that fits
        new_model(str(base), load_tokenizer(str(base)), lora=LoraOptions(rank=4, targets=["q_proj", "o_porj"]))


@pytest.mark.parametrize("options", [{"alpha": 32}, {"dropout": 0.1}, {"targets": ["q_proj"]}, {"quantize": "4bit"}])
def test_options_of_adapters_without_a_rank_are_refused(options: dict[str, Any]) -> None:
    """They would otherwise train every weight."""
    with pytest.raises(ConfigError, match=f"lora.{next(iter(options))} .*set lora.rank"):
        LoraOptions(**options)


def test_qlora_without_a_gpu_says_so(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    with pytest.raises(ConfigError, match="GPU"):
        new_model(str(base), load_tokenizer(str(base)), lora=LoraOptions(rank=4, quantize="4bit"))


@pytest.mark.parametrize(("name", "lora"), [("llama", FULL), ("qwen2", FULL), ("llama", LORA)])
def test_restoring_is_bit_exact(name: str, lora: LoraOptions, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    model, tokenizer = trained(base, lora)
    (save_adapter if lora.enabled else save_run)(model, tokenizer, info(base), tmp_path / "run")
    other = trained(base, lora, seed=5)[0]
    restore_weights(other, tmp_path / "run")
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_wrong_folders_are_named_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"hafrm\.json"):
        load_run(tmp_path)
    (tmp_path / "hafrm.json").write_text("{broken")
    with pytest.raises(ModelError, match="damaged"):
        load_run(tmp_path)
    with pytest.raises(ModelError, match="No causal language model"):
        load_causal_lm(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_an_untrained_head_does_not_score(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base, method="baseline", policy_ratio=0.0), tmp_path / "baseline")
    save_run(model, tokenizer, info(base, method="dpo", reward_weight=0.0, policy_ratio=1.0), tmp_path / "dpo")
    with pytest.raises(ModelError, match="Use --head reward"):
        load_scorer(str(tmp_path / "baseline"), head="policy")
    with pytest.raises(ModelError, match="Use --head policy"):
        load_scorer(str(tmp_path / "dpo"), head="combined")
    with pytest.raises(ModelError, match="reward model"):
        load_scorer(str(base))
    assert [f.name for f in export(ExportConfig(run=str(tmp_path / "baseline")))] == ["reward"]
    assert [f.name for f in export(ExportConfig(run=str(tmp_path / "dpo")))] == ["policy"]


def test_the_attention_of_packed_rows_is_not_saved(tmp_path: Path) -> None:
    """It is an implementation detail, not a property of the model: other programs don't know it."""
    base = save_tiny(tmp_path / "base")
    model, tokenizer = trained(base)
    assert choose_layout(model, tokenizer.pad_token_id, max_length=128).packed
    save_run(model, tokenizer, info(base), tmp_path / "run")
    assert "hafrm_packed" not in (tmp_path / "run" / "config.json").read_text()
