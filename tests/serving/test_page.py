"""The page at `/` in a real browser: two rewards, their probability, and texts that try to run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from tests.report.conftest import browser  # noqa: F401
from tests.report.test_browser import ATTACK
from tests.serving.conftest import live


@pytest.fixture(scope="module", params=[None, "s3cret"], ids=["open", "key"])
def site(request: pytest.FixtureRequest, scorer: HybridScorer) -> Iterator[tuple[str, str | None]]:
    """The address and the key of a server whose model has a hostile name."""
    with live(scorer, models=[ATTACK], api_key=request.param) as address:
        yield address, request.param


class Page:
    """The form, filled in as a user would."""

    def __init__(self, browser: Any, address: str) -> None:  # noqa: F811
        self.browser, self.address = browser, address
        browser.get(address)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def score(self, prompt: str, first: str, second: str, key: str | None) -> None:
        for name, text in {"prompt": prompt, "first": first, "second": second, "key": key or ""}.items():
            field = self.find(f"[name={name}]")
            assert field.is_displayed() == (name != "key" or key is not None)
            if field.is_displayed():
                field.clear()
                field.send_keys(text)
        self.find("button").click()
        waiting = "document.querySelector('button').disabled"
        script = f"const look = (end) => {waiting} ? setTimeout(look, 20, end) : end(); look(arguments[0])"
        self.browser.execute_async_script(script)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)


@pytest.fixture
def page(browser: Any, site: tuple[str, str | None]) -> Iterator[Page]:  # noqa: F811
    browser.get_log("browser")
    page = Page(browser, site[0])
    yield page
    assert browser.execute_script("return window.attacked") is None
    assert browser.find_elements("css selector", "img") == []
    names = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(site[0]) for name in names)


def test_two_rewards_and_their_probability(page: Page, site: tuple[str, str | None], scorer: HybridScorer) -> None:
    first, second = scorer.score([Conversation.of("How are you?", text) for text in ("Fine, thanks.", "Go away.")])
    assert first is not None
    assert second is not None
    page.score("How are you?", "Fine, thanks.", "Go away.", site[1])
    assert float(page.text("#reward-1")) == pytest.approx(first, abs=1e-4)
    assert float(page.text("#reward-2")) == pytest.approx(second, abs=1e-4)
    probability = 100 / (1 + math.exp(second - first))
    assert float(page.text("#verdict").split()[-1].rstrip("%")) == pytest.approx(probability, abs=0.06)
    assert [entry["message"] for entry in page.browser.get_log("browser")] == []


def test_hostile_texts_stay_text(page: Page, site: tuple[str, str | None]) -> None:
    page.score(ATTACK, ATTACK, f"{ATTACK} {ATTACK}", site[1])
    assert page.text("#model") == ATTACK
    assert page.text("#reward-2").startswith("none (overlong)")
    assert "nothing to compare" in page.text("#verdict")


def test_a_wrong_key_is_refused(page: Page, site: tuple[str, str | None]) -> None:
    page.score("a", "b", "c", "wrong" if site[1] else None)
    assert page.find("#problem").is_displayed() == (site[1] is not None)
    assert page.find("#result").is_displayed() == (site[1] is None)
