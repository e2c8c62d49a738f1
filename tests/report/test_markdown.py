"""`table.md` contains every number of an evaluation's tables: of data sets, of suites, or of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.evaluation.results import summarise
from hafrm.evaluation.scoring import PairScore, write_scores
from hafrm.evaluation.suites import SUITES, summarise_suite
from hafrm.report.tables import write_markdown
from tests.evaluation.test_suites import answered_alike


def tables(folder: Path, *, data: bool, suites: bool) -> str:
    """The Markdown of an evaluation of two models on pairs, on suites, or on both."""
    scores = [PairScore(m, "d", f"d:{i}", f"g{i}", 1.0, 0.0, 9, 8) for m in "mn" for i in range(8)]
    write_scores(scores if data else [], folder / "scores.jsonl")
    results = summarise(scores if data else []).as_dict()
    if suites:
        results["suites"] = {"rewardbench": summarise_suite(SUITES["rewardbench"], answered_alike())}
    atomic.write_json(folder / "results.json", results)
    return write_markdown(folder).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("data", [True, False])
def test_a_suites_table_holds_its_numbers(tmp_path: Path, data: bool) -> None:
    text = tables(tmp_path, data=data, suites=True)
    found = rows(text)
    first = found.index(
        ["RewardBench, %", "overall", "Chat", "Reasoning", "Prior Sets", "Chat, pooled", "Reasoning, pooled"]
    )
    assert first == (6 if data else 0)
    stated = json.loads((tmp_path / "results.json").read_text())["suites"]["rewardbench"]["models"]["m"]
    one, two, longest, random = found[first + 2 :]
    overall = f"{100 * stated['overall']['overall']['value']:.1f}"
    assert one[:2] == ["m", f"{overall} [{overall}, {overall}]"]
    known = "100.0 [100.0, 100.0]"
    assert two == ["n", "-", known, "-", known, known, "-"]
    assert longest[0] == "the longest response"
    assert random == ["random", *["50.0"] * 6]
    assert "n: nothing scored of Reasoning: hep-go" in text


@pytest.mark.parametrize("suites", [True, False])
def test_accuracies_stand_first_where_there_are_data(tmp_path: Path, suites: bool) -> None:
    text = tables(tmp_path, data=True, suites=suites)
    assert rows(text)[:4:2] == [["accuracy, %", "d"], ["m", "100.0 [100.0, 100.0]"]]
    assert ("RewardBench" in text) == suites
    assert text.count("\n\n| RewardBench") == suites
