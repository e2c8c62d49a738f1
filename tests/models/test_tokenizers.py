"""Every tokenizer ends up with a chat template and a pad token that is not its end-of-sequence token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hafrm.errors import ModelError
from hafrm.models import tokenizers
from hafrm.models.loading import load_scorer
from hafrm.models.tokenizers import (
    PAD_TOKEN,
    load_tokenizer,
    prepare_tokenizer,
    require_same_tokenizer,
    resize_embeddings,
)
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from tests.tiny import VOCABULARY, save_tiny, some_pairs, tiny_lm, tiny_tokenizer


def test_what_is_there_stays() -> None:
    tokenizer = prepare_tokenizer(tiny_tokenizer(template="{{ messages[0]['content'] }}"))
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.pad_token == "<pad>"


@pytest.mark.parametrize("pad", ["</s>", None])
def test_pad_is_never_the_end_of_sequence(pad: str | None) -> None:
    """pad == eos would move the token that stock classifiers score."""
    tokenizer = prepare_tokenizer(tiny_tokenizer(template=None, pad=pad))
    assert tokenizer.pad_token == "<pad>"  # the vocabulary has an unused one
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template == DEFAULT_CHAT_TEMPLATE


def test_a_pad_token_is_added_where_there_is_none_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(pad=None)
    monkeypatch.setattr(tokenizers, "_KNOWN_PADS", ())
    tokenizer = prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == PAD_TOKEN
    assert tokenizer.pad_token_id == VOCABULARY
    model = tiny_lm()
    before = model.get_input_embeddings().weight.clone()
    resize_embeddings(model, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[:VOCABULARY], before)


def test_tokens_that_the_model_lacks_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The pad token that hafrm adds is no surprise."""
    tokenizer = prepare_tokenizer(tiny_tokenizer(pad=None))
    resize_embeddings(tiny_lm(), tokenizer)
    assert not caplog.records
    tokenizer.add_tokens(["<call>"])
    models = [tiny_lm(vocab_size=VOCABULARY - 1) for _ in range(2)]
    for model in models:
        model.name_or_path = "some/model"
        resize_embeddings(model, tokenizer)
        assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    (record,) = caplog.records
    assert "some/model" in record.getMessage()
    assert str(VOCABULARY - 1) in record.getMessage()


def test_embeddings_never_shrink() -> None:
    """Phi-2 has more rows than its tokenizer has tokens; they stay."""
    model = tiny_lm(vocab_size=VOCABULARY + 50)
    resize_embeddings(model, tiny_tokenizer())
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY + 50


@pytest.mark.parametrize(
    ("clock", "fixed"),
    [
        ('{%- set date_string = strftime_now("%d %b %Y") %}{{ date_string }}', "26 Jul 2024"),
        ("{%- if strftime_now is defined %}{{ strftime_now( '%Y-%m-%d' ) }}{% endif %}", "2024-07-26"),
    ],
)
def test_todays_date_is_fixed(clock: str, fixed: str) -> None:
    tokenizer = prepare_tokenizer(tiny_tokenizer(template=clock))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == fixed


def test_the_date_is_fixed_in_every_template_of_several() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "x", "tools": "{{ strftime_now('%Y') }}"}
    assert prepare_tokenizer(tokenizer).chat_template == {"default": "x", "tools": '{{ "2024" }}'}


def test_no_template_and_no_end_is_an_error() -> None:
    tokenizer = tiny_tokenizer(template=None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        prepare_tokenizer(tokenizer)


def other_tokenizer(change: str) -> object:
    """A tokenizer that maps some text to other ids."""
    if change == "order":
        return tiny_tokenizer_of(["<s>", "<unk>", "</s>", "<pad>"])
    return tiny_tokenizer_of(["<unk>", "<s>", "</s>", "<pad>"], merges=[("e", "s")])


def tiny_tokenizer_of(specials: list[str], merges: list[tuple[str, str]] = ()) -> object:
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("change", ["order", "merge"])
def test_a_reference_of_another_tokenizer_is_refused(change: str, tmp_path: Path) -> None:
    """The tokenizers have other ids for the same tokens, or split a text differently."""
    policy = save_tiny(tmp_path / "policy")
    reference = save_tiny(tmp_path / "reference", tokenizer=other_tokenizer(change), vocab_size=270)
    with pytest.raises(ModelError, match=r"reference can't be the reference of .*policy.*tokenizers differ"):
        load_scorer(str(policy), head="policy", reference=str(reference))


def test_the_same_tokenizer_serves_whatever_it_was_saved_with(tmp_path: Path) -> None:
    """A different template, pad token or padded embedding size is accepted, as is a missing tokenizer."""
    policy = save_tiny(tmp_path / "policy", tokenizer=tiny_tokenizer(pad=None))
    conversations = [conversation for pair in some_pairs(2) for conversation in pair.conversations]
    for name, tokenizer, rows in (
        ("same", tiny_tokenizer(), VOCABULARY),
        ("padded", tiny_tokenizer(template=None, pad=None), 320),
        ("bare", tiny_tokenizer(), VOCABULARY),
    ):
        reference = save_tiny(tmp_path / name, tokenizer=tokenizer, vocab_size=rows)
        if name == "bare":
            for path in reference.glob("token*"):
                path.unlink()
        scorer = load_scorer(str(policy), head="policy", reference=str(reference))
        assert None not in scorer.score(conversations)


def test_a_token_that_only_the_policy_has_counts_where_text_holds_it(tmp_path: Path) -> None:
    """New tokens of a chat template, which a base model encodes as letters."""
    template = "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}"
    reference = save_tiny(tmp_path / "reference")
    policy = tiny_tokenizer(template=template)
    require_same_tokenizer(policy, "policy", str(reference))
    policy.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    with pytest.raises(ModelError, match="same text"):
        require_same_tokenizer(policy, "policy", str(reference))
    unused = load_tokenizer(str(reference))
    unused.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    require_same_tokenizer(unused, "policy", str(reference))


def test_two_tokens_that_changed_places_are_found_though_no_text_here_has_them(tmp_path: Path) -> None:
    reference = save_tiny(tmp_path / "reference")
    path = reference / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    one, two = (token for token, place in vocabulary.items() if place in (VOCABULARY - 2, VOCABULARY - 1))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ModelError, match="is token"):
        require_same_tokenizer(tiny_tokenizer(), "policy", str(reference))
