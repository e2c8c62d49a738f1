"""A LoRA run's folder gives the validated scores: neither rounding nor packing loses what adapters learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ModelError
from hafrm.models import lora as lora_module
from hafrm.models import starts as starts_module
from hafrm.models.checkpoints import cast_weights, load_packed_start, load_run, save_adapter, save_run
from hafrm.models.checksums import checksums
from hafrm.models.export import export
from hafrm.models.hybrid import HybridModel
from hafrm.models.loading import load_log_prob_scorer, load_scorer
from hafrm.models.lora import merged_state_dict
from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions
from hafrm.models.references import weights_digest
from hafrm.models.starts import new_model
from hafrm.models.stock import quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import SequenceBatch, pad_rows
from tests.models.test_checkpoints import info
from tests.tiny import save_tiny, some_pairs

LORA = LoraOptions(rank=4)
EXACT, ROUNDED = 1e-5, 0.05
"""Largest differences, relative to the spread of scores, for float32 and for bfloat16."""


def half_run(folder: Path, name: str = "llama", *, lora: LoraOptions = LORA) -> tuple[HybridModel, Any, Path]:
    """A model in bfloat16 whose adapters learnt less than the weights' rounding, its tokenizer, and its saved run."""
    base = save_tiny(folder / "base", name)
    tokenizer = load_tokenizer(str(base))
    model = new_model(str(base), tokenizer, lora=lora, dtype=torch.bfloat16)
    description = info(base, lora=asdict(lora), base_digest=weights_digest(model))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 1e-3)
    model.eval()
    save_run(model, tokenizer, description, folder / "run")
    save_adapter(model, tokenizer, description, folder / "checkpoint")
    return model, tokenizer, folder / "run"


def batch_of(tokenizer: Any) -> SequenceBatch:
    encoder = ConversationEncoder(tokenizer, 128)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in some_pairs(8)]
    return pad_rows(groups, pad_token_id=tokenizer.pad_token_id)


@torch.no_grad()
def scores(model: HybridModel, batch: SequenceBatch) -> Tensor:
    """Rewards and summed log-probs, [2, S]."""
    found = model(batch)
    assert found.rewards is not None
    assert found.log_probs is not None
    return torch.stack([found.rewards, found.log_probs])


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest root mean square of a head's differences, relative to the spread of its scores."""
    return float(((found - expected).pow(2).mean(1).sqrt() / expected.std(1)).max())


def in_float32(model: HybridModel, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Score with widened weights, without intermediate rounding: with adapters and without, [2, S]."""
    cast_weights(model, torch.float32)
    with_them = scores(model, batch_of(tokenizer))
    with model.adapters_disabled():
        return with_them, scores(model, batch_of(tokenizer))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])  # plain, transposed, tied
def test_merged_weights_hold_all_that_adapters_learnt(name: str, tmp_path: Path) -> None:
    """In bfloat16 nine tenths of the difference would be rounding."""
    model, _, run = half_run(tmp_path, name)
    saved = load_file(run / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert json.loads((run / "config.json").read_text())["dtype"] == "float32"
    layers = [(name, layer) for name, layer in model.stock_lm.named_modules() if isinstance(layer, LoraLayer)]
    assert layers
    for name, layer in layers:
        delta: Tensor = layer.get_delta_weight("default")  # type: ignore[operator]
        found = saved[f"{name}.weight"] - layer.get_base_layer().weight.float()
        assert (found - delta).norm() < 1e-3 * delta.norm(), name
    assert model.stock_lm.dtype == torch.bfloat16  # the model and its config are unchanged
    assert model.config.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_half_precision_run_scores_as_it_was_validated(name: str, tmp_path: Path) -> None:
    """The folder gives exactly the scores of its last checkpoint and of the model in memory."""
    model, tokenizer, run = half_run(tmp_path, name)
    expected = scores(model, batch_of(tokenizer))
    for folder in (run, tmp_path / "checkpoint"):
        loaded = load_run(folder)[0]
        assert loaded.stock_lm.dtype == torch.bfloat16
        assert torch.equal(scores(loaded, batch_of(tokenizer)), expected)


def test_log_ratios_survive_merging(tmp_path: Path) -> None:
    """In stock classes, and without its base, the float32 weights score as the adapters do, including log-ratios."""
    model, tokenizer, run = half_run(tmp_path)
    batch, validated = batch_of(tokenizer), scores(model, batch_of(tokenizer))
    expected, start = in_float32(model, tokenizer)
    merged = load_run(run, dtype=torch.float32)[0]
    found = scores(merged, batch)
    assert difference(found, expected) < EXACT
    assert difference((found - start)[1:], (expected - start)[1:]) < 1e-3
    assert difference(found, validated) < ROUNDED
    with quiet_transformers():
        causal, classifier = (
            kind.from_pretrained(run).eval() for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification)
        )
    assert {causal.dtype, classifier.dtype} == {torch.float32}
    for name, tensor in merged.stock_lm.state_dict().items():
        assert torch.equal(causal.state_dict()[name], tensor), name
    rewards = classifier(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0].detach()
    assert (rewards - found[0]).abs().max() < EXACT


def test_without_its_base_a_run_is_its_merged_weights(tmp_path: Path) -> None:
    model, tokenizer, run = half_run(tmp_path)
    expected = in_float32(model, tokenizer)[0]
    shutil.rmtree(tmp_path / "base")
    save_tiny(tmp_path / "base", seed=5)
    for there in (True, False):  # changed, then gone
        assert difference(scores(load_run(run)[0], batch_of(tokenizer)), expected) < EXACT
        with pytest.raises(ModelError, match=r"base.*Or leave the dtype out"):
            load_run(run, dtype=torch.bfloat16)
        with pytest.raises(ModelError, match="Put it back"):
            load_run(tmp_path / "checkpoint", dtype=torch.float32)
        if there:
            with pytest.raises(ModelError, match="no longer contains"):
                load_scorer(str(run), head="policy")
            shutil.rmtree(tmp_path / "base")


def test_another_dtype_is_of_the_frozen_weights(tmp_path: Path) -> None:
    """A float32 run scored in bfloat16 keeps its adapters separate; a bfloat16 run is widened exactly."""
    model, tokenizer, run = half_run(tmp_path)
    expected = in_float32(model, tokenizer)[0]
    widened = load_run(tmp_path / "checkpoint", dtype=torch.float32)[0]
    assert torch.equal(scores(widened, batch_of(tokenizer)), expected)
    half = load_run(run, dtype=torch.float16)[0]
    assert half.adapted
    assert half.stock_lm.dtype == torch.float16
    assert difference(scores(half, batch_of(tokenizer)), expected) < ROUNDED


def test_implicit_rewards_are_those_of_the_adapters(tmp_path: Path) -> None:
    model, tokenizer, run = half_run(tmp_path)
    conversations = [c for pair in some_pairs(8) for c in pair.conversations]
    with_them, start = in_float32(model, tokenizer)
    expected = 0.1 * (with_them - start)[1:]
    wide = load_scorer(str(run), head="policy", options=ScoreOptions(dtype="float32"))
    assert difference(torch.tensor([wide.score(conversations)]), expected) < 1e-3
    assert load_scorer(str(run), head="policy").model.adapted  # type: ignore[attr-defined]
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    moved = load_scorer(str(run), head="policy", reference=str(tmp_path / "elsewhere"))
    assert not moved.model.adapted  # type: ignore[attr-defined]
    assert difference(torch.tensor([moved.score(conversations)]), expected) < 1e-3


def test_log_probs_of_a_run_are_its_adapters(tmp_path: Path) -> None:
    model, tokenizer, run = half_run(tmp_path)
    expected = scores(model, batch_of(tokenizer))[1:]
    conversations = [c for pair in some_pairs(8) for c in pair.conversations]
    found = torch.tensor([load_log_prob_scorer(str(run), ScoreOptions(layout="padded")).score(conversations)])
    assert difference(found, expected) < 1e-6


def test_merged_weights_leave_the_device_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second whole model would not fit next to the one that was trained."""
    model, _, _ = half_run(tmp_path)
    fetched: set[int] = set()
    to_cpu = Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        found = to_cpu(tensor)
        fetched.add(found.data_ptr())
        return found

    monkeypatch.setattr(Tensor, "cpu", cpu)
    assert all(tensor.data_ptr() in fetched for tensor in merged_state_dict(model.stock_lm).values())


class Packed(nn.Linear):
    """Stands in for bitsandbytes' Linear4bit: a weight as bytes, with the state to unpack them in the state dict."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.whole = linear.weight.detach().clone()
        self.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight.absmax"] = torch.zeros(4)
        destination[prefix + "weight.quant_state.bitsandbytes__nf4"] = torch.zeros(9, dtype=torch.uint8)


def test_what_is_handed_to_transformers_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This covers layers with and without adapters, in a model that transformers considers quantized."""
    base = save_tiny(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    model = new_model(str(base), tokenizer, lora=LoraOptions(rank=4, targets=["q_proj"]))
    before = merged_state_dict(model.stock_lm)
    for layer in model.stock_lm.model.layers:
        layer.mlp.up_proj = Packed(layer.mlp.up_proj)
        layer.self_attn.q_proj.base_layer = Packed(layer.self_attn.q_proj.base_layer)
    monkeypatch.setattr(lora_module, "dequantize_module_weight", lambda module: getattr(module, "whole", module.weight))
    quantizer = model.stock_lm.hf_quantizer = object()
    description = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.config.quantization_config = description
    save_run(model, tokenizer, info(base, lora={"rank": 4}), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved.keys() == before.keys() | {"score.weight"}
    for name, tensor in before.items():
        assert torch.equal(saved[name], tensor), name
    assert "quantization_config" not in json.loads((tmp_path / "run" / "config.json").read_text())
    assert model.stock_lm.hf_quantizer is quantizer
    assert model.config.quantization_config is description


def test_export_refuses_weights_that_would_start_at_random(tmp_path: Path) -> None:
    _, _, run = half_run(tmp_path)
    weights = load_file(run / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.base_layer.weight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    description = json.loads((run / "hafrm.json").read_text())
    description["sha256"]["model.safetensors"] = checksums(run)["model.safetensors"]
    (run / "hafrm.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="up_proj"):
        export(ExportConfig(run=str(run)))
    assert not list((run / "export").glob("*"))


def pack(options: LoraOptions) -> BitsAndBytesConfig | None:
    """The result of `quantization_config` on a GPU; bitsandbytes can also pack on a CPU."""
    if options.quantize == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def quantized_layers(model: HybridModel) -> Iterator[tuple[str, nn.Module]]:
    """Return the packed layers by their weights' names in a plain model."""
    for name, module in model.stock_lm.named_modules():
        if not isinstance(module, LoraLayer) and getattr(module, "weight", torch.zeros(0)).dtype == torch.uint8:
            yield f"{name.removesuffix('.base_layer')}.weight", module


@pytest.mark.parametrize("targets", [[], ["q_proj", "v_proj"]], ids=["all layers", "some layers"])
def test_qlora_runs_load_unpacked(targets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, which packs weights: pip install bitsandbytes")
    monkeypatch.setattr(starts_module, "quantization_config", pack)
    base = tmp_path / "base"
    save_tiny(base, hidden_size=64, intermediate_size=128)
    tokenizer = load_tokenizer(str(base))
    options = LoraOptions(rank=2, quantize="4bit", targets=targets)
    model = new_model(str(base), tokenizer, lora=options, dtype=torch.bfloat16).eval()
    assert not model.stock_lm.is_gradient_checkpointing
    # Before a forward pass, which rearranges the packed weights on a CPU.
    packed = {name: dequantize_module_weight(layer) for name, layer in quantized_layers(model)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 1e-2)
    description = info(base, lora=asdict(options), dtype="bfloat16", base_digest=weights_digest(model))
    expected = scores(model, batch_of(tokenizer))
    save_run(model, tokenizer, description, tmp_path / "run")
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    merged = load_run(tmp_path / "run", dtype=torch.float32)[0]
    assert difference(scores(merged, batch_of(tokenizer)), expected) < ROUNDED
    start = load_packed_start(tmp_path / "run", merged, description, tokenizer)
    with model.adapters_disabled():
        assert difference(scores(start, batch_of(tokenizer)), scores(model, batch_of(tokenizer))) < ROUNDED
    assert len(packed) == 14
    for name, weight in packed.items():
        # bitsandbytes' layout for CPUs, which the forward pass chose, rounds scales and weights to bfloat16.
        assert (start.stock_lm.get_parameter(name) - weight).abs().max() <= 2**-7 * weight.abs().max(), name
    reward, policy = export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "export")))
    for folder, kind in ((reward, AutoModelForSequenceClassification), (policy, AutoModelForCausalLM)):
        assert not any(kind.from_pretrained(folder, output_loading_info=True)[1].values())
