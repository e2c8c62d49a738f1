"""The figures of best-of-N: numbers are in their regions, curves at their values."""

from __future__ import annotations

import re
from typing import Any

import pytest
from markupsafe import Markup
from scipy.stats import binomtest

from hafrm.report.best_of_n import best_of_n_findings
from hafrm.report.figures import Curve, growth_curves, overlap_circles

NAMES = {"h": "HAF", "b": "Baseline", "d": "<DPO>"}


def places(svg: str, word: str) -> tuple[float, float]:
    found = re.search(rf'<text x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(word)}</text>', svg)
    assert found, word
    return float(found[1]), float(found[2])


def circles(svg: str) -> list[tuple[float, float, float]]:
    return [tuple(map(float, each)) for each in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg)]


REGIONS = [("h",), ("b",), ("d",), ("h", "b"), ("h", "d"), ("b", "d"), ("h", "b", "d")]


@pytest.mark.parametrize("count", [2, 3])
def test_each_share_stands_in_its_own_region(count: int) -> None:
    names = dict(list(NAMES.items())[:count])
    regions = {frozenset(each): 0.01 * (place + 1) for place, each in enumerate(REGIONS) if set(each) <= set(names)}
    svg = str(overlap_circles("label", names, regions))
    drawn = dict(zip(names, circles(svg), strict=True))
    for whose, share in regions.items():
        x, y = places(svg, f"{100 * share:.1f}")
        within = {name for name, (cx, cy, r) in drawn.items() if (x - cx) ** 2 + (y - 4 - cy) ** 2 < r**2}
        assert within == whose
    assert "<DPO>" not in svg


def test_circles_are_their_regions_together() -> None:
    svg = str(overlap_circles("label", NAMES, {frozenset("h"): 0.5, frozenset("hb"): 0.25, frozenset("d"): 0.25}))
    assert "HAF 75.0" in svg
    assert "Baseline 25.0" in svg


def test_a_method_has_the_colour_of_its_bars_and_other_scorers_one_each() -> None:
    regions = {frozenset(["dpo"]): 0.5, frozenset(["haf", "baseline"]): 0.5}
    drawn = str(overlap_circles("label", {name: name for name in ("baseline", "dpo", "haf")}, regions))
    assert re.findall(r'class="bar (\w+) many"', drawn) == ["baseline", "dpo", "haf"]
    drawn = str(overlap_circles("label", {name: name for name in "xyz"}, {frozenset("x"): 1.0}))
    assert len(set(re.findall(r'class="bar (\w+) many"', drawn))) == 3


@pytest.mark.parametrize("count", [1, 4])
def test_other_numbers_of_circles_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="two or three"):
        overlap_circles("label", {str(i): "x" for i in range(count)}, {})


def test_curves_lie_at_their_values_with_their_intervals() -> None:
    curves = [
        Curve("a", "haf", ((1, 1), (2, 2), (3, 4)), ((0, 2), (1, 3), (3, 5))),
        Curve("b", "zero", ((1, 1), (2, 1), (3, 1))),
    ]
    svg = str(growth_curves("label", curves, [0, 0.19, 0.43], "reward"))
    line = re.search(r'<path d="([^"]*)" class="series haf"></path></g>', svg)
    assert line
    x, y = zip(*(map(float, pair.split(" ")) for pair in re.split("[ML]", line[1])[1:]), strict=True)
    assert x[2] - x[1] == pytest.approx(x[1] - x[0], abs=0.2)
    assert (y[1] - y[2]) == pytest.approx(2 * (y[0] - y[1]), abs=0.2)
    assert svg.count('class="series haf"') == 1 + 1  # the curve, the legend
    assert svg.count('class="series haf interval"') == 3
    assert "0.43" in svg


def test_one_point_and_equal_values_are_drawn() -> None:
    assert "path" in str(growth_curves("label", [Curve("a", "haf", ((1.0, 1.0),))], [0.0], "reward"))
    assert "nan" not in str(growth_curves("label", [Curve("a", "haf", ((1.0, 0.0), (2.0, 0.0)))], [0.0, 0.2], "reward"))


def results(wins: dict[tuple[str, str], tuple[int, int, int]]) -> dict[str, Any]:
    """Results of `hafrm best-of-n` in which scorers win, tie and lose so often."""
    names = list(dict.fromkeys(name for pair in wins for name in pair))
    rate = {"value": 0.5, "ci95": (0.4, 0.6)}
    return {
        "models": {name: dict.fromkeys(("top_1", "top_2", "gold", "against_random"), rate) for name in names},
        "judge": {"model": "j", "kind": "reward"},
        "draws": 400,
        "prompts": 100,
        "distinct": 390,
        "alike": 0,
        "baselines": {"random": {"top_1": rate, "top_2": rate, "gold": rate}},
        "agreement": {"pairs": [], "all": rate},
        "best": {"regions": []},
        "wins": [
            {"a": a, "b": b, "win_rate": rate, "wins": won, "ties": tied, "losses": lost, "same": 0}
            for (a, b), (won, tied, lost) in wins.items()
        ],
        "curve": {"gold": {}, "n": [1]},
        "left_out": {},
        "unscored": {},
        "judge_runs": {},
    }


def test_only_what_the_corrected_sign_test_decides_is_bold_and_stated() -> None:
    """61 to 39 is significant alone (p .035), but not among three comparisons; 70 to 30 is."""
    assert binomtest(61, 100).pvalue < 0.05
    found = best_of_n_findings(results({("a", "b"): (30, 0, 70), ("a", "c"): (61, 0, 39), ("b", "c"): (5, 90, 5)}))
    (table,) = [table for table in found.tables if "each other" in table.title]
    assert [isinstance(row[1], Markup) for row in table.rows] == [True, False, False]
    assert [row[2] for row in table.rows[1:]] == [f"{2 * binomtest(61, 100).pvalue:.3f}", "1.000"]
    assert "what b chooses to what a chooses" in found.statements[0]
    assert "a and c" in found.statements[1]
    assert "b and c" in found.statements[1]
    assert not any(isinstance(cell, Markup) for row in found.tables[0].rows for cell in row)


def test_without_a_judge_nothing_is_stated() -> None:
    found = best_of_n_findings(results({("a", "b"): (30, 0, 70)}) | {"judge": None})
    assert found.statements == ()


def rate(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": (value - 0.05, value + 0.05)}


def test_every_rate_is_in_its_column() -> None:
    names = ("top_1", "top_2", "gold", "against_random")
    found = results({("a", "b"): (1, 2, 3)})
    found["models"] = {
        "a": dict(zip(names, map(rate, (0.1, 0.2, 1.5, 0.6)), strict=True)),
        "b": dict(zip(names, map(rate, (0.3, 0.4, -0.5, 0.7)), strict=True)),
    }
    found["baselines"] = {
        "random": {"top_1": rate(0.25), "top_2": rate(0.5), "gold": rate(0.0)},
        "the longest response": {"top_1": rate(0.35), "gold": rate(0.7)},
    }
    found["agreement"] = {"pairs": [{"a": "a", "b": "b"} | rate(0.75)], "all": rate(0.75)}
    chosen, won, agreed = (table.rows for table in best_of_n_findings(found).tables)
    assert chosen == (
        ("a", "10.0 [5.0, 15.0]", "20.0 [15.0, 25.0]", "1.50 [1.45, 1.55]", "60.0 [55.0, 65.0]"),
        ("b", "30.0 [25.0, 35.0]", "40.0 [35.0, 45.0]", "−0.50 [−0.55, −0.45]", "70.0 [65.0, 75.0]"),
        ("random", "25.0 [20.0, 30.0]", "50.0 [45.0, 55.0]", "0.00 [−0.05, 0.05]", "50.0"),
        ("the longest response", "35.0 [30.0, 40.0]", "–", "0.70 [0.65, 0.75]", "–"),
    )
    assert [row[3:] for row in won] == [("1", "2", "3", "0")]
    assert agreed == (("a and b", "75.0 [70.0, 80.0]"),)


def test_figures_and_notes_are_there_where_there_is_something_to_say() -> None:
    found = results({("a", "b"): (1, 2, 3)})
    plain = best_of_n_findings(found)
    assert (plain.figures, len(plain.notes)) == ({}, 1)
    found["best"] = {"regions": [{"models": ["a"], "share": 0.4}, {"models": ["a", "b"], "share": 0.6}]}
    points = {name: [rate(place + n) for n in (0, 1)] for place, name in enumerate(("a", "b", "the best"))}
    found["curve"] = {"gold": points, "n": [1, 2], "kl": [0.0, 0.19]}
    run = {"judged": 5, "rows": 6, "unscored": {"refused": 1}, "responses_shown": 40, "run": {"stopped": "no budget"}}
    found |= {"alike": 4, "left_out": {"overlong": 2}, "unscored": {"no_response": 3}}
    found["judge_runs"] = {"ranking": run, "comparison": None}
    written = best_of_n_findings(found)
    assert list(written.figures) == ["best-selection", "growth"]
    notes = [re.findall(r"\d+|overlong|no_response|refused|no budget", note) for note in written.notes]
    assert [each for each in notes if each] == [
        ["4"],
        ["2", "overlong"],
        ["3", "no_response"],
        ["5", "6", "1", "refused", "40", "no budget"],
    ]
