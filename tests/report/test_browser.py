"""The page in a real browser: sorting, filtering, opening a pair, and texts that try to run.

Needs Chromium with its driver (on Debian `apt-get install chromium chromium-driver`) and `pip install selenium`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hafrm.evaluation.scoring import PairScore
from hafrm.pairs import Message, PreferencePair, Prompt
from hafrm.report.page import write_page
from tests.report.conftest import ATTACK, ENTER, LONG, WORST, Inspector, write_evaluation


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, shown: list[PairScore], texts: dict[str, PreferencePair]) -> str:
    """The address of a page with a hostile pair, title and introduction."""
    folder = tmp_path_factory.mktemp("evaluation")
    hostile = replace(
        texts[WORST],
        prompt=Prompt((Message("user", f"{ATTACK} \u202edesrever"),)),
        chosen=(Message("assistant", f"{ATTACK}\u202eabc\u2066\x00"),),
        rejected=(Message("assistant", "x" * LONG),),
    )
    write_evaluation(folder, shown)
    path = write_page(folder, title=f"{ATTACK} evaluation", texts={**texts, WORST: hostile}, intro=ATTACK)
    return path.as_uri()


@pytest.fixture
def inspector(browser: Any, page: str) -> Iterator[Inspector]:
    yield Inspector(browser, page)
    assert browser.execute_script("return window.attacked") is None
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_the_worst_mistakes_stand_first(inspector: Inspector):
    margins = inspector.margins()
    assert margins[0] == -40
    assert margins == sorted(margins)
    assert len(margins) == 50
    assert inspector.find("#shown").text == "50 of 300 matching pairs shown."


def test_more_pairs_follow_on_demand(inspector: Inspector):
    for _ in range(5):
        inspector.find("#more").click()
    assert len(inspector.margins()) == 300
    assert inspector.margins() == sorted(inspector.margins())
    assert not inspector.find("#more").is_displayed()


def test_headings_sort_both_ways(inspector: Inspector):
    assert inspector.sort("margin") == "descending"
    assert inspector.margins() == sorted(inspector.margins(), reverse=True)
    assert inspector.margins()[0] > 0
    assert inspector.sort("length") == "ascending"
    assert inspector.lengths() == sorted(inspector.lengths())
    assert inspector.sort("length") == "descending"
    assert inspector.lengths() == sorted(inspector.lengths(), reverse=True)
    assert inspector.sort("data") == "ascending"
    assert set(inspector.column(2)) == {"arena.jsonl"}
    assert inspector.sort("name") == "ascending"


def test_filters_narrow_the_list(inspector: Inspector):
    inspector.choose("data", "books.jsonl")
    assert set(inspector.column(2)) == {"books.jsonl"}
    assert inspector.find("#shown").text == "50 of 60 matching pairs shown."
    inspector.type("margin-from", "-0.5")
    inspector.type("margin-to", "0.5")
    assert inspector.margins()
    assert all(-0.5 <= margin <= 0.5 for margin in inspector.margins())
    inspector.type("length-from", "1")
    assert inspector.lengths()
    assert all(length >= 1 for length in inspector.lengths())
    inspector.find("button.clear").click()
    assert inspector.find("#shown").text == "50 of 300 matching pairs shown."


def test_outcomes_and_models_filter(inspector: Inspector, shown: list[PairScore]):
    right: dict[str, list[bool]] = {}
    for score in shown:
        right.setdefault(score.id, []).append((score.reward_chosen or 0) > (score.reward_rejected or 0))
    haf = [each[0] for each in right.values()]  # the model that is chosen at first
    counts = {
        "right": sum(haf),
        "wrong": len(haf) - sum(haf),
        "models disagree": sum(len(set(each)) == 2 for each in right.values()),
        "all models wrong": sum(not any(each) for each in right.values()),
    }
    for outcome, count in counts.items():
        inspector.choose("outcome", outcome)
        assert f"of {count} matching" in inspector.find("#shown").text, outcome
    inspector.choose("outcome", "wrong")
    inspector.choose("model", "dpo")
    assert all(-20 < margin < 0 for margin in inspector.margins())


def test_a_number_of_changed_verdicts_shows_those_pairs(inspector: Inspector, shown: list[PairScore]):
    """Clicking "only first" or "only second" lists the pairs whose verdict differs between the two models."""
    right = {(s.model, s.id): (s.reward_chosen or 0) > (s.reward_rejected or 0) for s in shown}
    ids = [s.id for s in shown if (s.data, s.model) == ("books.jsonl", "runs/haf")]
    for outcome, one, other in (("gained", "runs/haf", "runs/dpo"), ("lost", "runs/dpo", "runs/haf")):
        link = inspector.find(f"[data-outcome={outcome}][data-data='3'][data-model='0'][data-other='2']")
        inspector.browser.execute_script("arguments[0].click()", link)
        number = sum(right[one, i] and not right[other, i] for i in ids)
        assert link.text == str(number)
        assert f"{number} of {number} matching" in inspector.find("#shown").text
        assert set(inspector.column(2)) == {"books.jsonl"}


def test_long_pairs_are_found(inspector: Inspector, texts: dict[str, PreferencePair]):
    lengths = [max(len(p.chosen[0].content), len(p.rejected[0].content)) for p in texts.values()]
    inspector.type("longer-from", "150")
    assert f"of {sum(each >= 150 for each in lengths)} matching" in inspector.find("#shown").text


def test_a_table_that_does_not_fit_says_that_it_scrolls(inspector: Inspector):
    """A note appears above the table only if there is more to see."""
    height = "return parseFloat(getComputedStyle(document.querySelector('.scroll'), '::before').height)"
    try:
        for width, shown in ((1440, False), (390, True)):
            metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": False}
            inspector.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            assert (inspector.browser.execute_script(height) > 10) == shown
    finally:
        inspector.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_search_finds_texts_and_names(inspector: Inspector):
    inspector.type("search", "BETTER ANSWER 17.")
    assert len(inspector.margins()) == 5
    inspector.type("search", " no such text")
    assert inspector.margins() == []
    assert inspector.find("#shown").text == "No pair matches these filters."


def test_opening_a_pair_shows_its_texts_and_rewards(inspector: Inspector, texts: dict[str, PreferencePair]):
    inspector.type("search", "code.jsonl:11")
    detail = inspector.open()
    pair = texts["code.jsonl:11"]
    assert inspector.lengths() == [len(pair.chosen[0].content) - len(pair.rejected[0].content)]
    assert detail.find_element("css selector", ".prompt .text").text == pair.prompt.turns[0].content
    assert detail.find_element("css selector", ".chosen .text").text == pair.chosen[0].content
    assert detail.find_element("css selector", ".rejected .text").text == pair.rejected[0].content
    rows = [row.text.split() for row in detail.find_elements("css selector", ".rewards tbody tr")]
    assert [row[0] for row in rows] == ["haf", "baseline", "dpo"]
    for _, *numbers in rows:
        chosen, rejected, margin = (float(number.replace("−", "-")) for number in numbers)
        assert chosen - rejected == pytest.approx(margin, abs=0.0011)
    assert rows[0][1] in detail.find_element("css selector", ".chosen h4").text
    assert rows[0][2] in detail.find_element("css selector", ".rejected h4").text
    higher = "chosen" if float(rows[0][3].replace("−", "-")) > 0 else "rejected"
    headings = detail.find_elements("css selector", "section h4")
    assert [heading.text.split()[0].lower() for heading in headings if "the higher" in heading.text] == [higher]
    inspector.find(".opener").click()
    assert inspector.browser.find_elements("css selector", "tr.detail") == []


def test_a_pair_opens_by_keyboard(inspector: Inspector):
    opener = inspector.find(".opener")
    assert opener.get_attribute("aria-expanded") == "false"
    inspector.browser.execute_script("arguments[0].focus({focusVisible: true})", opener)
    assert opener.value_of_css_property("outline-style") == "solid"
    opener.send_keys(ENTER)
    assert opener.get_attribute("aria-expanded") == "true"
    assert inspector.find("tr.detail").is_displayed()


def test_hostile_texts_show_as_text(inspector: Inspector):
    detail = inspector.open()
    assert detail.find_element("css selector", ".prompt .text").text == f"{ATTACK} U+202Edesrever"
    assert detail.find_element("css selector", ".chosen .text").text == f"{ATTACK}U+202EabcU+2066U+0000"
    assert [mark.text for mark in detail.find_elements("css selector", ".chosen .mark")] == [
        "U+202E",
        "U+2066",
        "U+0000",
    ]
    assert inspector.find("h1").text == f"{ATTACK} evaluation"
    assert inspector.browser.find_elements("css selector", "img") == []


def test_a_line_of_a_megabyte_opens_on_demand_within_the_page(inspector: Inspector):
    rejected = inspector.open().find_element("css selector", ".rejected")
    button, block = rejected.find_element("css selector", "button"), rejected.find_element("css selector", ".text")
    assert len(block.text) == 1201
    assert button.text == "Show all 1,048,576 characters"
    button.click()
    size = "return [arguments[0].textContent.length, document.documentElement.scrollWidth <= innerWidth]"
    assert inspector.browser.execute_script(size, block) == [LONG, True]
    assert button.text == "Show less"
    button.click()
    assert len(block.text) == 1201


def test_the_page_fits_a_phone(inspector: Inspector):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    inspector.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        inspector.open()
        assert inspector.browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert not inspector.find("[data-key=data] button").is_displayed()
    finally:
        inspector.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_follows_the_readers_scheme(inspector: Inspector):
    grounds = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        inspector.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        grounds.append(inspector.find("body").value_of_css_property("background-color"))
    inspector.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds == ["rgba(253, 253, 252, 1)", "rgba(22, 24, 27, 1)"]
