"""Implicit rewards: policy and reference have the same dtype and the right weights, and log-probs are checked."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hafrm.errors import ConfigError, ModelError
from hafrm.models import hybrid, tokenizers
from hafrm.models.checkpoints import load_run, save_adapter, save_run
from hafrm.models.hybrid import HybridModel, logit_transform, new_reward_head
from hafrm.models.loading import load_log_prob_scorer, load_scorer
from hafrm.models.options import LoraOptions, ScoreOptions
from hafrm.models.references import weights_digest
from hafrm.models.scorers import HybridScorer
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import pad_rows
from tests.models.test_checkpoints import info, trained
from tests.models.test_hybrid import GROUPS
from tests.tiny import save_tiny, some_pairs, tiny_tokenizer

CONVERSATIONS = [c for pair in some_pairs(6) for c in pair.conversations]
LORA = LoraOptions(rank=4)


def save_start(base: Path, folder: Path, lora: LoraOptions | None = None, *, dtype=torch.float32) -> None:
    """Save a run without any training step."""
    tokenizer = load_tokenizer(str(base))
    model = new_model(str(base), tokenizer, lora=lora or LoraOptions(), dtype=dtype)
    values = {"method": "dpo", "reward_weight": 0.0, "policy_ratio": 1.0, "lora": asdict(lora) if lora else None}
    description = info(base, base_digest=weights_digest(model), **values)
    save_run(model, tokenizer, description, folder)
    if lora:
        save_adapter(model, tokenizer, description, folder.with_name("checkpoint"))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"layout": "padded", "dtype": "float32"}], ids=str)
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_without_a_step_has_implicit_rewards_of_zero(lora, options: dict, tmp_path: Path) -> None:
    """The base is in bfloat16 and the run in float32: the reference must use the policy's dtype."""
    base = save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    save_start(base, tmp_path / "run", lora)
    for folder in ["run", *(["checkpoint"] if lora else [])]:
        scorer = load_scorer(str(tmp_path / folder), options=ScoreOptions(**options))
        assert isinstance(scorer, HybridScorer)
        expected = getattr(torch, options.get("dtype", "float32"))
        assert scorer.model.stock_lm.dtype == scorer.reference.stock_lm.dtype == expected
        np.testing.assert_allclose(scorer.score(CONVERSATIONS), 0, rtol=0, atol=1e-6)


def test_a_stock_policy_and_its_reference_share_a_dtype(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    tuned = save_tiny(tmp_path / "tuned")
    scorer = load_scorer(str(tuned), head="policy", reference=str(base))
    assert scorer.model.stock_lm.dtype == scorer.reference.stock_lm.dtype == torch.float32


def test_a_stock_policys_implicit_reward_is_a_tenth_of_its_log_ratio(tmp_path: Path) -> None:
    """DPO's usual beta, which applies to implicit rewards of models without a recorded beta."""
    base, tuned = str(save_tiny(tmp_path / "base")), str(save_tiny(tmp_path / "tuned", seed=1))
    rewards = load_scorer(tuned, head="policy", reference=base).score(CONVERSATIONS)
    of_tuned, of_base = (np.array(load_log_prob_scorer(name).score(CONVERSATIONS)) for name in (tuned, base))
    np.testing.assert_allclose(rewards, 0.1 * (of_tuned - of_base), rtol=0, atol=1e-5)


def test_a_pad_token_that_was_added_changes_no_implicit_reward(tmp_path: Path, monkeypatch) -> None:
    """The added token's row of the LM head is part of every softmax: policy and reference must have the same one."""
    monkeypatch.setattr(tokenizers, "_KNOWN_PADS", ())
    base = save_tiny(tmp_path / "base", "phi", tokenizer=tiny_tokenizer(pad=None))  # its LM head has a bias
    save_start(base, tmp_path / "run", LORA)
    for folder in ("run", "checkpoint"):
        np.testing.assert_allclose(load_scorer(str(tmp_path / folder)).score(CONVERSATIONS), 0, rtol=0, atol=1e-6)


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"score\.dtype"):
        ScoreOptions(dtype="int8")


def test_a_base_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    save_start(base, tmp_path / "run", LORA)
    load_scorer(str(tmp_path / "run"))
    shutil.move(base, tmp_path / "moved")
    save_tiny(base, seed=5)
    with pytest.raises(ModelError, match=r"no longer contains.*--reference"):
        load_scorer(str(tmp_path / "run"))
    with pytest.raises(ModelError, match=r"no longer contains.*base_model.*hafrm\.json"):
        load_scorer(str(tmp_path / "checkpoint"))
    moved = load_scorer(str(tmp_path / "run"), reference=str(tmp_path / "moved"))
    np.testing.assert_allclose(moved.score(CONVERSATIONS), 0, rtol=0, atol=1e-6)


def test_a_base_that_has_gone_is_named_with_the_remedy(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    save_start(base, tmp_path / "run", LORA)
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"reference policy.*no such folder.*--reference"):
        load_scorer(str(tmp_path / "run"))
    with pytest.raises(ModelError, match=r"adapters.*no such folder.*base_model.*hafrm\.json"):
        load_run(tmp_path / "checkpoint")


def test_log_probs_are_tried_before_they_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with unsupported logits is refused for implicit rewards, but its reward head still scores."""
    base = save_tiny(tmp_path / "base", "cohere")
    model, tokenizer = trained(base)
    save_run(model, tokenizer, info(base, combined_weight=1.0), tmp_path / "run")
    monkeypatch.setattr(hybrid, "logit_transform", lambda config: hybrid.LogitTransform())
    for head in ("policy", "combined"):
        with pytest.raises(ModelError, match="score with `--head reward`"):
            load_scorer(str(tmp_path / "run"), head=head)
    assert all(np.isfinite(load_scorer(str(tmp_path / "run"), head="reward").score(CONVERSATIONS)))


def test_the_reference_is_tried_too(tmp_path: Path) -> None:
    base, strange = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "strange", "cohere")
    save_start(base, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match="CohereForCausalLM"):
        patch.setattr(hybrid, "logit_transform", lambda config: hybrid.LogitTransform())
        load_scorer(str(tmp_path / "run"), reference=str(strange))


MULTIPLIED = {
    "hyperclovax": {"logits_scaling": 4.0, "num_key_value_heads": 2},
    "falcon_h1": {
        "lm_head_multiplier": 0.25,
        "num_key_value_heads": 2,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
}


@pytest.mark.parametrize("name", MULTIPLIED)
def test_models_that_multiply_their_logits(name: str) -> None:
    """HyperCLOVA X multiplies where Granite divides, Falcon-H1 names it differently; stock logits are the oracle."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(name, vocab_size=260, pad_token_id=3, **sizes, **MULTIPLIED[name])
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        causal_lm.get_output_embeddings().weight.mul_(20)
    model = HybridModel(causal_lm, new_reward_head(config.hidden_size, init="zero", seed=0, dtype=causal_lm.dtype))
    assert model.logit_transform.scale in (4.0, 0.25)
    model.check_policy_head(pad_rows(GROUPS, pad_token_id=3), tolerance=1e-4)


def test_a_multiplier_before_the_soft_cap() -> None:
    config = AutoConfig.for_model("muse_glimmer").get_text_config()
    transform = logit_transform(config)
    assert transform.scale == config.output_multiplier
    assert transform.softcap == config.final_logit_softcapping
