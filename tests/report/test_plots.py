"""The plots show the given numbers at the right places."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hafrm.report.charts import Scale, element, label_of, nice_step, text, ticks
from hafrm.report.diagnostics import (
    accuracy_by,
    difference_bar,
    forest,
    margin_histogram,
    reliability_curve,
    reward_histogram,
    wilson_interval,
)
from tests.report.conftest import measured


def elements(plot: str, tag: str, class_: str = "") -> list[ET.Element]:
    """The elements of a plot, which must be well-formed XML."""
    return [e for e in ET.fromstring(plot).iter(tag) if class_ in e.get("class", "")]


def dots(plot: str) -> list[tuple[float, float]]:
    return [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in elements(plot, "circle", "dot")]


def corners(path: ET.Element) -> list[tuple[float, float]]:
    points = [point.split() for point in re.split("[ML]", path.get("d", ""))[1:]]
    return [(float(x), float(y)) for x, y in points]


def labels(plot: str) -> list[str]:
    return [each.text or "" for each in elements(plot, "text")]


def test_a_scale_maps_its_ends_to_its_ends():
    scale = Scale(0.5, 1.0, 100, 0)
    assert [scale(0.5), scale(0.75), scale(1.0)] == [100, 50, 0]
    assert Scale(3, 3, 0, 10)(3) == 5


@pytest.mark.parametrize(("extent", "count", "step"), [(10, 5, 2), (1, 4, 0.5), (0.37, 4, 0.1), (2000, 4, 500)])
def test_steps_are_round(extent: float, count: int, step: float):
    assert nice_step(extent, count) == pytest.approx(step)


@given(st.floats(1e-6, 1e6), st.integers(1, 40))
def test_a_step_gives_at_most_so_many_parts(extent: float, count: int):
    step = nice_step(extent, count)
    assert extent / step <= count * (1 + 1e-6)
    assert extent / step >= count / 2.5 * (1 - 1e-6)


def test_a_step_needs_an_extent():
    with pytest.raises(ValueError, match="positive"):
        nice_step(0, 4)


@pytest.mark.parametrize(
    ("extent", "options", "expected"),
    [
        ((-0.2, 0.4), {"count": 3}, ["−0.2", "0.0", "0.2", "0.4"]),
        ((0.3, 0.6), {"count": 8, "least": 0.1, "unit": 100}, ["30", "40", "50", "60"]),
        ((0, 2400), {"count": 3}, ["0", "1,000", "2,000"]),
        ((-1e7, 1e7), {"count": 2}, ["−1e+07", "0", "1e+07"]),
        ((0, 2e-7), {"count": 2}, ["0", "1e−07", "2e−07"]),
    ],
)
def test_ticks_are_labelled_within_both_ends(extent, options, expected):
    found = ticks(*extent, **options)
    assert [label for _, label in found] == expected
    assert all(extent[0] - 1e-9 <= value <= extent[1] + 1e-9 for value, _ in found)


@pytest.mark.parametrize(
    ("value", "step", "label"), [(-0.001, 1, "0"), (-0.25, 0.05, "−0.25"), (1200.4, 28, "1,200"), (0.5, 0.1, "0.5")]
)
def test_labels_have_the_decimals_of_their_step(value: float, step: float, label: str):
    assert label_of(value, step) == label


def test_elements_escape_what_they_hold():
    assert element("text", "<b>&", class_='"><x') == '<text class="&#34;&gt;&lt;x">&lt;b&gt;&amp;</text>'
    assert "U+202E" in text(0, 0, "\u202ename")


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (812, 1000)])
def test_wilson_intervals_are_those_of_scipy(hits: int, n: int):
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_confidence_is_on_the_side_of_the_larger_reward():
    """A wrong pair of margin -2 is as confident as a right one of margin 2: one dot, at half height."""
    plot = reliability_curve("name", np.array([2.0, -2.0]))
    ((x, y),) = dots(plot)
    (diagonal,) = elements(plot, "line", "dashed")
    x1, y1, x2 = (float(diagonal.get(name, "")) for name in ("x1", "y1", "x2"))
    assert 0.5 + 0.5 * (x - x1) / (x2 - x1) == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-3)
    assert y == pytest.approx(y1, abs=0.1)  # the diagonal starts at 50%
    assert "n = 2" in plot


def test_slices_hold_about_equally_many_pairs():
    margins = np.array([-1.0] * 16 + [1.0] * 16)
    plot = accuracy_by("name", margins, np.arange(32.0), "place")
    assert [(title.text or "").split(" ")[0] for title in elements(plot, "title")] == ["0.0"] * 4 + ["100.0"] * 4
    assert plot.count("n = 4,") == 8


def test_the_forest_puts_each_accuracy_on_the_axis():
    rows = {"a": measured(0.5, (0.4, 0.6)), "b": measured(0.9, None)}
    plot = forest("name", rows, (0.4, 0.9), 0.6)
    (first, second), (whisker,) = dots(plot), elements(plot, "line", "whisker")
    assert second[0] - first[0] == pytest.approx(304 * 0.4 / 0.5, abs=0.1)  # the axis is 304 wide
    assert float(whisker.get("x1", "")) < first[0] < float(whisker.get("x2", ""))
    (random,), (length,) = elements(plot, "path", "dashed"), elements(plot, "path", "dotted")
    assert {x for x, _ in corners(random)} == {first[0]}
    assert {x for x, _ in corners(length)} == {float(whisker.get("x2", ""))}
    names = [float(each.get("y", "")) for each in elements(plot, "text", "strong")]
    for (_, above), (_, below) in zip(corners(random)[::2], corners(random)[1::2], strict=True):
        assert not any(above < y < below + 8 for y in names)  # no line crosses a label
    assert {"50.0 [40.0, 60.0]", "90.0"} <= set(labels(plot))


def test_a_positive_difference_stands_right_of_zero():
    for sign in (1, -1):
        plot = difference_bar(sign * 0.02, None, 0.1)
        ((x, _),) = dots(plot)
        assert (x - float(elements(plot, "line", "axis")[0].get("x1", ""))) * sign > 0


def bar_areas(plot: str, class_: str) -> float:
    """Return the number of pairs that the bars of a class represent, up to a factor."""
    path, *_ = elements(plot, "path", class_)  # a legend's sign follows
    pixels = [tuple(map(float, point.split())) for point in path.get("d", "").replace("M", "L").split("L")[1:]]
    return sum(152.0 - pixels[corner + 1][1] for corner in range(0, len(pixels), 4))


def test_wrong_pairs_have_their_own_bars():
    rng = np.random.default_rng(0)
    margins = rng.normal(0.5, 1, size=1000)
    plot = margin_histogram("name", margins)
    wrong, right = bar_areas(plot, "bars wrong"), bar_areas(plot, "bars right")
    assert wrong / (wrong + right) == pytest.approx((margins < 0).mean(), abs=0.01)


@pytest.mark.parametrize("margins", [[0.0], [0.0, 0.0], [-3.0], [1e-9], [1e6, -1e6], [1.0] * 5 + [1e5]])
def test_histograms_of_odd_margins_hold_every_pair(margins: list[float]):
    plot = margin_histogram("name", np.array(margins))
    bars = [bar_areas(plot, f"bars {kind}") > 0 for kind in ("wrong", "right")]
    assert bars == [min(margins) < 0, max(margins) >= 0]


def outline_heights(plot: str) -> float:
    """Return the number of responses that an outline represents, in the units of `bar_areas`."""
    outline, *_ = elements(plot, "path", "outline")
    at = np.array([[float(n) for n in point.split()] for point in re.split("[ML]", outline.get("d", ""))[1:]])
    return float(np.sum(152.0 - at[1:-1:2, 1]))


def test_a_histogram_holds_all_rewards_of_both_sides():
    rng = np.random.default_rng(0)
    plot = reward_histogram("name", rng.normal(1, 1, size=900), rng.normal(-1, 1, size=900))
    assert outline_heights(plot) == pytest.approx(bar_areas(plot, "bars right"), rel=0.01)
    bars, outline = (elements(plot, "path", class_)[0] for class_ in ("bars right", "outline wrong"))
    first_bar, first_step = (float(re.findall(r"M([\d.]+)", p.get("d", ""))[0]) for p in (bars, outline))
    assert first_step < first_bar - 10
    assert {"chosen", "rejected"} <= set(labels(plot))


@pytest.mark.parametrize(
    "rewards", [[0.0], [-3.0], [1e17], [1e-9, -1e-9], [1.0, np.nextafter(1.0, 2.0)], [1.0] * 5 + [1e5]]
)
def test_odd_rewards_have_a_histogram(rewards: list[float]):
    plot = reward_histogram("name", np.array(rewards), np.array(rewards))
    assert bar_areas(plot, "bars right") > 0
    assert outline_heights(plot) > 0


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_reliability_above_the_diagonal_is_drawn_above_it():
    """Of the pairs of confidence 67%, 90% are right; of those of 97%, 60%."""
    low, high = logit(0.67), logit(0.97)
    plot = reliability_curve("name", np.array([low] * 45 + [-low] * 5 + [high] * 30 + [-high] * 20))
    (diagonal,) = elements(plot, "line", "dashed")
    x1, y1, x2, y2 = (float(diagonal.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
    heights = [y - (y1 + (x - x1) * (y2 - y1) / (x2 - x1)) for x, y in dots(plot)]
    assert heights[0] < 0 < heights[1]  # y grows downwards


def test_ticks_are_round_values_at_their_places_between_the_bins_edges():
    by = np.array([-2823.0, -10.4, -3.0, 0.2, 700.0, 1862.0, 0.0, 90.0])
    plot = accuracy_by("name", np.sign(by), by, "characters")
    edges = np.quantile(by, np.linspace(0, 1, 9))
    shown = [(e.text or "", float(e.get("x", ""))) for e in elements(plot, "text", "middle")][:-1]  # the axis's name
    for label, x in shown:
        value = float(label.replace("−", "-").replace(",", ""))
        assert label.strip("−0.,") in ("", "1", "2", "5")
        assert x == pytest.approx(34 + 218 * np.interp(value, edges, range(9)) / 8, abs=0.1)
    assert len(shown) >= 3
    assert "0" in dict(shown)
    heights = [y for _, y in dots(plot)]
    assert heights == sorted(heights, reverse=True)
    assert len(elements(plot, "line", "whisker")) == len(heights) == 8


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-9])
def test_equal_values_have_a_plot_too(value: float):
    assert len(dots(accuracy_by("name", np.ones(9), np.full(9, value), "x"))) == 1
