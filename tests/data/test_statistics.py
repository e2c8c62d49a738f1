"""Table 1's numbers on pairs counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.data import DataOptions, encode_pairs, length_accuracy, pair_statistics
from hafrm.encoding import ConversationEncoder
from hafrm.pairs import Message, PreferencePair, Prompt
from tests.tiny import pair, some_pairs, tiny_tokenizer

MULTI_TURN = PreferencePair(
    prompt=Prompt((Message("user", "one two"), Message("assistant", "three"), Message("user", "four"))),
    chosen=(Message("assistant", "five\n six"),),
    rejected=(Message("assistant", "7 8 9 10"),),
)


def test_counted_by_hand() -> None:
    found = pair_statistics([MULTI_TURN, pair("a b", "c", "d")])
    assert (found.size, found.prompts, found.turns_per_prompt) == (2, 2, 2.0)
    # A QA is a prompt with one response: 4 + 2, 4 + 4, 2 + 1 and 2 + 1 words.
    assert found.words_per_qa == pytest.approx((6 + 8 + 3 + 3) / 4)
    assert (found.words_per_chosen, found.words_per_rejected) == (1.5, 2.5)
    # "five\n six" is longer than "7 8 9 10" by a character; "c" and "d" tie.
    assert found.length_accuracy == 0.75
    assert found.tokens_per_qa is None


def test_tokens_are_those_of_whole_conversations() -> None:
    pairs = some_pairs(5)
    tokenizer = tiny_tokenizer()
    groups = encode_pairs(pairs, ConversationEncoder(tokenizer), DataOptions())
    texts = [[turn.as_dict() for turn in c.turns] for p in pairs for c in p.conversations]
    expected = sum(len(tokenizer.apply_chat_template(text, return_dict=False)) for text in texts) / len(texts)
    assert pair_statistics(pairs, groups).tokens_per_qa == pytest.approx(expected)


def test_groups_are_counted_once() -> None:
    assert pair_statistics([pair("a", "b", "c"), pair(" A", "d", "e"), pair("x", "y", "z")]).prompts == 2


@pytest.mark.parametrize(("chosen", "rejected", "expected"), [("bb", "a", 1.0), ("a", "bb", 0.0), ("a", "b", 0.5)])
def test_length_accuracy_of_one_pair(chosen: str, rejected: str, expected: float) -> None:
    assert length_accuracy([pair("q", chosen, rejected)]) == expected


text = st.text(min_size=1, max_size=4)


@given(st.lists(st.tuples(text, text), min_size=1))
def test_swapping_the_labels_mirrors_length_accuracy(texts: list[tuple[str, str]]) -> None:
    pairs, swapped = [pair("q", a, b) for a, b in texts], [pair("q", b, a) for a, b in texts]
    assert length_accuracy(pairs) + length_accuracy(swapped) == pytest.approx(1)


def test_no_pairs_have_no_statistics() -> None:
    for describe in (pair_statistics, length_accuracy):
        with pytest.raises(ValueError, match="no pairs"):
            describe([])
