"""Scorers give the rewards that training measured and stock transformers computes, whatever comes with the model.

Reference-free policies, tokenizers without a pad token, either padding side, templates that refuse a conversation, and
models with custom code.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    dynamic_module_utils,
)

from hafrm.data import DataOptions, ReadOptions
from hafrm.errors import BadRowError, ConfigError, ModelError, RefusedError
from hafrm.evaluation.bulk import score_rows
from hafrm.evaluation.options import EvaluateConfig, ScoreConfig
from hafrm.evaluation.run import evaluate
from hafrm.models.export import export
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, ScoreOptions
from hafrm.models.stock import load_causal_lm, quiet_transformers
from hafrm.pairs import Conversation, Message, PreferencePair, Prompt
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from hafrm.training.config import TrainConfig
from hafrm.training.loss import LossConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs, tiny_lm, tiny_tokenizer

CONVERSATIONS = [conversation for pair in some_pairs(20) for conversation in pair.conversations]


def config(base: Path, out: Path, **values: Any) -> TrainConfig:
    """Train two steps on a dozen pairs, which are also the validation pairs."""
    rows = out.parent / "pairs.jsonl"
    rows.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(12)))
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True}
    defaults: dict[str, Any] = {
        "model": str(base),
        "data": [str(rows)],
        "eval_data": [str(rows)],
        "out": str(out),
        "data_options": DataOptions(max_length=128),
        "training": training | {"report_to": []},
    }
    return TrainConfig(**(defaults | values))


def save_classifier(folder: Path, name: str = "llama", *, tokenizer: Any = None, **values: Any) -> Path:
    """Write a stock reward model to disk, as a program without hafrm would."""
    settings = tiny_lm(name, **values).config
    settings.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(settings)
    with torch.no_grad():  # weights of a size that makes rewards differ between texts
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def stock_rewards(folder: Path) -> list[float]:
    """Compute rewards of `CONVERSATIONS` with stock transformers, one by one and without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rewards = []
    for c in CONVERSATIONS:
        messages = [message.as_dict() for message in c.turns]
        ids = tokenizer.apply_chat_template(messages, return_dict=False, return_tensors="pt")
        with torch.no_grad():
            rewards.append(model(input_ids=ids).logits[0, 0].item())
    assert np.std(rewards) > 0.01
    return rewards


@pytest.mark.parametrize("kind", ["simpo", pytest.param("orpo", marks=pytest.mark.slow), "sft"])
def test_policies_without_reference_score_as_validation_measured(kind: str, tmp_path: Path) -> None:
    """`hafrm evaluate --head policy` gives the margins that the run logged, and needs no reference model."""
    base = save_tiny(tmp_path / "base")
    loss = LossConfig(policy_loss=kind, policy_ratio=0.5)
    options = config(base, tmp_path / "run", loss=loss)
    logged = train(options).metrics["eval_policy/margins"]
    assert abs(logged) > 1e-3
    shutil.rmtree(base)
    command = EvaluateConfig(models=[options.out], data=options.eval_data, out=str(tmp_path / "eval"), head="policy")
    (found,) = evaluate(command).as_dict()["models"][options.out]["data"].values()
    assert found["n"] == 12
    assert found["mean_margin"] == pytest.approx(logged, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # GPT-2's absolute positions would count those of left padding
def test_stock_classifiers_score_the_same_on_either_padding_side(name: str, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "classifier", name)
    expected = stock_rewards(folder)
    for side in ("left", "right"):
        for batch_size in (1, 7):
            options = ScoreOptions(batch_size=batch_size, padding_side=side)
            ours = load_scorer(str(folder), options=options).score(CONVERSATIONS)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def gpt2_tokenizer() -> Any:
    """A tokenizer with a single special token and no pad token, like GPT-2's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=DEFAULT_CHAT_TEMPLATE, **specials)


PADLESS = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stock_classifiers_without_a_pad_token_score_in_batches(name: str, tmp_path: Path) -> None:
    """Stock transformers refuses batches in this case; hafrm's batches give what it computes one by one."""
    folder = save_classifier(tmp_path / "classifier", name, tokenizer=gpt2_tokenizer(), **PADLESS)
    expected = stock_rewards(folder)
    for side in ("left", "right"):
        options = ScoreOptions(batch_size=7, padding_side=side, chat_template="default")
        ours = load_scorer(str(folder), options=options).score(CONVERSATIONS)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stock_classifiers_that_pad_with_the_end_are_read_where_they_were_trained(name: str, tmp_path: Path) -> None:
    """TRL saves pad = eos if a tokenizer has no pad token: the reward is then at the token before the end."""
    tokenizer = tiny_tokenizer(pad="</s>")
    folder = save_classifier(tmp_path / "classifier", name, tokenizer=tokenizer, pad_token_id=tokenizer.eos_token_id)
    expected = stock_rewards(folder)
    for side in ("left", "right"):
        ours = load_scorer(str(folder), options=ScoreOptions(batch_size=7, padding_side=side)).score(CONVERSATIONS)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_what_no_head_reads_is_refused(tmp_path: Path) -> None:
    base = str(save_tiny(tmp_path / "base"))
    with pytest.raises(ModelError, match="nothing to combine"):
        load_scorer(base, reference=base, head="combined")
    with pytest.raises(ConfigError, match="add --head combined"):
        load_scorer(base, reference=base, combined_weight=2.0)
    with pytest.raises(ConfigError, match="reference has no effect on the reward head"):
        EvaluateConfig(models=[base], data=["x"], out=str(tmp_path), head="reward", reference=base)


def test_a_template_with_a_clock_scores_the_same_on_another_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ strftime_now('%d %b %Y') }} " + DEFAULT_CHAT_TEMPLATE
    folder = str(save_classifier(tmp_path / "classifier", tokenizer=tiny_tokenizer(template=template)))
    today = load_scorer(folder).score(CONVERSATIONS)
    chat_template_utils = sys.modules["transformers.utils.chat_template_utils"]
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime(2001, 2, 3, tzinfo=UTC)))
    own = AutoTokenizer.from_pretrained(folder)
    assert own.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("03 Feb 2001")
    assert load_scorer(folder).score(CONVERSATIONS) == today


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_runs_without_a_pad_token_score_in_batches(name: str, tmp_path: Path) -> None:
    """The run's model has one more row than its start; both heads and the reference have room for it."""
    base = save_tiny(tmp_path / "base", name, tokenizer=gpt2_tokenizer(), **PADLESS)
    out = str(tmp_path / "run")
    logged = train(config(base, Path(out))).metrics
    assert AutoConfig.from_pretrained(out).pad_token_id == AutoTokenizer.from_pretrained(out).pad_token_id == 257
    for head, metric in (("reward", "rewards/margins"), ("policy", "policy/margins")):
        alone = ScoreOptions(batch_size=1, layout="padded")
        expected = load_scorer(out, head=head, options=alone).score(CONVERSATIONS)
        margins = -np.diff(np.reshape(expected, (-1, 2)))
        assert np.mean(margins[:12]) == pytest.approx(logged[f"eval_{metric}"], abs=1e-5)
        assert np.std(margins) > 1e-3
        together = [ScoreOptions(batch_size=7, layout="padded", padding_side=side) for side in ("left", "right")]
        for options in (*together, ScoreOptions()):  # the last one packs
            ours = load_scorer(out, head=head, options=options).score(CONVERSATIONS)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(load_scorer(out).score(CONVERSATIONS), stock_rewards(Path(out)), rtol=0, atol=1e-5)


ALTERNATING = (
    "{% for message in messages %}"
    "{% if not loop.first and message['role'] == 'user' and loop.previtem['role'] == 'user' %}"
    "{{ raise_exception('two user turns in a row') }}"
    "{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt else '' }}"
)
"""A template that requires alternating turns, like those of Llama 2 and Mistral."""

TWICE = Prompt((Message("user", "Hello?"), Message("user", "Are you there?")))
YES, NO = (Message("assistant", "Yes."),), (Message("assistant", "No."),)
ENDLESS = (Message("assistant", "word " * 60),)


@pytest.fixture
def strict(tmp_path: Path) -> str:
    """The folder of a stock reward model with a template that refuses some conversations."""
    return str(save_classifier(tmp_path / "strict", tokenizer=tiny_tokenizer(template=ALTERNATING)))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five pairs: the template refuses the third's prompt, the fourth's better response is over the limit."""
    one, two, three = some_pairs(3)
    refused = PreferencePair(prompt=TWICE, chosen=YES, rejected=NO)
    long = PreferencePair(prompt=Prompt(TWICE.turns[:1]), chosen=ENDLESS, rejected=NO)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(pair.as_row()) for pair in (one, two, refused, long, three)))
    return path


LIMIT = ScoreOptions(max_length=100)
SKIP = ReadOptions(on_bad_row="skip")


def test_a_scorer_says_which_conversations_the_template_refuses(strict: str) -> None:
    """Over-long conversations are not refused: they just have no reward."""
    scorer = load_scorer(strict, options=LIMIT)
    refused, long = Conversation(TWICE, YES), Conversation(Prompt(TWICE.turns[:1]), ENDLESS)
    with pytest.raises(RefusedError, match="two user turns in a row") as caught:
        scorer.score([CONVERSATIONS[0], refused, long, CONVERSATIONS[1], refused])
    assert list(caught.value.reasons) == [1, 4]
    assert scorer.score([CONVERSATIONS[0], long])[1] is None


def test_a_refused_row_stops_an_evaluation_by_name(strict: str, rows: Path, tmp_path: Path) -> None:
    options = EvaluateConfig(models=[strict], data=[str(rows)], out=str(tmp_path / "eval"), score=LIMIT)
    with pytest.raises(BadRowError, match=r"rows\.jsonl, row 3: .*two user turns in a row") as caught:
        evaluate(options)
    assert (caught.value.source, caught.value.row) == (str(rows), 3)
    assert not (tmp_path / "eval" / "scores.jsonl").exists()


def test_a_refused_row_stops_bulk_scoring_by_name(strict: str, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(BadRowError, match=r"rows\.jsonl, row 3: .*two user turns in a row") as caught:
        score_rows(ScoreConfig(model=strict, data=str(rows), out=str(out), score=LIMIT))
    assert (caught.value.source, caught.value.row) == (str(rows), 3)
    assert not out.exists()


def test_refused_rows_can_be_skipped_in_an_evaluation(strict: str, rows: Path, tmp_path: Path) -> None:
    """Refused pairs keep their position in the raw scores, and the results count them by reason."""
    out = tmp_path / "eval"
    options = EvaluateConfig(models=[strict], data=[str(rows)], out=str(out), score=LIMIT, data_options=SKIP)
    evaluate(options)
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [score["id"] for score in scores] == [f"{rows}:{number}" for number in range(1, 6)]
    assert [score["unscored"] for score in scores] == ["", "", "refused_by_template", "overlong", ""]
    assert [score["reward_chosen"] is None for score in scores] == [False, False, True, True, False]
    found = json.loads((out / "results.json").read_text())["models"][strict]["data"][str(rows)]
    assert (found["n"], found["unscored"]) == (3, 2)
    assert found["unscored_reasons"] == {"refused_by_template": 1, "overlong": 1}


def test_refused_rows_can_be_skipped_in_bulk_scoring(strict: str, rows: Path, tmp_path: Path) -> None:
    """Other rows have the same rewards as in a file without refused rows."""
    out = tmp_path / "out.jsonl"
    counts = score_rows(ScoreConfig(model=strict, data=str(rows), out=str(out), score=LIMIT, data_options=SKIP))
    assert (counts.scored, dict(counts.unscored)) == (3, {"refused_by_template": 1, "overlong": 1})
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [json.loads(row)["prompt"] for row in rows.read_text().splitlines()]
    assert [line.get("unscored") for line in lines] == [None, None, "refused_by_template", "overlong", None]
    alone = load_scorer(strict).score([pair.conversations[0] for pair in some_pairs(3)])
    assert [lines[i]["reward_chosen"] for i in (0, 1, 4)] == pytest.approx(alone, abs=1e-5)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model whose folder contains its own code; what transformers caches of it is cleared afterwards."""
    base = save_tiny(tmp_path / "base")
    (base / "modeling_own.py").write_text(OWN_CODE)
    settings = json.loads((base / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    settings |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (base / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield base
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def test_code_that_comes_with_a_model_runs_only_with_leave(own_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without permission there is an error, and no prompt on which a background program would wait."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    with pytest.raises(ModelError, match="contains custom code"):
        load_causal_lm(str(own_code))
    assert not asked
    assert not any(name.startswith("transformers_modules.") for name in sys.modules)
    assert type(load_causal_lm(str(own_code), trust_remote_code=True)).__name__ == "OwnForCausalLM"


def test_a_model_with_its_own_code_trains_and_scores(own_code: Path, tmp_path: Path) -> None:
    """Checkpoints contain the code; restoring the best one needs no second permission, but scoring the run does."""
    out = tmp_path / "run"
    options = config(own_code, out, trust_remote_code=True)
    result = train(replace(options, training=options.training | {"eval_steps": 1, "save_steps": 1}))
    assert json.loads((out / "manifest.json").read_text())["best_step"] == 1
    kept, first, last = (load_file(f / "model.safetensors") for f in (out, out / "checkpoint-1", out / "checkpoint-2"))
    assert all(torch.equal(kept[name], first[name]) for name in kept)
    assert not torch.equal(kept["score.weight"], last["score.weight"])

    with pytest.raises(ModelError, match="contains custom code"):
        load_scorer(str(out))
    rewards = load_scorer(str(out), trust_remote_code=True).score(CONVERSATIONS[:24])
    margin = -np.diff(np.reshape(rewards, (-1, 2))).mean()
    assert margin == pytest.approx(result.metrics["eval_rewards/margins"], abs=1e-5)
    policy = load_scorer(str(out), head="policy", trust_remote_code=True).score(CONVERSATIONS[:24])
    margin = -np.diff(np.reshape(policy, (-1, 2))).mean()
    assert margin == pytest.approx(result.metrics["eval_policy/margins"], abs=1e-5)
    with pytest.raises(ModelError, match="no AutoModelForSequenceClassification"):
        export(ExportConfig(run=str(out), trust_remote_code=True))
    assert [folder.name for folder in (out / "export").iterdir()] == ["policy"]  # the head that has a stock class


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_encoder_classifiers_score_as_stock_on_either_side(name: str, tmp_path: Path) -> None:
    """RoBERTa counts positions from its pad token on, and BERT reads the first token: both need right padding."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = AutoConfig.for_model(name, vocab_size=260, pad_token_id=3, max_position_embeddings=300, **sizes)
    settings.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15)
    model.save_pretrained(tmp_path / "classifier")
    tiny_tokenizer().save_pretrained(tmp_path / "classifier")
    expected = stock_rewards(tmp_path / "classifier")
    assert np.std(expected) > 1e-3
    for side in ("left", "right"):
        options = ScoreOptions(batch_size=7, padding_side=side)
        ours = load_scorer(str(tmp_path / "classifier"), options=options).score(CONVERSATIONS)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_equal_conversations_are_computed_once_and_score_exactly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise identical responses would differ by rounding, and count as right or wrong at random."""
    scorer = load_scorer(str(save_classifier(tmp_path / "model")), options=ScoreOptions(batch_size=3, device="cpu"))
    forward, sizes = type(scorer)._score_batch, []

    def counted(self: Any, batch: Any) -> Any:
        sizes.append(batch.num_sequences)
        return forward(self, batch)

    monkeypatch.setattr(type(scorer), "_score_batch", counted)
    distinct = list(dict.fromkeys(CONVERSATIONS))
    rewards = scorer.score([*distinct, *distinct[::-1], distinct[3]])
    assert sum(sizes) == len(distinct)
    assert rewards[len(distinct) : -1] == rewards[: len(distinct)][::-1]
    assert rewards[-1] == rewards[3]
    assert rewards[: len(distinct)] == pytest.approx(scorer.score(distinct), abs=1e-6)
