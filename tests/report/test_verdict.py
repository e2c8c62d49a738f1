"""The verdict follows the corrected tests, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hafrm.evaluation.results import Comparison, Results
from hafrm.evaluation.suites import SUITES, summarise_suite
from hafrm.report.loading import Evaluation
from hafrm.report.verdict import title_of, verdicts
from tests.evaluation.test_suites import answered_alike
from tests.report.test_tables import cell, comparison

AHEAD, BEHIND, OPEN = (0.1, 0.001), (-0.1, 0.001), (0.1, 0.22)
"""Differences of two models with their corrected p-values; all have an interval that excludes 0."""


def test_of(a: str, b: str, data: str, difference: float, p_holm: float) -> Comparison:
    return replace(comparison(a, b, difference - 0.05, difference + 0.05, p_holm), data=data, difference=difference)


test_of.__test__ = False  # type: ignore[attr-defined]


def evaluation(pairs: dict[tuple[str, str], list[tuple[float, float]]]) -> Evaluation:
    """Create an evaluation with tests of all pairs of models on the sets s0, s1, ..."""
    models = list(dict.fromkeys(name for pair in pairs for name in pair))
    sets = [f"s{number}" for number in range(max(map(len, pairs.values())))]
    cells = {(model, data): cell(0.7) for model in models for data in sets}
    tests = [
        test_of(a, b, data, *found) for (a, b), each in pairs.items() for data, found in zip(sets, each, strict=False)
    ]
    return Evaluation(results=Results(rows=0, cells=cells, comparisons=tests), scores=())


def test_an_interval_that_excludes_zero_is_no_verdict():
    (line,) = verdicts(evaluation({("haf", "dpo"): [OPEN] * 3}))
    assert "ahead" not in line
    assert "don't differ significantly" in line
    assert "any of the 3" in line


@pytest.mark.parametrize(("tests", "first"), [([AHEAD, OPEN, AHEAD], "haf"), ([BEHIND, OPEN, BEHIND], "dpo")])
def test_the_model_that_is_ahead_is_named_first_with_its_sets(tests: list[tuple[float, float]], first: str):
    (line,) = verdicts(evaluation({("haf", "dpo"): tests}))
    assert line.startswith(f"{first} is ahead of")
    assert "2 of 3 sets (s0 and s2)" in line
    assert "don't differ significantly" in line


def test_ahead_here_and_behind_there_are_both_said():
    (line,) = verdicts(evaluation({("haf", "dpo"): [AHEAD, BEHIND, AHEAD, AHEAD]}))
    assert "haf is ahead of dpo on 3 of 4 sets (s0, s2 and s3)" in line
    assert "behind on 1 of 4 sets (s1)" in line
    assert "significantly" not in line


def test_one_set_is_named_with_its_figures():
    (line,) = verdicts(evaluation({("haf", "dpo"): [BEHIND]}))
    assert line == "dpo is ahead of haf on s0 (10.0 points, p = 0.001)."
    (line,) = verdicts(evaluation({("haf", "dpo"): [OPEN]}))
    assert "significantly" in line
    assert "p = 0.220" in line


def test_three_models_have_a_line_for_each_two_unless_none_is_ahead():
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    lines = verdicts(evaluation({pair: [AHEAD if pair == ("a", "c") else OPEN] * 2 for pair in pairs}))
    assert len(lines) == 3
    assert [line for line in lines if "ahead" in line] == ["a is ahead of c on all 2 sets."]
    (line,) = verdicts(evaluation({pair: [OPEN] * 2 for pair in pairs}))
    assert line.startswith("a, b and c don't differ significantly")


def test_of_many_models_the_best_are_named():
    names = "abcd"
    pairs = [(x, y) for i, x in enumerate(names) for y in names[i + 1 :]]
    found = evaluation({pair: [AHEAD if pair == ("a", "b") else OPEN, OPEN] for pair in pairs})
    found.results.cells["a", "s0"] = cell(0.9)
    found.results.cells["b", "s0"] = cell(0.8)
    lines = verdicts(found)
    assert lines[0].startswith("a is the most accurate")
    assert "1 of 2 sets (s0)" in lines[0]
    assert "1 of 2 sets (s1)" in lines[1]
    assert len(lines) == 2


def test_one_model_is_set_beside_the_longer_response():
    found = Evaluation(results=Results(rows=0, cells={("a", "s"): cell(0.72)}, comparisons=[]), scores=())
    (line,) = verdicts(found)
    assert "72.0%" in line
    assert "60.0%" in line
    assert title_of(found) == "a on s"


def test_benchmarks_alone_have_a_verdict_too():
    suite = summarise_suite(SUITES["rewardbench"], answered_alike())
    found = Evaluation(results=Results(rows=0, cells={}, comparisons=[], suites={"rewardbench": suite}), scores=())
    assert title_of(found) == "m and n on RewardBench"
    assert all("ahead" not in line for line in verdicts(found))
    row = {"a": "m", "b": "n", "n": 9, "ci95": (-0.2, -0.05), "p_bootstrap": 0.001}
    suite["comparisons"] = [
        row | {"score": "overall", "difference": -0.125},
        row | {"score": "Chat", "difference": 0.5},
    ]
    (line,) = verdicts(found)  # only the overall score counts, corrected for both
    assert line.startswith("n is ahead of m on RewardBench")
    assert "12.5 points, p = 0.002" in line
