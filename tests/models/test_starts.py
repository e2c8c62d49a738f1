"""Models that can't be trained or saved are refused before training; parts that text never reaches are untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    PreTrainedModel,
)

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ModelError
from hafrm.models.checkpoints import save_run
from hafrm.models.heads import head_name, stock_classifier
from hafrm.models.loading import load_scorer
from hafrm.models.modules import trace_text
from hafrm.models.options import LoraOptions
from hafrm.models.starts import check_start, new_model
from hafrm.models.stock import quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import pad_rows
from tests.models.test_checkpoints import info
from tests.tiny import SMALL, VOCABULARY, save_tiny, some_pairs, tiny_tokenizer

CTRL: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "pad_token_id": 3}
OPT: dict[str, Any] = SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
LLAMA_4: dict[str, Any] = SMALL | {
    "head_dim": 8,
    "num_local_experts": 2,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": 64,
}


def saved(folder: Path, model: PreTrainedModel) -> Path:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    with quiet_transformers():
        model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def of_kind(folder: Path, kind: str, **values: Any) -> Path:
    torch.manual_seed(0)
    return saved(folder, AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)))


def multimodal(folder: Path) -> Path:
    """Gemma 3 with its vision tower and projector."""
    config = Gemma3Config(
        text_config=SMALL
        | {
            "head_dim": 8,
            "sliding_window": 16,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=6,
        eoi_token_index=7,
        image_token_index=6,
        pad_token_id=3,
        eos_token_id=2,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    return saved(folder, AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("lora", [LoraOptions(), LoraOptions(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize(("kind", "values"), [("ctrl", CTRL), ("opt", OPT), ("llama4_text", LLAMA_4)])
def test_unusual_shapes_and_names_are_saved_for_the_stock_classes(
    kind: str, values: dict[str, Any], lora: LoraOptions, tmp_path: Path
) -> None:
    """The head has another name or is narrower than the hidden size, or the base is the model itself."""
    base = of_kind(tmp_path / "base", kind, **values)
    tokenizer = load_tokenizer(str(base))
    model = new_model(str(base), tokenizer, lora=lora)
    run = tmp_path / "run"
    save_run(model, tokenizer, info(base, lora=vars(lora) if lora.enabled else None), run)
    conversations = [conversation for pair in some_pairs(4) for conversation in pair.conversations]
    ours = load_scorer(str(run)).score(conversations)
    stock_class = AutoModelForCausalLM if kind == "llama4_text" else AutoModelForSequenceClassification
    with quiet_transformers():
        stock, report = stock_class.from_pretrained(run, output_loading_info=True)
    assert not report["missing_keys"]
    theirs = []
    for conversation in conversations:
        messages = [m.as_dict() for m in conversation.turns]
        ids = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            if kind == "llama4_text":
                state = stock.eval()(ids, output_hidden_states=True).hidden_states[-1][0, -1]
                theirs.append((state @ load_file(run / "model.safetensors")["score.weight"][0]).item())
            else:
                theirs.append(stock.eval()(ids).logits[0, 0].item())
    assert np.std(theirs) > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_stock_classifiers_head_is_found_by_its_class() -> None:
    def found(kind: str, **values: Any) -> Any:
        return stock_classifier(AutoConfig.for_model(kind, **values))

    assert found("llama", **SMALL).head == "score.weight"
    assert found("ctrl", **CTRL).head == "classifier.weight"
    assert found("modernbert-decoder", **SMALL).head is None
    assert found("bert", **SMALL, is_decoder=True).head is None
    assert found("granite", **SMALL) is None
    assert head_name(AutoConfig.for_model("granite", **SMALL)) == "score.weight"
    assert head_name(AutoConfig.for_model("ctrl", **CTRL)) == "classifier.weight"


def test_a_classifier_of_other_layers_is_refused_unless_no_reward_head_is_trained(tmp_path: Path) -> None:
    decoder = SMALL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 16}
    base = str(of_kind(tmp_path / "base", "modernbert-decoder", **decoder))
    for log_probs in (True, False):
        with pytest.raises(ModelError, match=r"ModernBertDecoderForSequenceClassification.*head\.dense\.weight"):
            check_start(base, log_probs=log_probs)
    check_start(base, rewards=False)


def test_an_architecture_without_a_classifier_is_told_so(tmp_path: Path) -> None:
    base = str(save_tiny(tmp_path / "base", "granite"))
    assert any("no sequence classifier for GraniteForCausalLM" in note for note in check_start(base).notes)
    assert not check_start(str(save_tiny(tmp_path / "llama"))).notes


def test_only_the_part_that_reads_text_is_trained(tmp_path: Path) -> None:
    """Llama 4's text part can be loaded by itself, Llama 3.2 Vision's can't."""
    for kind in ("llama4", "mllama"):
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        tiny_tokenizer().save_pretrained(tmp_path / kind)
    assert any("only Llama4ForCausalLM" in note for note in check_start(str(tmp_path / "llama4")).notes)
    with pytest.raises(ModelError, match="MllamaForCausalLM, the part of it that reads text"):
        check_start(str(tmp_path / "mllama"))


@pytest.mark.parametrize("name", ["gpt_neox", "qwen2", "gpt2"])
def test_an_lm_head_is_found_by_its_shape_or_name(name: str, tmp_path: Path) -> None:
    """GPT-NeoX saves its LM head as `embed_out`; the others' are tied."""
    check_start(str(save_tiny(tmp_path / name, name)))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        check_start(str(tmp_path / "nowhere"))


def test_a_text_reaches_no_vision_tower(tmp_path: Path) -> None:
    base = multimodal(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    with quiet_transformers():
        stock = AutoModelForCausalLM.from_pretrained(base)
    unreached = trace_text(stock).unreached
    towers = ("model.vision_tower.", "model.multi_modal_projector.")
    assert unreached == {name for name, _ in stock.named_parameters() if name.startswith(towers)}
    assert trace_text(stock.requires_grad_(False)).unreached == unreached  # a frozen weight is in no graph
    model = new_model(str(base), tokenizer, lora=LoraOptions())
    trained = {name for name, weight in model.stock_lm.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in stock.named_parameters()} - unreached
    adapted = new_model(str(base), tokenizer, lora=LoraOptions(rank=2))
    names = [name for name, _ in adapted.named_parameters() if ".lora_" in name]
    assert names
    assert not [name for name in names if "vision" in name or "projector" in name]


def test_every_weight_that_is_trained_gets_a_gradient(tmp_path: Path) -> None:
    """DDP waits for the gradients of such parameters."""
    encoder_pairs = some_pairs(3)
    for name in ("multimodal", "llama"):
        base = multimodal(tmp_path / name) if name == "multimodal" else save_tiny(tmp_path / name)
        tokenizer = load_tokenizer(str(base))
        encoder = ConversationEncoder(tokenizer, 128)
        groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in encoder_pairs]
        model = new_model(str(base), tokenizer, lora=LoraOptions())
        scores = model(pad_rows(groups, pad_token_id=tokenizer.pad_token_id))
        (scores.rewards.sum() + scores.log_probs.sum()).backward()
        assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
