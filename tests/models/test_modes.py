"""Training without dropout, and references without dropout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hafrm.encoding import TokenGroup
from hafrm.models.checkpoints import save_run
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.modules import disable_dropout, evaluating
from hafrm.models.options import LoraOptions
from hafrm.models.references import adapter_off_reference, frozen_copy_reference, precompute_reference
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import pad_rows
from tests.models.test_checkpoints import info
from tests.tiny import save_tiny

DROPOUT = {
    "gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "phi": {"attention_dropout": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
}
GROUPS = [TokenGroup((1, 10, 11, 12), ((20, 21, 22, 2), (30, 2))), TokenGroup((1, 40), ((50, 2), (60, 61, 62, 2)))]
BATCH = pad_rows(GROUPS, pad_token_id=3)
PADDED = Layout(packed=False, pad_token_id=3)


def model_with_dropout(folder: Path, name: str, *, lora: LoraOptions | None = None, **options):
    base = save_tiny(folder / "base", name, **DROPOUT[name])
    return new_model(str(base), load_tokenizer(str(base)), lora=lora or LoraOptions(rank=4), **options)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", DROPOUT)
def test_training_mode_is_deterministic(name: str, packed: bool, tmp_path: Path) -> None:
    """Packed attention gets its dropout as an argument, stock attention in other ways."""
    model = model_with_dropout(tmp_path, name)
    layout = choose_layout(model, 3, max_length=64) if packed else PADDED
    assert layout.packed == packed
    batch = layout.batch(GROUPS)
    expected = model.eval()(batch).log_probs
    model.train()
    for _ in range(2):
        torch.testing.assert_close(model(batch).log_probs, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_can_be_kept(name: str, tmp_path: Path) -> None:
    model = model_with_dropout(tmp_path, name, disable_dropout=False).train()
    assert not torch.allclose(model(BATCH).log_probs, model(BATCH).log_probs)


@pytest.mark.parametrize("disabled", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "phi"])
def test_the_three_references_agree_while_training(name: str, disabled: bool, tmp_path: Path) -> None:
    """This holds even if dropout is on and the model is in training mode when the reference is computed."""
    model = model_with_dropout(tmp_path, name, disable_dropout=disabled, lora=LoraOptions(rank=4, dropout=0.5)).train()
    modes = [module.training for module in model.modules()]
    precomputed = precompute_reference(model, GROUPS, layout=PADDED, batch_size=4, cache=tmp_path / "cache")
    frozen = frozen_copy_reference(model)(BATCH)
    off = adapter_off_reference(model)(BATCH)
    torch.testing.assert_close(off, frozen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(off.view(-1, 2).numpy(), precomputed, rtol=1e-5, atol=1e-5)
    assert [module.training for module in model.modules()] == modes


def test_dropout_of_adapters_is_theirs(tmp_path: Path) -> None:
    model = model_with_dropout(tmp_path, "gpt2", lora=LoraOptions(rank=4, dropout=0.25))
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert {rate for name, rate in rates.items() if "lora_dropout" in name} == {0.25}
    assert {rate for name, rate in rates.items() if "lora_dropout" not in name} == {0.0}


@pytest.mark.parametrize("name", ["gpt2", "phi"])
def test_the_saved_config_keeps_the_bases_values(name: str, tmp_path: Path) -> None:
    model = model_with_dropout(tmp_path, name, lora=LoraOptions())
    save_run(model, load_tokenizer(str(tmp_path / "base")), info(tmp_path / "base"), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {field: config[field] for field in DROPOUT[name]} == DROPOUT[name]


def test_numbers_that_layers_use_at_call_time_become_zero() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout, self.layerdrop, self.dropout_p, self.drop_last, self.eps = 0.1, 0.2, 0.3, True, 1e-5
            self.inner = nn.Sequential(nn.Dropout1d(0.4), nn.AlphaDropout(0.5))

    layer = Layer()
    disable_dropout(layer)
    assert (layer.attention_dropout, layer.layerdrop, layer.dropout_p) == (0.0, 0.0, 0.0)
    assert [module.p for module in layer.inner] == [0.0, 0.0]
    assert layer.drop_last is True
    assert layer.eps == 1e-5


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[0].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, False, True]
