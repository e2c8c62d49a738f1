"""Every tokenizer ends up with a chat template and a pad token that is not its end-of-sequence token."""

from __future__ import annotations

import pytest
import torch

from hafrm.encoding import DEFAULT_CHAT_TEMPLATE
from hafrm.errors import ModelError
from hafrm.models import tokenizers
from hafrm.models.tokenizers import PAD_TOKEN, prepare_tokenizer, resize_embeddings
from tests.tiny import VOCABULARY, tiny_lm, tiny_tokenizer


def test_what_is_there_stays() -> None:
    tokenizer = prepare_tokenizer(tiny_tokenizer(template="{{ messages[0]['content'] }}"))
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.pad_token == "<pad>"


@pytest.mark.parametrize("pad", ["</s>", None])
def test_pad_is_never_the_end_of_sequence(pad: str | None) -> None:
    """pad == eos would move the token that stock classifiers score."""
    tokenizer = prepare_tokenizer(tiny_tokenizer(template=None, pad=pad))
    assert tokenizer.pad_token == "<pad>"  # the vocabulary holds one to spare
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
