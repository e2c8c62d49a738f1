"""Stock reward models keep their own heads and their own chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from hafrm.errors import ConfigError, ModelError
from hafrm.models.loading import load_log_prob_scorer, load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.scorers import StockScorer
from hafrm.pairs import Conversation
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from tests.tiny import save_tiny, some_pairs, tiny_tokenizer

CONVERSATIONS = [c for pair in some_pairs(4) for c in pair.conversations]


def stock_reward_model(folder: Path, *, template: str | None = DEFAULT_CHAT_TEMPLATE) -> Path:
    base = save_tiny(folder / "base")
    config = AutoConfig.from_pretrained(base, num_labels=1)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")
    tiny_tokenizer(template=template).save_pretrained(folder / "reward")
    return folder / "reward"


@pytest.mark.parametrize("lost", ["score.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_classifier_that_lacks_weights_does_not_score(lost: str, tmp_path: Path) -> None:
    """transformers would draw them at random, which would make rewards random."""
    folder = stock_reward_model(tmp_path)
    assert isinstance(load_scorer(str(folder)), StockScorer)
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks weights of LlamaForSequenceClassification: {lost}.*reward model"):
        load_scorer(str(folder))


def test_tokens_that_the_embeddings_lack_are_scored_as_the_mean_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in causal models: tokens were added to the tokenizer, but not to the model."""
    folder = stock_reward_model(tmp_path)
    before = load_scorer(str(folder)).score(CONVERSATIONS)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["xyzzy"])
    tokenizer.save_pretrained(folder)
    with caplog.at_level("WARNING", "hafrm"):
        scorer = load_scorer(str(folder))
    assert "xyzzy" in caplog.text
    assert scorer.score(CONVERSATIONS) == pytest.approx(before, abs=1e-6)
    conversation = Conversation.of("Say xyzzy.", "xyzzy!")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    embeddings = model.model.embed_tokens.weight
    messages = [turn.as_dict() for turn in conversation.turns]
    ids = torch.tensor(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
    known = torch.where(ids < len(embeddings), ids, 0)
    vectors = torch.where((ids < len(embeddings))[:, None], embeddings[known], embeddings.mean(dim=0))
    with torch.no_grad():
        expected = model.score(model.model(inputs_embeds=vectors[None]).last_hidden_state[:, -1]).item()
    assert scorer.score([conversation]) == pytest.approx([expected], abs=1e-5)


def test_a_head_of_another_shape_does_not_score(tmp_path: Path) -> None:
    folder = stock_reward_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = torch.zeros(1, 7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError):
        load_scorer(str(folder))


def test_a_stock_reward_model_scores_in_the_dtype_asked_for(tmp_path: Path) -> None:
    folder = stock_reward_model(tmp_path)
    assert load_scorer(str(folder)).model.dtype == torch.float32
    assert load_scorer(str(folder), options=ScoreOptions(dtype="bfloat16")).model.dtype == torch.bfloat16


def test_a_stock_model_without_a_template_asks_for_one(tmp_path: Path) -> None:
    folder = stock_reward_model(tmp_path, template=None)
    with pytest.raises(ModelError, match=r"no chat template.*--score\.chat_template FILE.*default"):
        load_scorer(str(folder))
    policy = save_tiny(tmp_path / "policy", tokenizer=tiny_tokenizer(template=None))
    with pytest.raises(ModelError, match="no chat template"):
        load_scorer(str(policy), head="policy", reference=str(tmp_path / "base"))
    plain = load_scorer(str(folder), options=ScoreOptions(chat_template="default"))
    whole = load_scorer(str(stock_reward_model(tmp_path / "whole")))
    assert plain.score(CONVERSATIONS) == pytest.approx(whole.score(CONVERSATIONS))
    own = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(own)
    given = load_scorer(str(folder), options=ScoreOptions(chat_template=str(tmp_path / "own.jinja")))
    assert given.encoder.tokenizer.chat_template == own
    assert given.score(CONVERSATIONS) != pytest.approx(plain.score(CONVERSATIONS))


def test_a_given_template_takes_the_place_of_the_model_s_own(tmp_path: Path) -> None:
    other = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    (tmp_path / "other.jinja").write_text(other)
    options = ScoreOptions(chat_template=str(tmp_path / "other.jinja"))
    folder = stock_reward_model(tmp_path)
    given = load_scorer(str(folder), options=options)
    assert given.encoder.tokenizer.chat_template == other
    assert given.score(CONVERSATIONS) != pytest.approx(load_scorer(str(folder)).score(CONVERSATIONS))
    bare = load_scorer(str(stock_reward_model(tmp_path / "bare", template=None)), options=options)
    assert given.score(CONVERSATIONS) == pytest.approx(bare.score(CONVERSATIONS))
    policy = str(save_tiny(tmp_path / "policy"))
    assert load_log_prob_scorer(policy, options).encoder.tokenizer.chat_template == other
    with pytest.raises(ConfigError, match="can't be read"):
        load_scorer(str(folder), options=ScoreOptions(chat_template="nowhere.jinja"))


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    folder = stock_reward_model(tmp_path, template=None)
    with pytest.raises(ConfigError, match=r"score\.chat_template: nowhere\.jinja can't be read"):
        load_scorer(str(folder), options=ScoreOptions(chat_template="nowhere.jinja"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_length", 1), ("batch_size", 0), ("tokens_per_batch", 0), ("padding_side", "up"), ("overlong", "split")],
)
def test_options_are_named_as_they_are_given(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^score\.{name} must be"):
        ScoreOptions(**{name: value})
