"""Fixtures: an evaluation's folder with invented scores, the texts of its pairs, and a browser for its page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hafrm import atomic
from hafrm.evaluation.results import Measured, summarise
from hafrm.evaluation.scoring import PairScore, write_scores
from hafrm.pairs import Message, PreferencePair, Prompt

ATTACK = "</script><script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"
MODELS = {"runs/haf": 1.1, "runs/baseline": 0.8, "runs/dpo": 0.75}
"""Invented models, and by how many standard deviations each separates the better response from the worse."""
DATA = ("harmless.jsonl", "helpful.jsonl", "arena.jsonl", "books.jsonl", "code.jsonl")
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
WORST = "code.jsonl:9"
"""The pair that gets a hostile text."""


class Inspector:
    """The list of pairs, operated as a user would."""

    def __init__(self, browser: Any, page: str) -> None:
        self.browser = browser
        browser.get(page)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def column(self, number: int) -> list[str]:
        """Return the texts of a column of the list."""
        script = "return [...document.querySelectorAll(`#list > tbody > tr > td:nth-child(${arguments[0]})`)]"
        return list(self.browser.execute_script(f"{script}.map((cell) => cell.textContent)", number))

    def margins(self) -> list[float]:
        return [float(text.replace("−", "-")) for text in self.column(3)]

    def lengths(self) -> list[int]:
        return [int(text.replace("−", "-").replace(",", "")) for text in self.column(4)]

    def sort(self, key: str) -> str:
        """Click a column's heading; return its aria-sort."""
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
        """Open the pair of a row; return the opened element."""
        self.browser.find_elements("css selector", ".opener")[number].click()
        return self.find("tr.detail")


def make_pairs(source: str, count: int) -> list[PreferencePair]:
    """Invented pairs; every other one shares the prompt of the one before."""
    return [
        PreferencePair(
            prompt=Prompt((Message("user", f"Question {number // 2} about {source}: what happens next?"),)),
            chosen=(Message("assistant", f"The better answer {number}. " * (1 + number % 7)),),
            rejected=(Message("assistant", f"The worse answer {number}. " * (1 + number % 5)),),
            source=source,
            row=number,
        )
        for number in range(1, count + 1)
    ]


def make_scores(pairs: Mapping[str, Sequence[PreferencePair]], models: Mapping[str, float]) -> list[PairScore]:
    """Invented rewards; the models' mistakes are correlated, as those of real models are."""
    scores = []
    for data, rows in pairs.items():
        rng = np.random.default_rng(len(data))
        difficulty = rng.normal(size=len(rows))
        for model, skill in models.items():
            margins = skill + 0.8 * difficulty + 0.6 * rng.normal(size=len(rows))
            base = rng.normal(size=len(rows))
            for row, margin, reward in zip(rows, margins, base, strict=True):
                lengths = len(row.chosen[0].content), len(row.rejected[0].content)
                scores.append(PairScore(model, data, row.id, row.group, reward + margin, reward, *lengths))
    return scores


def write_evaluation(folder: Path, scores: Sequence[PairScore]) -> Path:
    """The two files of an evaluation."""
    write_scores(scores, folder / "scores.jsonl")
    atomic.write_json(folder / "results.json", summarise(scores).as_dict())
    return folder


def measured(accuracy: float, ci95: tuple[float, float] | None) -> Measured:
    """Create a model's results on a data set, with the accuracy that tables show."""
    values: dict[str, Any] = dict.fromkeys(("mean_margin", "mean_reward_chosen", "mean_reward_rejected", "ece"), 0.0)
    values |= dict.fromkeys(("accuracy_by_margin", "accuracy_by_length_difference"), ())
    found = {"accuracy": accuracy, "ci95": ci95, "length_accuracy": 0.6, "groups": 90, "ties": 0}
    return Measured(**values, **found, brier=None, spearman_length=None)


def unscored(score: PairScore) -> PairScore:
    """The same pair, over-long for the model."""
    return replace(score, reward_chosen=None, reward_rejected=None)


@pytest.fixture(scope="session")
def pairs() -> dict[str, list[PreferencePair]]:
    return {data: make_pairs(data, 60) for data in DATA}


@pytest.fixture(scope="session")
def texts(pairs: dict[str, list[PreferencePair]]) -> dict[str, PreferencePair]:
    return {pair.id: pair for rows in pairs.values() for pair in rows}


@pytest.fixture(scope="session")
def scores(pairs: dict[str, list[PreferencePair]]) -> list[PairScore]:
    return make_scores(pairs, MODELS)


@pytest.fixture
def evaluation(tmp_path: Path, scores: list[PairScore]) -> Path:
    return write_evaluation(tmp_path / "evaluation", scores)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def shown(scores: list[PairScore]) -> list[PairScore]:
    """Scores in which one model's score of the hostile pair is by far the worst."""
    return [
        replace(s, reward_chosen=-20.0, reward_rejected=20.0) if s.id == WORST and s.model == "runs/haf" else s
        for s in scores
    ]
