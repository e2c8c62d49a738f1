"""From pairs to token ids: pairs that do not fit are left out and counted, or stop the run, depending on options."""

from __future__ import annotations

from typing import Any

import pytest

from hafrm.data import DataOptions, encode_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import BadRowError, BadRowReason, DataError
from hafrm.pairs import Message, PreferencePair, Prompt
from tests.test_encoding import STRICT_TEMPLATE
from tests.tiny import pair, some_pairs, tiny_tokenizer

# In bytes, with the plain template: "<s>Human: Hi\n\nAssistant:" 22, " yes</s>" 5.
SHORT = pair("Hi", "yes", "no", row=1)
LONG_ANSWER = pair("Hi", "no", "yes" * 20, row=2)
LONG_PROMPT = pair("Hi" * 30, "yes", "no", row=3)
SYSTEM = PreferencePair(
    prompt=Prompt((Message("system", "x"), Message("user", "Hi"))),
    chosen=(Message("assistant", "yes"),),
    rejected=(Message("assistant", "no"),),
    source="test",
    row=4,
)


def encoder(**options: Any) -> ConversationEncoder:
    return ConversationEncoder(tiny_tokenizer(), **{"max_length": 40, **options})


def test_groups_stand_in_the_order_of_their_pairs_chosen_first() -> None:
    pairs = some_pairs(12)
    encoded = encode_pairs(pairs, encoder(max_length=512), DataOptions())
    assert encoded.kept.tolist() == list(range(12))
    assert encoded.account.dropped == {}
    for one, group in zip(pairs, encoded, strict=True):
        texts = [tiny_tokenizer().decode(ids, skip_special_tokens=True) for ids in group.responses]
        assert texts == [f" {one.chosen[0].content}", f" {one.rejected[0].content}"]


def test_drop_leaves_out_and_counts() -> None:
    encoded = encode_pairs([LONG_PROMPT, SHORT, LONG_ANSWER, LONG_ANSWER], encoder(), DataOptions())
    assert encoded.kept.tolist() == [1]
    assert len(encoded) == 1
    assert encoded.account.dropped == {"overlong_prompt": 1, "overlong": 2}


def test_truncate_keeps_what_has_room_for_a_response() -> None:
    encoded = encode_pairs([SHORT, LONG_ANSWER], encoder(overlong="truncate"), DataOptions(overlong="truncate"))
    assert encoded.kept.tolist() == [0, 1]
    assert encoded[1].lengths == (26, 40)
    assert encoded.account.dropped == {}


def test_truncate_stops_at_a_prompt_that_fills_the_limit() -> None:
    with pytest.raises(BadRowError, match=r"test, row 3: `prompt` alone fills the limit of 40 tokens") as caught:
        encode_pairs([SHORT, LONG_PROMPT], encoder(overlong="truncate"), DataOptions())
    assert caught.value.reason == BadRowReason.PROMPT_TOO_LONG


def test_truncate_skips_and_counts_such_prompts_if_told_to() -> None:
    options = DataOptions(on_bad_row="skip")
    encoded = encode_pairs([LONG_PROMPT, SHORT], encoder(overlong="truncate"), options)
    assert encoded.kept.tolist() == [1]
    assert encoded.account.dropped == {"prompt_too_long": 1}


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    strict = ConversationEncoder(tiny_tokenizer(template=STRICT_TEMPLATE))
    with pytest.raises(BadRowError, match=r"test, row 4: .*refuses the conversation: no system turns\. Change"):
        encode_pairs([SHORT, SYSTEM], strict, DataOptions())
    encoded = encode_pairs([SHORT, SYSTEM, SHORT], strict, DataOptions(on_bad_row="skip"))
    assert (len(encoded), encoded.account.dropped) == (2, {"refused_by_template": 1})


def test_nothing_left_is_an_error_with_a_remedy() -> None:
    with pytest.raises(
        DataError, match=r"None of the 2 pairs .* 40` \(1 overlong, 1 overlong_prompt\)\. Raise the lim"
    ):
        encode_pairs([LONG_ANSWER, LONG_PROMPT], encoder(), DataOptions())
    with pytest.raises(DataError, match="no pairs"):
        encode_pairs([], encoder(), DataOptions())
