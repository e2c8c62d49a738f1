"""Figures of experiments: bars, curves, scatter plots and overlapping circles. Accuracies are in [0, 1].

A figure's `label` describes it to screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup

from hafrm.report.charts import (
    Interval,
    Plot,
    Point,
    Scale,
    bar_swatch,
    box,
    element,
    legend,
    line,
    line_swatch,
    nice_step,
    path,
    picture,
    text,
    ticks,
    titled,
)
from hafrm.report.wording import percent, shortened, visible, with_interval
from hafrm.stats import Floats

_CHANCE = 0.5


@dataclass(frozen=True)
class Bar:
    """One accuracy."""

    kind: str
    """The CSS class that colours it and links it to the legend."""
    value: float
    ci95: Interval | None = None
    light: float | None = None
    """A second value drawn behind it in a lighter shade."""


@dataclass(frozen=True)
class BarGroup:
    """Adjacent bars over one label."""

    label: str
    bars: tuple[Bar, ...]


def accuracy_bars(label: str, groups: Sequence[BarGroup], meanings: Sequence[tuple[str, str]]) -> Markup:
    """Draw grouped bars that start from one half, the accuracy of a coin, upwards or downwards.

    Args:
        groups: The bars.
        meanings: The CSS classes of bars with what they mean, for the legend.
    """
    bar = 18.0
    slot = bar * max(len(group.bars) for group in groups) + 22
    right = 40.0 + slot * len(groups)
    plot = Plot((0.0, float(len(groups))), _bar_extent(groups), left=40.0, right=right, top=26.0, bottom=222.0)
    plot.axes([], ticks(plot.y.low, plot.y.high, 10, least=0.1, unit=100), "", "accuracy, %")
    for number, group in enumerate(groups):
        start = plot.x(number) + (slot - bar * len(group.bars)) / 2
        for place, each in enumerate(group.bars):
            plot.parts += _bar(each, plot.y, start + bar * place, bar, group.label)
        plot.parts.append(text(plot.x(number + 0.5), plot.y.start + 16, group.label, "middle"))
    plot.level(_CHANCE, "axis")
    entries = [(partial(bar_swatch, f"bar {kind}"), meaning) for kind, meaning in meanings]
    parts, (end, bottom) = legend(entries, 30.0, plot.y.start + 38, plot.x.end)
    return picture(max(plot.x.end + 10, end), bottom + 12, label, plot.parts + parts)


def _bar_extent(groups: Sequence[BarGroup]) -> Interval:
    """Return the range of all bars and intervals, in steps of 10%, with 50% and 60%."""
    bars = [bar for group in groups for bar in group.bars]
    shown = [end for bar in bars for end in (bar.value, bar.light, *(bar.ci95 or ())) if end is not None]
    return math.floor(min(*shown, _CHANCE) * 10) / 10, math.ceil(max(*shown, 0.6) * 10) / 10


def _bar(bar: Bar, y: Scale, x: float, width: float, group: str) -> list[Markup]:
    parts = []
    if bar.light is not None:
        parts.append(path(f"bar light {bar.kind}", box(x + 1, x + width - 1, y(_CHANCE), y(bar.light))))
    inset = 1 if bar.light is None else 4
    worded = f"{group}, {bar.kind}: {with_interval(bar.value, bar.ci95, percent)}"
    front = box(x + inset, x + width - inset, y(_CHANCE), y(bar.value))
    parts.append(titled(worded, path(f"bar {bar.kind}", front)))
    if bar.ci95:
        middle = x + width / 2
        parts.append(line(middle, y(bar.ci95[0]), middle, y(bar.ci95[1]), "error"))
    return parts


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    kind: str
    """The CSS classes of the line."""
    points: tuple[Point, ...]
    ci95: tuple[Interval | None, ...] = ()
    """The intervals of the points' y, if there are any."""


_KINDS = ("haf", "baseline", "dpo", "haf dash1", "baseline dash2", "dpo dash3")


def curve_kind(number: int) -> str:
    """Return the style of a curve that has none of its own, by its number from 0."""
    return _KINDS[number % len(_KINDS)]


@dataclass(frozen=True)
class Panel:
    """One plot, usually over training steps."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str = "training step"


def curve_panels(label: str, panels: Sequence[Panel]) -> Markup:
    """Draw adjacent panels with one legend for all.

    Args:
        panels: The plots; all have the same curves.
    """
    width, bottom = 270.0, 160.0
    parts: list[Markup] = []
    for number, panel in enumerate(panels):
        left = width * number + 40
        at = [x for curve in panel.curves for x, _ in curve.points]
        plot = _curves(panel.curves, (min(0.0, *at), max(1.0, *at)), panel.title, left, left + width - 54, bottom)
        plot.axes(ticks(plot.x.low, plot.x.high, 4), ticks(plot.y.low, plot.y.high, 5), panel.x_label)
        plot.parts.append(text(left, 14, panel.title, "strong"))
        parts += plot.parts
    key, (end, y) = _curve_legend(panels[0].curves, bottom + 50, width * len(panels))
    return picture(max(width * len(panels), end - 20), y + 14, label, parts + key)


def growth_curves(label: str, curves: Sequence[Curve], kl: Sequence[float], y_label: str) -> Markup:
    """Draw curves over the N of best-of-N, with the bound of the KL divergence below each N.

    Args:
        curves: The curves, with points at N = 1, 2, ...
        kl: The second label of the axis at each N, in nats.
    """
    plot = _curves(curves, (1.0, max(2.0, float(len(kl)))), "", 46, 368, 230)
    shown = range(0, len(kl), max(1, len(kl) // 8))
    plot.axes([(n + 1.0, f"{n + 1}") for n in shown], ticks(plot.y.low, plot.y.high, 6), "", y_label)
    plot.parts += [text(plot.x(n + 1.0), 258, f"{kl[n]:.2f}", "middle") for n in shown]
    plot.parts.append(text(207, 275, "N, and below it the upper bound of KL, in nats", "middle name"))
    key, (_, y) = _curve_legend(curves, 292, 380)
    return picture(380, y + 12, label, plot.parts + key)


def _curves(curves: Sequence[Curve], x: Interval, title: str, left: float, right: float, bottom: float) -> Plot:
    """Draw curves with their intervals, on a y axis that ends at round values."""
    ends = [y for curve in curves for y in (*(y for _, y in curve.points), *(e for ci in curve.ci95 if ci for e in ci))]
    low, high = min(ends), max(ends)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = nice_step(high - low, 5)
    plot = Plot(
        x, (math.floor(low / step) * step, math.ceil(high / step) * step), left=left, right=right, top=26, bottom=bottom
    )
    for number, curve in enumerate(curves):
        beside = 4 * (number - (len(curves) - 1) / 2)  # pixels, so that intervals at one x can be told apart
        points = curve.points
        if len(points) == 1:  # a dash, since a line needs two points
            ((at, y),), reach = points, 0.02 * (x[1] - x[0])
            points = ((at - reach, y), (at + reach, y))
        plot.curve(points, f"series {curve.kind}", f"{title}: {curve.label}" if title else curve.label)
        for (at, _), ci95 in zip(curve.points, curve.ci95, strict=False):
            if ci95:
                span = [(plot.x(at) + beside, plot.y(end)) for end in ci95]
                plot.parts.append(path(f"series {curve.kind.split()[0]} interval", span))
    return plot


def _curve_legend(curves: Sequence[Curve], y: float, right: float) -> tuple[list[Markup], Point]:
    entries = [
        (partial(line_swatch, f"series {each.kind}"), shortened(each.label, 24)) for each in curves if each.label
    ]
    return legend(entries, 40.0, y, right)


# Corners of each non-circular mark around its centre; `_MARKS[i]` belongs to the class `s{i}`.
_MARKS: tuple[tuple[Point, ...], ...] = (
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
        series: The points, at least one in all; finite.
        lines: Lines to draw below the points; those outside the plot are left out.

    Raises:
        ValueError: there are no points, one is not finite, or more than five kinds.
    """
    x, y = (np.concatenate([getattr(each, axis) for each in series] or [[]]) for axis in ("x", "y"))
    if not len(x) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a scatter plot needs points, and finite ones")
    if len(series) > len(_MARKS):
        raise ValueError(f"a scatter plot has at most {len(_MARKS)} kinds of points, got {len(series)}")
    plot = Plot(_with_margins(x), _with_margins(y), left=46, right=368, top=26, bottom=262)
    plot.axes(ticks(plot.x.low, plot.x.high, 6), ticks(plot.y.low, plot.y.high, 6), x_label, y_label)
    for each in lines:
        _draw_straight(plot, each)
    many = " many" if len(x) > 100 else ""
    for number, points_ in enumerate(series):
        at = map(plot.at, zip(points_.x, points_.y, strict=True))
        plot.parts += [_mark(f"s{number}{many}", _MARKS[number], *each) for each in at]
    entries = [
        (partial(_mark, f"s{number}", _MARKS[number], shift=11), each.name)
        for number, each in enumerate(series)
        if each.name
    ]
    key, (_, bottom) = legend(entries, 40.0, 308, 380)
    return picture(380, bottom + 12 if entries else 300, label, plot.parts + key)


def _with_margins(values: Floats) -> Interval:
    """Return the values' range with margins of 5%."""
    low, high = float(values.min()), float(values.max())
    margin = (high - low or abs(high) or 1.0) / 20
    return low - margin, high + margin


def _draw_straight(plot: Plot, each: StraightLine) -> None:
    """Draw the part of a line within the plot, if there is one."""
    x = np.array([plot.x.low, plot.x.high])
    if each.slope:
        meets = np.sort((np.array([plot.y.low, plot.y.high]) - each.intercept) / each.slope)
        x = np.clip(x, *meets)
    y = each.intercept + each.slope * x
    if x[0] != x[1] and plot.y.low <= y.mean() <= plot.y.high:
        plot.line((x[0], y[0]), (x[1], y[1]), each.class_, each.name)


def _mark(class_: str, corners: Sequence[Point], x: float, y: float, shift: float = 0.0) -> Markup:
    x += shift
    if not corners:
        return element("circle", cx=x, cy=y, r=3.5, class_=class_)
    return path(class_, [(x + dx, y + dy) for dx, dy in corners])


MOST_CIRCLES = 3
"""Maximum number of circles whose overlaps can all be drawn."""

_RADIUS, _APART = 76.0, 46.0
_METHODS = ("haf", "baseline", "dpo")
"""The methods, each with one colour in all figures, and the colours of up to three other scorers, in order."""


def overlap_circles(label: str, names: Mapping[str, str], regions: Mapping[frozenset[str], float]) -> Markup:
    """Draw one circle per scorer, with the share of each region in percent (the paper's Figure 4).

    Args:
        names: Two or three scorers, with their names in the figure.
        regions: The share of prompts whose best selection is that of exactly these scorers.

    Raises:
        ValueError: there are fewer than two scorers, or more than three.
    """
    if not 2 <= len(names) <= MOST_CIRCLES:
        raise ValueError(f"circles are drawn for two or three scorers, got {len(names)}")
    first = math.pi if len(names) == 2 else -math.pi / 2  # two are next to each other; the first of three is on top
    angles = [first + 2 * math.pi * number / len(names) for number in range(len(names))]
    middle = 190.0, 84.0 if len(names) == 2 else 152.0
    centres = {
        name: (middle[0] + _APART * math.cos(angle), middle[1] + _APART * math.sin(angle))
        for name, angle in zip(names, angles, strict=True)
    }
    parts = []
    for number, (name, (x, y)) in enumerate(centres.items()):
        whole = percent(sum(share for whose, share in regions.items() if name in whose))
        title = element("title", visible(f"{names[name]}: {whole}%"))
        kind = name if name in _METHODS else _METHODS[number]
        parts.append(element("circle", title, cx=x, cy=y, r=_RADIUS, class_=f"bar {kind} many"))
        above = y < middle[1] - 1
        at = (x, y - _RADIUS - 8) if above else (x + 0.5 * (x - middle[0]), y + _RADIUS + 16)
        parts.append(text(*at, f"{shortened(names[name], 22)} {whole}", "middle strong"))
    for whose, share in regions.items():
        parts.append(text(*_inside(centres, whose), percent(share), "middle"))
    lowest = max(y for _, y in centres.values())
    return picture(2 * middle[0], lowest + _RADIUS + 24, label, parts)


def _inside(centres: Mapping[str, Point], whose: Collection[str]) -> Point:
    """Return the middle of the region of exactly these circles."""
    middle_x, middle_y = _mean(list(centres.values()))
    x, y = _mean([centres[name] for name in whose])
    stretch = 1.0 if len(whose) == len(centres) else 1.85
    return middle_x + stretch * (x - middle_x), middle_y + stretch * (y - middle_y) + 4


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
