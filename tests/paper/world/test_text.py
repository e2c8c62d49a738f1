from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.paper.world.task import Template, Text, join_items, sentence, uncapital

CAPITAL = Template("what is the capital of {country}", {"country": ("Peru", "Niger", "Nigeria")})


@pytest.mark.parametrize("country", ["Peru", "Niger", "Nigeria"])
@pytest.mark.parametrize("frame", ["{}?", "hey {}", "Tell me, {}? Thanks."])
def test_a_template_reads_back_what_it_was_filled_with(country: str, frame: str) -> None:
    assert CAPITAL.read(frame.format(CAPITAL.fill({"country": country})).lower()) == {"country": country}


@pytest.mark.parametrize(
    "text", ["", "what is the capital of peruvia", "the capital of peru", "what is the capital of"]
)
def test_a_template_reads_nothing_where_it_does_not_stand(text: str) -> None:
    assert CAPITAL.read(text) is None


def test_a_slot_may_hold_what_a_pattern_allows() -> None:
    quoted = Template('deny "{clause}"', {"clause": r'[^"]+'})
    assert quoted.read('please deny "it rains." now') == {"clause": "it rains."}


def test_phrases_are_found_as_whole_words() -> None:
    text = Text("The pen-case, said Ann, ISN'T here.")
    assert text.says("Pen case")
    assert text.says("isn't here")
    assert not text.says("pe")
    assert not text.says("case here")
    assert text.count(("ann", "case", "bob")) == 2
    assert text.words == ["the", "pen", "case", "said", "ann", "isn't", "here"]


def test_sentences_are_split_at_end_marks() -> None:
    assert Text("One two. Three! Four").sentences == [["one", "two"], ["three"], ["four"]]
    assert Text("...").sentences == []


@given(st.text())
def test_any_text_can_be_read(raw: str) -> None:
    text = Text(raw)
    assert sum(map(len, text.sentences)) == len(text.words)


def test_small_helpers() -> None:
    assert join_items(["a"]) == "a"
    assert join_items(["a", "b", "c"]) == "a, b and c"
    assert sentence("it rains") == "It rains."
    assert sentence("why?") == "Why?"
    assert sentence("no!") == "No!"
    assert uncapital("I won") == "I won"
    assert uncapital("I'm here") == "I'm here"
    assert uncapital("It won") == "it won"
