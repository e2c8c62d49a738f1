"""Reward models as other programs save them: scoring and training read them as the program does.

The oracles are stock transformers and PEFT, or the form's own arithmetic on stock hidden states, in float64 and one
sequence at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError, ModelError
from hafrm.models.checkpoints import save_adapter, save_run
from hafrm.models.export import export
from hafrm.models.heads import kept_head
from hafrm.models.identity import model_identity
from hafrm.models.loading import load_scorer
from hafrm.models.lora import quiet_peft
from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions, ScorerChoice
from hafrm.models.starts import check_start, new_model
from hafrm.models.stock import quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import pad_rows
from tests.models.test_checkpoints import info, trained
from tests.tiny import save_tiny, some_pairs, tiny_tokenizer

FULL, LORA = LoraOptions(), LoraOptions(rank=4)
PAIRS = some_pairs(6)
Oracle = Callable[[Tensor], float]


def classifier(folder: Path, name: str = "llama", *, tied: bool = False, labels: int = 1) -> Path:
    """A stock sequence classifier with its tokenizer, as TRL's RewardTrainer saves one."""
    base = save_tiny(folder.parent / f"{folder.name}-base", name, tie_word_embeddings=tied)
    torch.manual_seed(1)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def by_class(folder: Path) -> Oracle:
    """Return the stock classifier's own reward."""
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float64).eval()
    return lambda ids: model(ids).logits[0, 0].item()


def by_hand(folder: Path, weight: Tensor, bias: float = 0.0) -> Oracle:
    """A linear head on the last of the stock causal model's states."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def reward(ids: Tensor) -> float:
        state = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        return (state @ weight.double()[0]).item() + bias

    return reward


def tied_classifier(folder: Path) -> tuple[Path, Oracle]:
    model = classifier(folder / "rm", tied=True)
    return model, by_class(model)


def untied_classifier(folder: Path) -> tuple[Path, Oracle]:
    model = classifier(folder / "rm")
    return model, by_class(model)


def sharded(folder: Path) -> tuple[Path, Oracle]:
    model = classifier(folder / "whole", tied=True)
    with quiet_transformers():
        AutoModelForSequenceClassification.from_pretrained(model).save_pretrained(folder / "rm", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder / "rm")
    assert not (folder / "rm" / "model.safetensors").exists()
    return folder / "rm", by_class(model)


def openrlhf(folder: Path) -> tuple[Path, Oracle]:
    """The config has no labels, which means two by default, and a custom class."""
    model = classifier(folder / "rm")
    config = json.loads((model / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        config.pop(name, None)
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["RewardModel"]}))
    return model, by_class(model)


def openrlhf_value_head(folder: Path) -> tuple[Path, Oracle]:
    model = classifier(folder / "rm")
    oracle = by_class(model)
    weights = load_file(model / "model.safetensors")
    weights["value_head.weight"] = weights.pop("score.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model, oracle


def renamed(folder: Path, name: str, *, flat: bool = False) -> tuple[Path, Oracle]:
    """A classifier whose head has a different name or is a vector."""
    model = classifier(folder / "rm", tied=True)
    oracle = by_class(model)
    weights = load_file(model / "model.safetensors")
    head = weights.pop("score.weight")
    weights[name] = head[0].clone() if flat else head
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model, oracle


def internlm(folder: Path) -> tuple[Path, Oracle]:
    return renamed(folder, "v_head.weight")


def nested(folder: Path) -> tuple[Path, Oracle]:
    return renamed(folder, "model.score.weight")


def vector(folder: Path) -> tuple[Path, Oracle]:
    return renamed(folder, "score.weight", flat=True)


def value_head() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.75])}


def llama_factory(folder: Path) -> tuple[Path, Oracle]:
    model = save_tiny(folder / "rm")
    save_file(value_head(), model / "value_head.safetensors")
    return model, by_hand(model, value_head()["v_head.summary.weight"], 0.75)


def trl_value_head(folder: Path) -> tuple[Path, Oracle]:
    """TRL's value head, saved in the model's file."""
    model = save_tiny(folder / "rm")
    oracle = by_hand(model, value_head()["v_head.summary.weight"], 0.75)
    weights = load_file(model / "model.safetensors") | value_head()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model, oracle


def shaken(model: PeftModel) -> PeftModel:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name or ".modules_to_save." in name:
                weight.normal_(0, 0.2)
    return model.eval()


def peft_adapter(folder: Path) -> tuple[Path, Oracle]:
    """TRL's RewardTrainer with LoRA."""
    base = save_tiny(folder / "base", tie_word_embeddings=True)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"])
    with quiet_transformers(), quiet_peft():
        stock = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        shaken(get_peft_model(stock, config)).save_pretrained(folder / "rm")
        again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float64)
        model = PeftModel.from_pretrained(again, folder / "rm").eval()
    return folder / "rm", lambda ids: model(ids).logits[0, 0].item()


def llama_factory_adapter(folder: Path) -> tuple[Path, Oracle]:
    base = save_tiny(folder / "base")
    with quiet_transformers(), quiet_peft():
        stock = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
        shaken(get_peft_model(stock, config)).save_pretrained(folder / "rm")
        again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        model = PeftModel.from_pretrained(again, folder / "rm").eval()
    save_file(value_head(), folder / "rm" / "value_head.safetensors")
    tiny_tokenizer().save_pretrained(folder / "rm")
    weight = value_head()["v_head.summary.weight"].double()[0]
    return (
        folder / "rm",
        lambda ids: (model(ids, output_hidden_states=True).hidden_states[-1][0, -1] @ weight).item() + 0.75,
    )


def run(folder: Path, lora: LoraOptions = FULL) -> tuple[Path, Oracle]:
    base = save_tiny(folder / "base")
    model, tokenizer = trained(base, lora)
    save_run(model, tokenizer, info(base, lora=vars(lora) if lora.enabled else None), folder / "rm")
    return folder / "rm", by_class(folder / "rm")


def export_of_run(folder: Path) -> tuple[Path, Oracle]:
    source, oracle = run(folder)
    reward, _ = export(ExportConfig(run=str(source)))
    return reward, oracle


def checkpoint_of_lora(folder: Path) -> tuple[Path, Oracle]:
    """An intermediate checkpoint, which contains only adapters."""
    base = save_tiny(folder / "base")
    model, tokenizer = trained(base, LORA)
    description = info(base, lora=vars(LORA))
    save_run(model, tokenizer, description, folder / "merged")
    save_adapter(model, tokenizer, description, folder / "rm")
    return folder / "rm", by_class(folder / "merged")


FORMS = {
    form.__name__: form
    for form in (
        tied_classifier,
        untied_classifier,
        sharded,
        openrlhf,
        openrlhf_value_head,
        llama_factory,
        trl_value_head,
        peft_adapter,
        llama_factory_adapter,
        run,
        export_of_run,
        checkpoint_of_lora,
        internlm,
        nested,
        vector,
    )
}
WITHOUT_LM_HEAD = {"untied_classifier", "openrlhf", "openrlhf_value_head", "export_of_run"}


def token_ids(tokenizer, pair, side: str) -> Tensor:
    messages = [m.as_dict() for m in (*pair.prompt.turns, *getattr(pair, side))]
    return tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")["input_ids"]


@torch.no_grad()
def expected(model: Path, oracle: Oracle) -> np.ndarray:
    tokenizer = load_tokenizer(str(model))
    return np.array([[oracle(token_ids(tokenizer, pair, side)) for side in ("chosen", "rejected")] for pair in PAIRS])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_scored_as_its_own_program_scores_it(form: str, tmp_path: Path) -> None:
    model, oracle = FORMS[form](tmp_path)
    truth = expected(model, oracle)
    assert truth.std() > 0.01
    options = ScoreOptions(chat_template="default")
    found = load_scorer(str(model), options=options).score([c for pair in PAIRS for c in pair.conversations])
    np.testing.assert_allclose(np.array(found).reshape(-1, 2), truth, atol=1e-5)
    assert model_identity(str(model), ScorerChoice(), options)["the model"]


@pytest.mark.parametrize("form", FORMS)
def test_training_begins_with_the_rewards_that_the_model_gave(form: str, tmp_path: Path) -> None:
    """Rewards agree up to the bias of a value head, which is the same for all."""
    model, oracle = FORMS[form](tmp_path)
    log_probs = form not in WITHOUT_LM_HEAD
    start = check_start(str(model), head_init="auto", rewards=True, log_probs=log_probs)
    assert start.head_init == "keep"
    tokenizer = load_tokenizer(str(model))
    ours = new_model(str(model), tokenizer, lora=FULL, head_init="keep", lm_head=log_probs).eval()
    encoder = ConversationEncoder(tokenizer, 128)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in PAIRS]
    with torch.no_grad():
        found = ours(pad_rows(groups, pad_token_id=tokenizer.pad_token_id), log_probs=log_probs)
    assert found.rewards is not None
    shift = 0.75 if "v_head.summary" in start.head else 0.0
    assert ("0.75" in start.head) == bool(shift)
    np.testing.assert_allclose(found.rewards.view(-1, 2).numpy() + shift, expected(model, oracle), atol=1e-5)


@pytest.mark.parametrize("form", sorted(WITHOUT_LM_HEAD))
def test_without_an_lm_head_the_reward_head_alone_is_trained(form: str, tmp_path: Path) -> None:
    """The saved run has no LM head either, so that stock transformers warns about it."""
    model, _ = FORMS[form](tmp_path)
    with pytest.raises(ModelError, match=r"without an LM head \(lm_head.weight\).*--method baseline"):
        check_start(str(model), head_init="auto", rewards=True, log_probs=True)
    tokenizer = load_tokenizer(str(model))
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        new_model(str(model), tokenizer, lora=FULL)
    for name, lora in (("full", FULL), ("lora", LORA)):
        ours = new_model(str(model), tokenizer, lora=lora, head_init="keep", lm_head=False)
        folder = tmp_path / name
        description = info(model, method="baseline", policy_ratio=0.0, lora=vars(lora) if lora.enabled else None)
        save_run(ours, tokenizer, description, folder)
        assert not [tensor for tensor in load_file(folder / "model.safetensors") if "lm_head" in tensor]
        with quiet_transformers():
            _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            _, whole = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert set(report["missing_keys"]) == {"lm_head.weight"}
        assert not whole["missing_keys"]
        conversations = [c for pair in PAIRS for c in pair.conversations]
        again = load_scorer(str(folder)).score(conversations)
        first = load_scorer(str(model)).score(conversations)
        np.testing.assert_allclose(again, first, atol=1e-5)


def test_a_run_that_trained_no_reward_head_saves_none(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    for name, lora in (("full", FULL), ("lora", LORA)):
        model, tokenizer = trained(base, lora)
        folder = tmp_path / name
        description = info(
            base, method="dpo", reward_weight=0.0, policy_ratio=1.0, lora=vars(lora) if lora.enabled else None
        )
        save_run(model, tokenizer, description, folder)
        assert "score.weight" not in load_file(folder / "model.safetensors")
        assert (
            not (folder / "adapter").is_dir()
            or "modules_to_save" in (folder / "adapter" / "adapter_config.json").read_text()
        )
        with quiet_transformers():
            _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert set(report["missing_keys"]) == {"score.weight"}
        conversations = [c for pair in PAIRS for c in pair.conversations]
        assert None not in load_scorer(str(folder)).score(conversations)
        start = check_start(str(folder), head_init="auto", rewards=True, log_probs=True)
        assert start.head_init == "normal"


def with_weights(model: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_heads_that_cant_be_kept_are_refused_by_name(tmp_path: Path) -> None:
    biased = classifier(tmp_path / "biased", tied=True)
    with_weights(biased, lambda weights: weights.update({"score.bias": torch.ones(1)}))
    layered = classifier(tmp_path / "layered", tied=True)

    def two_layers(weights: dict[str, Tensor]) -> None:
        weights["score.2.weight"] = weights.pop("score.weight")
        weights["score.0.weight"] = torch.eye(32)

    with_weights(layered, two_layers)
    many = classifier(tmp_path / "many", tied=True, labels=3)
    for model, words in ((biased, "score.bias"), (layered, "score.0.weight"), (many, "3 labels")):
        for init in ("auto", "keep"):
            with pytest.raises(ModelError, match=rf"{words}.*--head_init normal"):
                check_start(str(model), head_init=init, rewards=True, log_probs=True)
        fresh = check_start(str(model), head_init="normal", rewards=True, log_probs=True)
        assert fresh.head_init == "normal"
    plain = save_tiny(tmp_path / "plain")
    assert kept_head(str(plain)) is None
    with pytest.raises(ModelError, match="no reward head to keep"):
        check_start(str(plain), head_init="keep", rewards=True, log_probs=True)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("rm_head.weight", "LlamaForCausalLM"),
        ("reward_head.weight", "LlamaForRewardModel"),
        ("model.ranker.weight", "LlamaForCausalLM"),
        ("reward_head.2.weight", "LlamaModel"),
    ],
)
def test_a_head_of_an_unknown_form_is_named(name: str, architecture: str, tmp_path: Path) -> None:
    """Such a model neither gets a fresh head nor counts as one without a head."""
    for flat in (False, True):
        if flat and name not in ("rm_head.weight", "reward_head.weight"):
            continue
        model, _ = renamed(tmp_path / str(flat), name, flat=flat)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        shape = r"\[32\]" if flat else r"\[1, 32\]"
        with pytest.raises(ModelError, match=rf"{name} {shape}.*--head_init normal"):
            check_start(str(model))
        with pytest.raises(ModelError, match=rf"{name} {shape}"):
            load_scorer(str(model))
        assert check_start(str(model), head_init="normal").head_init == "normal"


def test_scoring_names_a_head_that_it_cant_read(tmp_path: Path) -> None:
    """The error names its parameters, or its shape and the backbone's width, as in training."""
    for stem in ("score", "v_head"):
        layered, _ = renamed(tmp_path / stem, f"{stem}.2.weight")
        with_weights(layered, lambda weights, stem=stem: weights.update({f"{stem}.0.weight": torch.eye(32)}))
        config = json.loads((layered / "config.json").read_text())
        (layered / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForRewardModel"]}))
        for use in (load_scorer, check_start):
            with pytest.raises(ModelError, match=rf"one linear layer.*{stem}\.0\.weight, {stem}\.2\.weight"):
                use(str(layered))
    for name in ("score.weight", "value_head.weight"):
        wide, _ = renamed(tmp_path / name, "score.weight")
        with_weights(wide, lambda weights, name=name: weights.pop("score.weight"))
        with_weights(wide, lambda weights, name=name: weights.update({name: torch.ones(1, 48)}))
        with pytest.raises(ModelError, match=rf"{name} .*\[1, 48\].*32"):
            load_scorer(str(wide))


def test_a_bias_counts_where_a_model_is_only_scored(tmp_path: Path) -> None:
    """The stock class would ignore it."""
    model = classifier(tmp_path / "rm")
    oracle = by_class(model)
    with_weights(model, lambda weights: weights.update({"score.bias": torch.tensor([2.5])}))
    truth = expected(model, oracle) + 2.5
    found = load_scorer(str(model)).score([c for pair in PAIRS for c in pair.conversations])
    np.testing.assert_allclose(np.array(found).reshape(-1, 2), truth, atol=1e-5)


def test_an_unknown_reward_model_is_refused_by_its_class(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "rm")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForRewardModelWithGating"]}))
    with pytest.raises(ModelError, match="LlamaForRewardModelWithGating"):
        check_start(str(model), head_init="auto", rewards=True, log_probs=True)


def test_adapters_whose_base_is_not_there_name_it(tmp_path: Path) -> None:
    model, _ = peft_adapter(tmp_path)
    path = model / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match=r"gone.*base_model_name_or_path"):
        load_scorer(str(model))
    with pytest.raises(ModelError, match="gone"):
        check_start(str(model), head_init="auto", rewards=True, log_probs=True)


def test_adapters_with_embeddings_of_their_own(tmp_path: Path) -> None:
    """A pad token was added before training, so the adapters come with larger embeddings than the base."""
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True, tokenizer=tiny_tokenizer(pad=None))
    tokenizer = tiny_tokenizer(pad=None)
    tokenizer.add_special_tokens({"pad_token": "<|more|>"})
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"])

    def stock(dtype: torch.dtype) -> torch.nn.Module:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)
        model.resize_token_embeddings(262, mean_resizing=False)
        return model

    with quiet_transformers(), quiet_peft():
        adapted = shaken(get_peft_model(stock(torch.float32), config))
        adapted.save_pretrained(tmp_path / "rm", save_embedding_layers=True)
        oracle = PeftModel.from_pretrained(stock(torch.float64), tmp_path / "rm").eval()
    tokenizer.save_pretrained(tmp_path / "rm")
    truth = expected(tmp_path / "rm", lambda ids: oracle(ids).logits[0, 0].item())
    found = load_scorer(str(tmp_path / "rm")).score([c for pair in PAIRS for c in pair.conversations])
    np.testing.assert_allclose(np.array(found).reshape(-1, 2), truth, atol=1e-5)


def test_4bit_cant_pack_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = peft_adapter(tmp_path)
    monkeypatch.setattr("hafrm.models.starts.quantization_config", lambda lora: object())
    with pytest.raises(ConfigError, match="merge them"):
        new_model(str(model), AutoTokenizer.from_pretrained(tmp_path / "base"), lora=LORA)


def test_a_run_from_openrlhfs_model_says_that_the_place_of_the_reward_changes(tmp_path: Path) -> None:
    for form, moved in ((openrlhf, True), (untied_classifier, False)):
        model, _ = form(tmp_path / form.__name__)
        start = check_start(str(model), rewards=True, log_probs=False)
        assert any("stop token" in note for note in start.notes) == moved
