"""Scatter plots as inline SVG, coloured by CSS class (`s0` to `s4`, `fit`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hafrm.report.svg import Frame, Scale, Tick, drawing, element, line, nice_step, path, steps, text
from hafrm.report.wording import visible
from hafrm.stats import Floats

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 380.0, 46.0, 368.0, 26.0, 262.0

# Corners of each non-circular shape around its centre; `_SHAPES[i]` belongs to the class `s{i}`.
_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
    ((0, -4.5), (4.2, 3.2), (-4.2, 3.2)),
    ((0, -5), (5, 0), (0, 5), (-5, 0)),
    ((0, 4.5), (4.2, -3.2), (-4.2, -3.2)),
)


@dataclass(frozen=True)
class Series:
    """Points of one colour and shape."""

    name: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class StraightLine:
    """The line y = intercept + slope * x, drawn across the whole plot."""

    name: str
    slope: float
    intercept: float = 0.0
    class_: str = "reference dashed"


def scatter(
    label: str, series: Sequence[Series], x_label: str, y_label: str, lines: Sequence[StraightLine] = ()
) -> Markup:
    """Draw points of up to five kinds, distinguished by colour and by shape, with straight lines below them.

    Args:
        label: Description for screen readers.
        series: The points, at least one in all; finite.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        lines: Lines to draw below the points.

    Raises:
        ValueError: there are no points, one is not finite, or more than five kinds.
    """
    x, y = (np.concatenate([getattr(each, axis) for each in series] or [[]]) for axis in ("x", "y"))
    if not len(x) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a scatter plot needs points, and finite ones")
    if len(series) > len(_SHAPES):
        raise ValueError(f"a scatter plot has at most {len(_SHAPES)} kinds of points, got {len(series)}")
    x_extent, y_extent = _extent(x), _extent(y)
    frame = Frame(Scale(*x_extent, _LEFT, _RIGHT), Scale(*y_extent, _BOTTOM, _TOP))
    parts = frame.axes(_ticks(*x_extent), _ticks(*y_extent), x_label, y_label)
    parts += [drawn for each in lines if (drawn := _straight(frame, each))]
    many = " many" if len(x) > 100 else ""
    for number, each in enumerate(series):
        parts += [_mark(number, frame.x(a), frame.y(b), many) for a, b in zip(each.x, each.y, strict=True)]
    names = [(each.name, number) for number, each in enumerate(series) if each.name]
    for row, (name, number) in enumerate(names):
        at = _LEFT + 8 + row * (_RIGHT - _LEFT) / max(len(names), 1), _BOTTOM + 46
        parts += [_mark(number, *at, ""), text(at[0] + 9, at[1] + 4, name)]
    return drawing(_WIDTH, _BOTTOM + (56 if names else 38), label, parts)


def _extent(values: Floats) -> tuple[float, float]:
    """Return the values' range with a margin of 5%."""
    low, high = float(values.min()), float(values.max())
    margin = (high - low or abs(high) or 1.0) / 20
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[Tick]:
    step = nice_step(high - low, 6)
    return [(value, f"{value + 0.0:.6g}".replace("-", "−")) for value in steps(low, high, step)]


def _straight(frame: Frame, each: StraightLine) -> Markup | None:
    """Draw the part of a line within the plot; None if the line is outside."""
    x = np.array([frame.x.low, frame.x.high])
    if each.slope:
        meets = np.sort((np.array([frame.y.low, frame.y.high]) - each.intercept) / each.slope)
        x = np.clip(x, *meets)
    y = each.intercept + each.slope * x
    if x[0] == x[1] or not (frame.y.low <= y.mean() <= frame.y.high):
        return None
    drawn = line(frame.x(float(x[0])), frame.y(float(y[0])), frame.x(float(x[1])), frame.y(float(y[1])), each.class_)
    return element("g", element("title", visible(each.name)), drawn)


def _mark(number: int, x: float, y: float, more: str) -> Markup:
    class_ = f"s{number}{more}"
    if not _SHAPES[number]:
        return element("circle", cx=x, cy=y, r=3.5, class_=class_)
    corners = [(x + dx, y + dy) for dx, dy in _SHAPES[number]]
    return path((("L" if place else "M", a, b) for place, (a, b) in enumerate(corners)), class_)
