"""Formatting of numbers, names and untrusted texts."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.report.wording import count, interval, p_value, percent, points, short_names, shortened, visible

OVERRIDE = "\u202e"


def test_shares_are_percent_with_one_decimal():
    assert percent(0.75123) == "75.1"
    assert interval((0.751, 0.812), percent) == "[75.1, 81.2]"
    assert interval(None, percent) == ""


@pytest.mark.parametrize(
    ("difference", "worded"),
    [(0.012, "+1.2"), (-0.012, "−1.2"), (0.0, "0.0"), (-0.0001, "0.0"), (0.1, "+10.0"), (-0.1, "−10.0")],
)
def test_differences_have_a_sign_unless_they_round_to_zero(difference: float, worded: str):
    assert points(difference) == worded


@pytest.mark.parametrize(("p", "worded"), [(0.0, "< 0.001"), (0.00099, "< 0.001"), (0.0123, "0.012"), (1.0, "1.000")])
def test_p_values_are_readable(p: float, worded: str):
    assert p_value(p) == worded


def test_nouns_agree_with_their_numbers():
    assert [count(number, "pair") for number in (0, 1, 2500)] == ["0 pairs", "1 pair", "2,500 pairs"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a{OVERRIDE}b", "a⟨U+202E⟩b"),
        ("\x00\x1b[31m", "⟨U+0000⟩⟨U+001B⟩[31m"),
        ("\ud800", "⟨U+D800⟩"),
        ("tab\tline\r\nend", "tab\tline\r\nend"),
        ("👩\u200d🔬 می\u200cخواهم", "👩\u200d🔬 می\u200cخواهم"),
    ],
)
def test_hidden_characters_are_spelt_out(text: str, shown: str):
    assert visible(text) == shown


@given(st.text())
def test_what_is_visible_once_stays_as_it_is(text: str):
    assert visible(visible(text)) == visible(text)


def test_the_script_hides_nothing_that_the_package_shows():
    """`page.js` and `wording.py` name the same characters."""
    script = resources.files("hafrm.report").joinpath("page.js").read_text(encoding="utf-8")
    (listed,) = re.findall(r"HIDDEN =\s*/(\[.*\])/gu;", script)
    hidden = re.compile(re.sub(r"\\u\{(\w+)\}", lambda code: chr(int(code[1], 16)), listed))
    every = [chr(code) for code in range(0x110000)]
    assert [each for each in every if hidden.match(each)] == [each for each in every if visible(each) != each]


def test_shared_folders_are_left_out_of_names():
    assert short_names(["runs/haf", "runs/dpo"]) == {"runs/haf": "haf", "runs/dpo": "dpo"}
    assert short_names(["a/b/c"]) == {"a/b/c": "c"}
    assert short_names(["org/model", "other/model"]) == {"org/model": "org/model", "other/model": "other/model"}
    assert short_names([]) == {}


@given(st.lists(st.text("ab/", min_size=1).filter(lambda name: not name.endswith("/")), unique=True))
def test_short_names_stay_apart(names: list[str]):
    assert len(set(short_names(names).values())) == len(names)


@given(st.text("abc", max_size=30), st.integers(3, 20))
def test_shortened_text_keeps_its_ends(text: str, limit: int):
    short = shortened(text, limit)
    assert len(short) <= limit
    assert short == text or (text.startswith(short.split("…")[0]) and text.endswith(short.split("…")[1]))
