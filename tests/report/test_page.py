"""The page as a file: its structure, its data, and texts that try to break out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hafrm.evaluation.scoring import PairScore
from hafrm.pairs import Message, PreferencePair, Prompt
from hafrm.report.page import write_page
from tests.report.conftest import ATTACK, MODELS, write_evaluation

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Parses the elements of a page and checks that all are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        """Tag, attributes, and the pieces of text within."""
        self._path: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text))
        if tag not in VOID:
            self.open.append(tag)
            self._path.append(text)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._path.pop()

    def handle_data(self, data: str) -> None:
        for text in self._path:
            text.append(data)

    def find(self, tag: str, **wanted: str) -> list[str]:
        """Return the texts of the elements with these attributes, with white space normalised."""
        names = {name.rstrip("_"): value for name, value in wanted.items()}
        return [
            " ".join("".join(text).split())
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in names.items())
        ]


@pytest.fixture
def page(evaluation: Path, texts: dict[str, PreferencePair]) -> str:
    path = write_page(evaluation, title="An evaluation", texts=texts, intro="With an introduction.")
    assert path == evaluation / "index.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_has_every_part(page: str):
    found = Page(page)
    assert page.startswith("<!doctype html>")
    assert found.find("title")[0] == found.find("h1")[0] == "An evaluation"
    assert found.find("p", class_="intro") == ["With an introduction."]
    assert found.find("h2") == [
        "Accuracy",
        "Paired comparisons",
        "Models and data",
        "Margins and calibration",
        "Pairs",
    ]
    ids = [attributes["id"] for _, attributes, _ in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = [attributes["href"] for tag, attributes, _ in found.elements if tag == "a" and len(attributes) == 1]
    assert targets == [f"#{name}" for name in ("accuracy", "comparisons", "cards", "behaviour", "pairs")]
    assert set(targets) <= {f"#{name}" for name in ids}


def test_the_top_says_what_was_run_when_and_how_it_went(evaluation: Path, texts: dict[str, PreferencePair]):
    os.utime(evaluation / "results.json", (0, 86400 * 365))
    found = Page(write_page(evaluation, texts=texts, command="hafrm evaluate <x>").read_text(encoding="utf-8"))
    assert found.find("title")[0] == found.find("h1")[0] == "haf, baseline and dpo on 5 data sets"
    (when,) = found.find("p", class_="kicker")
    assert "1 January 1971" in when
    assert version("hafrm") in when
    results = json.loads((evaluation / "results.json").read_text())["models"]
    (scores,) = found.find("dl", class_="scores")
    for model in MODELS:
        mean = np.mean([cell["accuracy"] for cell in results[model]["data"].values()])
        assert f"{model.removeprefix('runs/')} {100 * mean:.1f} [" in scores
    assert "the longer response" in scores
    assert "hafrm evaluate <x>" in found.find("code")
    assert len(found.find("p", class_="verdict")) >= 1


def test_numbers_of_changed_verdicts_are_those_of_the_scores(page: str, scores: list[PairScore]):
    right = {(s.model, s.id): (s.reward_chosen or 0) > (s.reward_rejected or 0) for s in scores}
    ids = [s.id for s in scores if s.data == "books.jsonl" and s.model == "runs/haf"]
    expected = {
        "gained": sum(right["runs/haf", i] and not right["runs/dpo", i] for i in ids),
        "lost": sum(right["runs/dpo", i] and not right["runs/haf", i] for i in ids),
    }
    wanted = {"data-data": "3", "data-model": "0", "data-other": "2"}
    for outcome, number in expected.items():
        assert Page(page).find("a", **wanted, **{"data-outcome": outcome}) == [str(number)]


def test_the_table_shows_the_results(page: str, evaluation: Path):
    results = json.loads((evaluation / "results.json").read_text())["models"]["runs/haf"]["data"]["harmless.jsonl"]
    found = Page(page)
    low, high = results["ci95"]
    assert f"{100 * results['accuracy']:.1f}" in found.find("span", class_="value")
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in found.find("small")
    assert found.find("th", scope="row")[:5] == ["haf", "baseline", "dpo", "the longer response", "random"]
    assert len(found.find("th", scope="rowgroup")) == 5
    assert len(found.find("th", scope="row")) == 5 + 15


def test_every_plot_is_there_and_named(page: str):
    found = Page(page)
    named = [attributes.get("aria-label") for tag, attributes, _ in found.elements if tag == "svg"]
    forests, bars, model_plots = 5, 15, 5 * len(MODELS) * (1 + 5)
    assert len(named) == forests + bars + model_plots
    assert all(named)
    assert found.find("summary")[:2] == ["All data sets together", "harmless.jsonl"]


def test_the_page_asks_the_network_for_nothing(page: str):
    for tag, attributes, _ in Page(page).elements:
        assert not {"src", "srcset", "action", "data"} & set(attributes), tag
        assert "style" not in attributes, "the page's own policy would block it"
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    style = resources.files("hafrm").joinpath("page.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_the_pages_own_script_and_style_alone(page: str):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy


def hostile_page(folder: Path, scores: list[PairScore], pairs: list[PreferencePair], **options: Any) -> str:
    """The page of an evaluation whose names and texts all try to inject markup."""
    hostile = {
        pair.id: replace(
            pair, prompt=Prompt((Message("user", ATTACK),)), chosen=(Message("assistant", f"\u202e{ATTACK}\x00"),)
        )
        for pair in pairs
    }
    renamed = [
        replace(s, model=f"{ATTACK}{s.model}", data=f"\u202e{ATTACK}{s.data}")
        for s in scores
        if s.data == pairs[0].source
    ]
    write_evaluation(folder, renamed)
    return write_page(folder, texts=hostile, **options).read_text(encoding="utf-8")


def test_hostile_texts_and_names_stay_text(
    tmp_path: Path, scores: list[PairScore], pairs: dict[str, list[PreferencePair]]
):
    html = hostile_page(tmp_path, scores, pairs["code.jsonl"], title=ATTACK, intro=ATTACK)
    found = Page(html)
    assert [tag for tag, _, _ in found.elements if tag in ("script", "img")] == ["script", "script"]
    assert "\u202e" not in html
    assert "\x00" not in html
    assert found.find("h1") == [ATTACK]
    (embedded,) = found.find("script", type="application/json")
    record = json.loads(embedded)["pairs"][0]
    assert record["prompt"] == [["user", ATTACK]]
    assert record["chosen"] == [["assistant", f"\u202e{ATTACK}\x00"]]


def test_the_script_can_stand_in_a_page(page: str):
    script = resources.files("hafrm.report").joinpath("page.js").read_text(encoding="utf-8")
    assert "</script" not in script
    assert "<!--" not in script
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "createContextual"):
        assert way_in not in script


def test_a_page_needs_no_texts_and_no_second_model(tmp_path: Path, scores: list[PairScore]):
    one = [s for s in scores if (s.model, s.data) == ("runs/haf", "code.jsonl")]
    found = Page(write_page(write_evaluation(tmp_path, one), title="t").read_text(encoding="utf-8"))
    assert found.find("h2") == ["Accuracy", "Models and data", "Margins and calibration", "Pairs"]
    assert found.find("summary") == ["code.jsonl"]
    assert found.find("option", value="disagree") == []


def test_an_evaluation_without_scored_pairs_has_a_page(tmp_path: Path, scores: list[PairScore]):
    none = [replace(s, reward_chosen=None, reward_rejected=None) for s in scores]
    found = Page(write_page(write_evaluation(tmp_path, none), title="t").read_text(encoding="utf-8"))
    assert found.find("h2") == ["Accuracy", "Models and data", "Pairs"]
    assert set(found.find("span", class_="value")) == {"–"}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "raised"])
def test_colours_have_enough_contrast(scheme: int, ground: str):
    """4.5 for text, 3 for the borders of controls and the marks of plots (WCAG 2.2, AA)."""
    style = resources.files("hafrm").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", style.split(":root {")[1 + scheme]))
    wanted = {
        "ink": 4.5,
        "muted": 4.5,
        "accent": 4.5,
        "wrong-ink": 4.5,
        "right-ink": 4.5,
        "control": 3.0,
        "wrong": 3.0,
        "right": 3.0,
    }
    for name, least in wanted.items():
        bright, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= least, name


def test_comparisons_show_the_corrected_p_values(evaluation: Path):
    html = write_page(evaluation, title="t").read_text(encoding="utf-8")
    assert "<i>p</i>, Holm" in html
    assert "corrected for how many comparisons there are, 15" in html
