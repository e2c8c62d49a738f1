"""Scatter plots: well-formed XML with every point in its place, and self-contained files."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from hafrm.report.charts import standalone
from hafrm.report.figures import Series, StraightLine, scatter

SVG = "{http://www.w3.org/2000/svg}"


def series(count: int) -> list[Series]:
    return [Series(f"<kind {i}>", np.array([0.0, 1.0]), np.array([i, i + 1.0])) for i in range(count)]


def test_a_file_of_its_own_is_sound_xml_with_a_style_and_every_point() -> None:
    text = standalone(scatter("a & b", series(5), "x", "y", [StraightLine("y = x", 1.0)]))
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label") == "a & b"
    assert [each.tag for each in root[:2]] == [f"{SVG}title", f"{SVG}style"]
    assert "script" not in text
    marks = [each.get("class") for each in root.iter() if (each.get("class") or "")[:1] == "s"]
    assert {name: marks.count(name) for name in marks} == {f"s{i}": 3 for i in range(5)}  # two points and the key
    assert "<kind 4>" in [each.text for each in root.iter(f"{SVG}text")]


def test_the_diagonal_lies_where_x_is_y() -> None:
    picture = scatter("d", [Series("", np.array([0.0, 2.0]), np.array([0.0, 2.0]))], "x", "y", [StraightLine("d", 1)])
    root = ElementTree.fromstring(standalone(picture))
    (diagonal,) = [each for each in root.iter(f"{SVG}line") if "dashed" in (each.get("class") or "")]
    x1, y1, x2, y2 = (float(diagonal.get(name) or "nan") for name in ("x1", "y1", "x2", "y2"))
    for circle in root.iter(f"{SVG}circle"):
        x, y = float(circle.get("cx") or "nan"), float(circle.get("cy") or "nan")
        assert (x - x1) * (y2 - y1) == pytest.approx((y - y1) * (x2 - x1), rel=1e-2, abs=60)
    assert (x1 < x2, y1 > y2) == (True, True)  # upward


def test_a_line_that_misses_the_plot_is_left_out() -> None:
    picture = scatter("d", series(1), "x", "y", [StraightLine("far", 0.0, 99.0)])
    assert "far" not in picture


def test_points_must_be_there_and_finite() -> None:
    for bad in ([], [Series("", np.array([np.nan]), np.array([1.0]))]):
        with pytest.raises(ValueError, match="finite"):
            scatter("d", bad, "x", "y")
    with pytest.raises(ValueError, match="at most 5"):
        scatter("d", series(6), "x", "y")
