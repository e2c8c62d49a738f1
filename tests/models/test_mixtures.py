"""LoRA on mixtures of experts: their fused weights are adapted, saved, merged and loaded, by PEFT itself as well."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.models.checkpoints import load_run, save_adapter, save_run
from hafrm.models.hybrid import HybridModel
from hafrm.models.lora import find_targets, merged_state_dict, quiet_peft
from hafrm.models.options import LoraOptions
from hafrm.models.references import weights_digest
from hafrm.models.starts import check_start, new_model
from hafrm.models.stock import quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import SequenceBatch, pad_rows
from tests.models.test_checkpoints import info
from tests.tiny import SMALL, VOCABULARY, some_pairs, tiny_tokenizer

LORA = LoraOptions(rank=4)
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    # Shared experts and a dense layer, which PEFT would mistake for fused experts.
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 24,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    # Weights laid out [experts, in, out].
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def mixture(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(SMALL | MIXTURES[name])))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    with quiet_transformers():
        model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained(base: Path, lora: LoraOptions = LORA) -> tuple[HybridModel, Any]:
    """A model with non-zero adapters."""
    tokenizer = load_tokenizer(str(base))
    model = new_model(str(base), tokenizer, lora=lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.1)
    return model.eval(), tokenizer


def batch_of(tokenizer: Any) -> SequenceBatch:
    encoder = ConversationEncoder(tokenizer, 128)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in some_pairs(6)]
    return pad_rows(groups, pad_token_id=tokenizer.pad_token_id)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_get_adapters_that_are_saved_and_merged(name: str, tmp_path: Path) -> None:
    base = mixture(tmp_path / "base", name)
    model, tokenizer = trained(base)
    description = info(base, lora=asdict(LORA), base_digest=weights_digest(model))
    save_run(model, tokenizer, description, tmp_path / "run")
    save_adapter(model, tokenizer, description, tmp_path / "checkpoint")
    batch = batch_of(tokenizer)
    with torch.no_grad():
        expected = model(batch)
        with model.adapters_disabled():
            assert (model(batch).log_probs - expected.log_probs).abs().max() > 0.1
        for folder in ("run", "checkpoint"):
            found = load_run(tmp_path / folder)[0](batch)
            torch.testing.assert_close(found.rewards, expected.rewards, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
    experts = [key for key in load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors") if "expert" in key]
    assert experts


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "granitemoe"])
def test_peft_itself_merges_the_saved_adapters_to_the_same_weights(name: str, tmp_path: Path) -> None:
    """Load them into the stock classifier, which all of them except Granite have."""
    base = mixture(tmp_path / "base", name)
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base, lora=asdict(LORA)), tmp_path / "run")
    with quiet_transformers(), quiet_peft():
        stock = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        theirs = PeftModel.from_pretrained(stock, tmp_path / "run" / "adapter").merge_and_unload().state_dict()
    for key, tensor in merged_state_dict(model.stock_lm).items():
        if not key.startswith("lm_head"):
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs["score.weight"], model.score.weight.detach())


def test_every_linear_layer_and_expert_is_a_target() -> None:
    """By hand for DeepSeek: attention, the dense layer, the shared and the fused experts, and no router nor head."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("deepseek_v3", **(SMALL | MIXTURES["deepseek_v3"]))
        )
    targets = find_targets(model, [])
    found = {name for name in (*targets.modules, *targets.parameters) if "self_attn" not in name}
    projections = [f"{leaf}_proj.weight" for leaf in ("gate", "up", "down")]
    assert found == {
        *(f"model.layers.0.mlp.{each}" for each in projections),
        *(f"model.layers.1.mlp.shared_experts.{each}" for each in projections),
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    }
    assert {name.rsplit(".", 1)[-1] for name in targets.modules} == {
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "o_proj",
    }


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("qwen2_moe", ["gate_proj", "up_proj", "down_proj"], {"gate_up_proj", "down_proj", "gate_proj", "up_proj"}),
        ("mixtral", ["gate_proj", "up_proj", "down_proj"], {"gate_up_proj", "down_proj"}),
        ("mixtral", ["w1", "w3"], {"gate_up_proj"}),
        ("mixtral", ["experts.down_proj"], {"down_proj"}),
        ("mixtral", ["q_proj"], {"q_proj"}),
        ("deepseek_v3", ["gate_proj", "up_proj", "down_proj"], {"gate_up_proj", "down_proj", "weight"}),
    ],
)
def test_targets_by_name(name: str, wanted: list[str], found: set[str]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(SMALL | MIXTURES[name])))
    targets = find_targets(model, wanted)
    assert {name.rsplit(".", 1)[-1] for name in (*targets.modules, *targets.parameters)} == found


def test_targets_that_do_not_fit_are_refused_before_data_are_read(tmp_path: Path) -> None:
    base = str(mixture(tmp_path / "base", "mixtral"))
    with pytest.raises(ConfigError, match=r"gate_proj and up_proj.*Name both, or gate_up_proj"):
        check_start(base, lora=LoraOptions(rank=4, targets=["gate_proj"]))
    with pytest.raises(ConfigError, match=r"matches fc1.*experts: down_proj, gate_up_proj"):
        check_start(base, lora=LoraOptions(rank=4, targets=["fc1", "q_proj"]))
    with pytest.raises(ConfigError, match=r"lora\.rank is 99999999"):
        check_start(base, lora=LoraOptions(rank=99999999))
    with pytest.raises(ConfigError, match=r"lora\.dropout"):
        check_start(base, lora=LoraOptions(rank=4, dropout=0.1))
    check_start(base, lora=LoraOptions(rank=4, dropout=0.1, targets=["q_proj"]))


def test_weights_without_adapters_are_named_with_their_share(tmp_path: Path) -> None:
    """A state-space mixer passes all weights except its first to kernels."""
    base = mixture(tmp_path / "base", "mixtral")
    assert new_model(str(base), load_tokenizer(str(base)), lora=LORA).bare is None
    config = AutoConfig.for_model("mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = AutoModelForCausalLM.from_config(config)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "mamba")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "mamba")
    note = new_model(str(tmp_path / "mamba"), tokenizer, lora=LORA).bare
    assert note is not None
    sizes = {name: weight.numel() for name, weight in model.named_parameters() if weight.ndim > 1 and "mixer" in name}
    share = 1 - sum(size for name, size in sizes.items() if "in_proj" in name) / sum(sizes.values())
    assert f"{share:.0%}" in note
    assert "out_proj.weight" in note
