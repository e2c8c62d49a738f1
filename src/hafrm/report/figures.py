"""Figures of experiments: grouped bars of accuracies, and panels of curves over training steps.

Pure functions from numbers to inline SVG, coloured by class; `standalone` turns a figure into a file with its own style
sheet, for light and dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup, escape

from hafrm.report.svg import Frame, Scale, drawing, element, line, nice_step, path, steps, text
from hafrm.report.wording import interval, percent, visible

_CHANCE = 0.5


@dataclass(frozen=True)
class Bar:
    """One accuracy, in [0, 1]."""

    kind: str
    """The CSS class that colours it and links it to the legend."""
    value: float
    ci95: tuple[float, float] | None = None
    light: float | None = None
    """A second value drawn behind it in a lighter shade."""


@dataclass(frozen=True)
class BarGroup:
    """Adjacent bars over one label."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    kind: str
    """The CSS classes of the line."""
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One plot, usually over training steps."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str = "training step"


def accuracy_bars(label: str, groups: Sequence[BarGroup], legend: Sequence[tuple[str, str]]) -> Markup:
    """Draw grouped bars that start from one half, the accuracy of a coin, upwards or downwards.

    Args:
        label: Description for screen readers.
        groups: The bars.
        legend: The CSS classes of bars with their meanings.
    """
    left, top, bar = 40.0, 34.0, 18.0
    slot = bar * max(len(group.bars) for group in groups) + 22
    right, bottom = left + slot * len(groups), 230.0
    low, high = _bar_extent(groups)
    frame = Frame(Scale(0.0, float(len(groups)), left, right), Scale(low, high, bottom, top))
    ticks = [(tick, f"{100 * tick:.0f}") for tick in steps(low, high, 0.1)]
    parts = frame.axes([], ticks, "", "accuracy, %")
    for number, group in enumerate(groups):
        start = frame.x(number) + (slot - bar * len(group.bars)) / 2
        for place, each in enumerate(group.bars):
            parts += _bar(each, frame.y, start + bar * place, bar, group.label)
        parts.append(text(frame.x(number + 0.5), bottom + 16, group.label, "middle"))
    parts.append(line(left, frame.y(_CHANCE), right, frame.y(_CHANCE), "axis"))
    entries, end = _legend(legend, left + 80)
    return drawing(max(right + 10, end), bottom + 24, label, [*parts, *entries])


def _bar_extent(groups: Sequence[BarGroup]) -> tuple[float, float]:
    shown = [
        value
        for group in groups
        for bar in group.bars
        for value in (bar.value, bar.light, *(bar.ci95 or ()))
        if value is not None
    ]
    return float(np.floor(min(*shown, _CHANCE) * 10) / 10), float(np.ceil(max(*shown, 0.6) * 10) / 10)


def _bar(bar: Bar, y: Scale, x: float, width: float, group: str) -> list[Markup]:
    parts = []
    if bar.light is not None:
        parts.append(path(_box(x + 1, x + width - 1, y(_CHANCE), y(bar.light)), f"bar light {bar.kind}"))
    inset = 4 if bar.light is not None else 1
    worded = f"{group}, {bar.kind}: {percent(bar.value)} {interval(bar.ci95, percent)}".strip()
    box = path(_box(x + inset, x + width - inset, y(_CHANCE), y(bar.value)), f"bar {bar.kind}")
    parts.append(element("g", element("title", visible(worded)), box))
    if bar.ci95:
        middle = x + width / 2
        parts.append(line(middle, y(bar.ci95[0]), middle, y(bar.ci95[1]), "error"))
    return parts


def _box(left: float, right: float, start: float, end: float) -> list[tuple[str, float, float]]:
    return [("M", left, start), ("L", left, end), ("L", right, end), ("L", right, start)]


def _legend(entries: Sequence[tuple[str, str]], x: float) -> tuple[list[Markup], float]:
    """Draw the legend from x on, and return where it ends."""
    parts = []
    for kind, label in entries:
        parts += [path(_box(x, x + 10, 18, 8), f"bar {kind}"), text(x + 15, 17, label)]
        x += 32 + 6.5 * len(label)
    return parts, x


def curve_panels(label: str, panels: Sequence[Panel]) -> Markup:
    """Draw adjacent panels with one legend for all.

    Args:
        label: Description for screen readers.
        panels: The plots; all have the same curves.
    """
    width, height = 270.0, 200.0
    parts: list[Markup] = []
    for number, panel in enumerate(panels):
        parts += _panel(panel, width * number, width, height)
    x = 40.0
    for curve in panels[0].curves:
        parts.append(path([("M", x, height + 30), ("L", x + 22, height + 30)], f"series {curve.kind}"))
        parts.append(text(x + 27, height + 34, curve.label))
        x += 46 + 6.5 * len(curve.label)
    return drawing(max(width * len(panels), x), height + 44, label, parts)


def _panel(panel: Panel, offset: float, width: float, height: float) -> list[Markup]:
    points = np.array([point for curve in panel.curves for point in curve.points])
    (left, low), (right, high) = points.min(axis=0), points.max(axis=0)
    left, right = min(0.0, float(left)), max(1.0, float(right))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = nice_step(high - low, 5)
    low, high = float(np.floor(low / step) * step), float(np.ceil(high / step) * step)
    frame = Frame(Scale(left, right, offset + 40, offset + width - 14), Scale(low, high, height - 40, 26.0))
    x_ticks = [(tick, f"{tick:,g}") for tick in steps(left, right, nice_step(right - left, 4))]
    y_ticks = [(tick, f"{tick:.3g}".replace("-", "−")) for tick in steps(low, high, step)]
    parts = frame.axes(x_ticks, y_ticks, panel.x_label, "")
    parts.append(text(offset + 40, 14, panel.title, "strong"))
    for curve in panel.curves:
        at = [(frame.x(x), frame.y(y)) for x, y in curve.points]
        drawn = path((("L" if number else "M", x, y) for number, (x, y) in enumerate(at)), f"series {curve.kind}")
        parts.append(element("g", element("title", visible(f"{panel.title}: {curve.label}")), drawn))
    return parts


def figure_style() -> Markup:
    """Return the style sheet of figures: the page's, with additions."""
    own = resources.files(__package__).joinpath("figures.css").read_text(encoding="utf-8")
    return Markup(resources.files("hafrm.report").joinpath("page.css").read_text(encoding="utf-8") + own)


def caption_of(svg: Markup) -> str:
    """Return a figure's description for screen readers, which is also its caption."""
    return ElementTree.fromstring(svg).attrib["aria-label"]


def standalone(svg: Markup) -> str:
    """Return a figure as a separate file: with its namespace, a title for the browser's tab, and its style."""
    head, _, rest = str(svg).partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}><title>{escape(caption_of(svg))}</title><style>{figure_style()}</style>{rest}\n"
