"""Coloured tokens in a real browser: their colours, their numbers, keys, and texts that try to run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hafrm.evaluation.scoring import PairScore
from hafrm.evaluation.tokens import write_tokens
from hafrm.pairs import Message, PreferencePair
from hafrm.report.page import write_page
from tests.report.conftest import DOWN, END, HOME, LEFT, LONG, RIGHT, TAB, UP, WORST, Inspector, write_evaluation

PIECES = [
    ("<script>", -2.0),
    ("alert(1)", -0.3),
    ("</script>\u202e", 1.0),
    ("\n", 0.001),
    ("\U0001f469\u200d\U0001f680", 4.0),
]
REWARDS = [0.5, 0.25, -1.0, -1.0, 2.0]
"""The reward so far after each piece."""
TEXT = "".join(piece for piece, _ in PIECES)


@pytest.fixture(scope="module")
def coloured_page(
    tmp_path_factory: pytest.TempPathFactory, shown: list[PairScore], texts: dict[str, PreferencePair]
) -> str:
    """The address of a page with log-ratios of one model's tokens on the worst pair."""
    folder = tmp_path_factory.mktemp("coloured")
    hostile = replace(
        texts[WORST],
        chosen=(Message("assistant", TEXT),),
        rejected=(Message("assistant", f"{TEXT}{'x' * LONG}"),),
    )
    sides = [{"turns": [pieces], "template": -0.25} for pieces in (PIECES, [*PIECES, ("x" * LONG, None)])]
    chosen = sides[0] | {"rewards": [REWARDS], "reward": 2.5}
    line = {"model": "runs/haf", "data": "code.jsonl", "id": WORST, "chosen": chosen, "rejected": sides[1]}
    other = line | {"id": "code.jsonl:11"}  # its text differs
    write_evaluation(folder, shown)
    write_tokens(folder, [line, other])
    return write_page(folder, title="Evaluation", texts={**texts, WORST: hostile}).as_uri()


@pytest.fixture
def coloured(browser: Any, coloured_page: str) -> Iterator[Inspector]:
    yield Inspector(browser, coloured_page)
    assert browser.execute_script("return window.attacked") is None
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def tokens(part: Any) -> list[Any]:
    return list(part.find_elements("css selector", ".text .token"))


def test_tokens_join_to_the_text_and_hostile_ones_stay_text(coloured: Inspector):
    chosen = coloured.open().find_element("css selector", ".chosen")
    shown = [token.get_attribute("textContent") for token in tokens(chosen)]
    assert shown == [piece.replace("\u202e", "U+202E") for piece, _ in PIECES]
    assert chosen.find_element("css selector", ".text").get_attribute("textContent") == "".join(shown)
    assert coloured.browser.find_elements("css selector", "#list script") == []
    assert len(chosen.find_elements("css selector", ".mark")) == 1


def test_colours_tell_sign_and_size(coloured: Inspector):
    detail = coloured.open()
    classes = [
        token.get_attribute("class").split()[1] for token in tokens(detail.find_element("css selector", ".chosen"))
    ]
    assert classes == ["less-3", "even", "more-2", "even", "more-4"]  # the scale is 4
    marked = tokens(detail)[0]
    assert marked.value_of_css_property("text-decoration-style") == "dotted"
    legend = detail.find_element("css selector", ".legend").text
    assert legend.split()[-9:] == ["−4.00", "−2.00", "−1.00", "−0.50", "0", "+0.50", "+1.00", "+2.00", "+4.00"]


def test_a_tokens_number_is_read_by_pointer_and_by_keyboard(coloured: Inspector):
    chosen = coloured.open().find_element("css selector", ".chosen")
    readout = chosen.find_element("css selector", "[role=status]")
    all_tokens = tokens(chosen)
    assert [token.get_attribute("title").split(";")[0] for token in all_tokens] == [
        *("−2.00", "−0.30", "+1.00", "+0.001", "+4.00")
    ]
    webdriver = pytest.importorskip("selenium.webdriver")
    webdriver.ActionChains(coloured.browser).move_to_element(all_tokens[1]).perform()
    assert readout.text == "“alert(1)” −0.30; reward so far 0.250"
    coloured.find(".opener").send_keys(TAB)
    focused = coloured.browser.switch_to.active_element
    assert focused == all_tokens[0]
    assert readout.text == "“<script>” −2.00; reward so far 0.500"
    focused.send_keys(RIGHT)
    assert readout.text == "“alert(1)” −0.30; reward so far 0.250"
    coloured.browser.switch_to.active_element.send_keys(END)
    assert readout.text.endswith("+4.00; reward so far 2.000")
    coloured.browser.switch_to.active_element.send_keys(LEFT)
    assert readout.text == "“↵” +0.001; reward so far −1.000"
    assert [token.get_attribute("tabindex") for token in all_tokens].count("0") == 1


def opened_table(side: Any) -> Any:
    """The rows of a table of tokens. The browser notifies the page shortly after the click that the element is open."""
    side.find_element("css selector", ".token-table summary").click()
    support = pytest.importorskip("selenium.webdriver.support.ui")
    return support.WebDriverWait(side.parent, 30).until(
        lambda _: side.find_elements("css selector", ".token-table tbody tr")
    )


def test_tokens_stand_in_a_table_too(coloured: Inspector):
    """This includes the reward so far, if the model has one."""
    detail = coloured.open()
    for side, last in ((".chosen", [["+4.00", "2.000"], ["−0.25", "2.500"]]), (".rejected", [["+4.00"], ["−0.25"]])):
        rows = opened_table(detail.find_element("css selector", side))
        assert len(rows) == len(PIECES) + 1
        assert [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows][-2:] == last
        assert "template" in rows[-1].text


def test_a_megabyte_behind_the_tokens_opens_on_demand(coloured: Inspector):
    rejected = coloured.open().find_element("css selector", ".rejected")
    block, button = (rejected.find_element("css selector", f".text{more}") for more in ("", " + button"))
    length = "return [...arguments[0].textContent].length"
    assert coloured.browser.execute_script(length, block) < 1300
    button.click()
    assert coloured.browser.execute_script(length, block) == len(TEXT) + len("U+202E") - 1 + LONG
    assert len(tokens(rejected)) == len(PIECES)


def test_pairs_and_models_without_log_ratios_show_plain_text(coloured: Inspector):
    coloured.choose("model", "dpo")
    coloured.type("search", WORST)
    assert tokens(coloured.open()) == []
    coloured.choose("model", "haf")
    coloured.find("input[name=search]").clear()
    coloured.type("search", "code.jsonl:11")
    detail = coloured.open()
    assert tokens(detail) == []
    assert detail.find_elements("css selector", ".legend") == []


def test_arrow_keys_go_through_the_list(coloured: Inspector):
    openers = coloured.browser.find_elements("css selector", ".opener")
    for key, place in ((DOWN, 1), (DOWN, 2), (UP, 1), (END, -1), (DOWN, -1), (HOME, 0)):
        (coloured.browser.switch_to.active_element if place != 1 or key == UP else openers[0]).send_keys(key)
        assert coloured.browser.switch_to.active_element == openers[place]


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function luminance(colour) {
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
    const share = byte / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
return [...document.querySelectorAll(".swatches .token:not(.even)")].map((token) => {
  const style = getComputedStyle(token);
  const [bright, dark] = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => b - a);
  return (bright + 0.05) / (dark + 0.05);
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_coloured_text_stays_readable(scheme: str, coloured: Inspector):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    coloured.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    coloured.open()
    contrasts = coloured.browser.execute_script(CONTRAST)
    coloured.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(contrasts) == 8
    assert min(contrasts) >= 4.5


def test_coloured_tokens_fit_a_phone(coloured: Inspector):
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    coloured.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        detail = coloured.open()
        detail.find_element("css selector", ".rejected .text + button").click()
        opened_table(detail)
        assert coloured.browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        coloured.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
