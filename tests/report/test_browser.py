"""The page in a real browser: sorting, filtering, opening a pair, and texts that try to run.

Needs Chromium with its driver (on Debian `apt-get install chromium chromium-driver`) and `pip install selenium`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hafrm.evaluation.scoring import PairScore
from hafrm.evaluation.tokens import TOKENS_FILE, write_tokens
from hafrm.pairs import Message, PreferencePair
from hafrm.report import write_page
from tests.report.conftest import write_evaluation

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LEFT, UP, RIGHT, END, TAB = "\ue012", "\ue013", "\ue014", "\ue010", "\ue004"
HOME, DOWN, ENTER = "\ue011", "\ue015", "\ue007"  # WebDriver's names of keys
LONG = 2**20
ATTACK = "</script><script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: no chromium with chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


WORST = "code.jsonl:9"


@pytest.fixture(scope="module")
def shown(scores: list[PairScore]) -> list[PairScore]:
    """Scores of which one model's on the hostile pair is by far the worst."""
    return [
        replace(s, reward_chosen=-20.0, reward_rejected=20.0) if s.id == WORST and s.model == "runs/haf" else s
        for s in scores
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, shown: list[PairScore], texts: dict[str, PreferencePair]) -> str:
    """The address of a page with a hostile pair, title and introduction."""
    folder = tmp_path_factory.mktemp("evaluation")
    hostile = replace(
        texts[WORST],
        prompt=(Message("user", f"{ATTACK} \u202edesrever"),),
        chosen=(Message("assistant", f"{ATTACK}\u202eabc\u2066\x00"),),
        rejected=(Message("assistant", "x" * LONG),),
    )
    write_evaluation(folder, shown)
    path = write_page(folder, title=f"{ATTACK} evaluation", texts={**texts, WORST: hostile}, intro=ATTACK)
    return path.as_uri()


class Inspector:
    """The list of pairs, handled as a person would."""

    def __init__(self, browser: Any, page: str) -> None:
        self.browser = browser
        browser.get(page)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def column(self, number: int) -> list[str]:
        """The texts of a column of the list."""
        script = "return [...document.querySelectorAll(`#list > tbody > tr > td:nth-child(${arguments[0]})`)]"
        return list(self.browser.execute_script(f"{script}.map((cell) => cell.textContent)", number))

    def margins(self) -> list[float]:
        return [float(text.replace("−", "-")) for text in self.column(3)]

    def lengths(self) -> list[int]:
        return [int(text.replace("−", "-").replace(",", "")) for text in self.column(4)]

    def sort(self, key: str) -> str:
        """Press a column's heading; returns its aria-sort."""
        self.find(f"[data-key={key}] button").click()
        sorted_by = self.browser.find_elements("css selector", "#list [aria-sort]")
        assert [head.get_attribute("data-key") for head in sorted_by] == [key]
        return str(sorted_by[0].get_attribute("aria-sort"))

    def choose(self, name: str, text: str) -> None:
        """Choose an option by keyboard."""
        select = self.find(f"select[name={name}]")
        options = [option.text for option in select.find_elements("css selector", "option")]
        select.send_keys(HOME + options.index(text) * DOWN)

    def type(self, name: str, text: str) -> None:
        self.find(f"input[name={name}]").send_keys(text)

    def open(self, number: int = 0) -> Any:
        """Open the pair of a row; returns what was opened."""
        self.browser.find_elements("css selector", ".opener")[number].click()
        return self.find("tr.detail")


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
    inspector.find("button[type=reset]").click()
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
    assert detail.find_element("css selector", ".prompt .text").text == pair.prompt[0].content
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


PIECES = [
    ("<script>", -2.0),
    ("alert(1)", -0.3),
    ("</script>\u202e", 1.0),
    ("\n", 0.001),
    ("\U0001f469\u200d\U0001f680", 4.0),
]
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
    line = {"model": "runs/haf", "data": "code.jsonl", "id": WORST, "chosen": sides[0], "rejected": sides[1]}
    other = line | {"id": "code.jsonl:11"}  # whose text is another
    write_evaluation(folder, shown)
    write_tokens(folder, [line, other])
    assert (folder / TOKENS_FILE).is_file()
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
    assert [token.get_attribute("title") for token in all_tokens] == ["−2.00", "−0.30", "+1.00", "+0.001", "+4.00"]
    webdriver = pytest.importorskip("selenium.webdriver")
    webdriver.ActionChains(coloured.browser).move_to_element(all_tokens[1]).perform()
    assert readout.text == "“alert(1)” −0.30"
    coloured.find(".opener").send_keys(TAB)
    focused = coloured.browser.switch_to.active_element
    assert focused == all_tokens[0]
    assert readout.text == "“<script>” −2.00"
    focused.send_keys(RIGHT)
    assert readout.text == "“alert(1)” −0.30"
    coloured.browser.switch_to.active_element.send_keys(END)
    assert readout.text.endswith("+4.00")
    coloured.browser.switch_to.active_element.send_keys(LEFT)
    assert readout.text == "“↵” +0.001"
    assert [token.get_attribute("tabindex") for token in all_tokens].count("0") == 1


def test_tokens_stand_in_a_table_too(coloured: Inspector):
    chosen = coloured.open().find_element("css selector", ".chosen")
    chosen.find_element("css selector", ".token-table summary").click()
    rows = chosen.find_elements("css selector", ".token-table tbody tr")
    assert len(rows) == len(PIECES) + 1
    assert [row.find_element("css selector", "td").text for row in rows][-2:] == ["+4.00", "−0.25"]
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
        detail.find_element("css selector", ".token-table summary").click()
        assert coloured.browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        coloured.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
