"""What charts are made of, as inline SVG: axes, ticks, marks and legends.

Everything is coloured by class, so that the style sheets control both light and dark mode, and pictures scale with
their container. `diagnostics` has the charts of an evaluation's page, `figures` those of experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup, escape

from hafrm.report.html import figure_style
from hafrm.report.wording import visible
from hafrm.stats import Floats

Point = tuple[float, float]
Interval = tuple[float, float]
Tick = tuple[float, str]
"""A position on an axis, in the units of the plotted values, and its label."""

_NARROW = {"class_": "narrow"}
"""Attributes of a picture of one plot, which is not stretched to the width that several fill."""

_CHARACTER = 6.5  # the mean width of a character, in pixels


def element(name: str, *children: Markup | str, **attributes: str | float) -> Markup:
    """Build one element, escaped; numbers have at most one decimal, and `_` in an attribute's name becomes `-`."""
    worded = "".join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _pixels(value))
        for key, value in attributes.items()
    )
    return Markup("<{name}{worded}>{content}</{name}>").format(
        name=name, worded=Markup(worded), content=Markup("").join(children)
    )


def text(x: float, y: float, content: str, class_: str = "") -> Markup:
    """Draw a line of text; its class sets its anchor."""
    return element("text", visible(content), x=x, y=y, **({"class_": class_} if class_ else {}))


def _pixels(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def picture(width: float, height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """Build a picture; `label` describes it to screen readers."""
    extent = f"0 0 {_pixels(width)} {_pixels(height)}"
    return element(
        "svg", *parts, viewBox=extent, role="img", aria_label=visible(label), **_NARROW if width < 420 else {}
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(class_: str, *lines: Iterable[Point]) -> Markup:
    """Draw lines through points, as one path."""
    d = "".join(
        f"{'L' if place else 'M'}{_pixels(x)} {_pixels(y)}" for each in lines for place, (x, y) in enumerate(each)
    )
    return element("path", d=d, class_=class_)


def titled(title: str, drawn: Markup) -> Markup:
    """Add a title, which is shown on hovering."""
    return element("g", element("title", visible(title)), drawn)


def dot(x: float, y: float, radius: float, title: str = "") -> Markup:
    """Draw a dot with a title, if there is one."""
    children = [element("title", visible(title))] if title else []
    return element("circle", *children, cx=x, cy=y, r=radius, class_="dot")


def box(left: float, right: float, base: float, end: float) -> list[Point]:
    """Return the corners of a bar from `base` to `end`."""
    return [(left, base), (left, end), (right, end), (right, base)]


@dataclass(frozen=True)
class Scale:
    """A linear map from the values [low, high] to the pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; a scale with zero extent maps every value to its middle."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_step(extent: float, count: int) -> float:
    """Return the step of the form 1, 2 or 5 times a power of ten that splits `extent` into at most `count` parts.

    Raises:
        ValueError: the extent is not positive.
    """
    if not extent > 0:
        raise ValueError(f"extent must be positive, got {extent}")
    raw = extent / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def ticks(low: float, high: float, count: int, *, least: float = 0.0, unit: float = 1.0) -> list[Tick]:
    """Return the multiples of a round step within [low, high], with their labels.

    Args:
        count: Maximum number of steps.
        least: Smallest step.
        unit: What labels are multiplied by: 100 for percent.
    """
    step = max(least, nice_step(high - low, count))
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(place * step, label_of(place * step * unit, step * unit)) for place in places]


def label_of(value: float, step: float) -> str:
    """Format a value with the decimals that distinguish it from the next step: "−0.25", "1,200"."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    plain = decimals <= 5 and abs(value) < 1e6
    rounded = round(value, decimals) + 0.0  # + 0.0 avoids negative zero
    return (f"{rounded:,.{decimals}f}" if plain else f"{rounded:.3g}").replace("-", "−")


class Plot:
    """A plot's axes, and the marks on it so far; marks are placed in the units of the plotted values."""

    def __init__(self, x: Interval, y: Interval, *, left: float, right: float, top: float, bottom: float) -> None:
        """Start a plot with the ranges of its axes, and its edges in pixels."""
        self.x, self.y = Scale(*x, left, right), Scale(*y, bottom, top)
        self.parts: list[Markup] = []

    def axes(self, x_ticks: Sequence[Tick], y_ticks: Sequence[Tick], x_label: str = "", y_label: str = "") -> None:
        """Draw horizontal grid lines, the base line, tick labels, and axis labels."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        self.parts += [line(left, self.y(value), right, self.y(value), "grid") for value, _ in y_ticks]
        self.parts += [text(left - 5, self.y(value) + 3.5, label, "end") for value, label in y_ticks]
        self.parts.append(line(left, bottom, right, bottom, "axis"))
        for value, label in x_ticks:
            self.parts.append(line(self.x(value), bottom, self.x(value), bottom + 4, "axis"))
            self.parts.append(text(self.x(value), bottom + 15, label, "middle"))
        if x_label:
            self.parts.append(text((left + right) / 2, bottom + 30, x_label, "middle name"))
        if y_label:
            self.parts.append(text(0, top - 8, y_label, "name"))

    def at(self, point: Point) -> Point:
        """Return the pixels of a point."""
        return self.x(point[0]), self.y(point[1])

    def line(self, start: Point, end: Point, class_: str, title: str = "") -> None:
        """Draw a straight line."""
        drawn = line(*self.at(start), *self.at(end), class_)
        self.parts.append(titled(title, drawn) if title else drawn)

    def level(self, y: float, class_: str) -> None:
        """Draw a horizontal line across the plot."""
        self.line((self.x.low, y), (self.x.high, y), class_)

    def curve(self, at: Iterable[Point], class_: str, title: str = "") -> None:
        """Draw a line through points."""
        drawn = path(class_, map(self.at, at))
        self.parts.append(titled(title, drawn) if title else drawn)

    def bars(self, edges: Floats, heights: Floats, class_: str) -> None:
        """Draw bars that start at 0, with gaps of one pixel, as one path; those of height 0 are left out."""
        bars = zip(edges[:-1], edges[1:], heights, strict=True)
        boxes = [box(self.x(a) + 0.5, self.x(b) - 0.5, self.y(0.0), self.y(n)) for a, b, n in bars if n]
        self.parts.append(path(class_, *boxes))


Swatch = Callable[[float, float], Markup]
"""Draws a legend's sign, 22 pixels wide, from its left end and its middle."""


def legend(entries: Sequence[tuple[Swatch, str]], x: float, y: float, right: float) -> tuple[list[Markup], Point]:
    """Draw a legend in as many rows as it needs, and return it with its right and its lower end."""
    parts, left, end = [], x, x
    for swatch, label in entries:
        width = 46 + _CHARACTER * len(label)
        if x > left and x + width - 20 > right:
            x, y = left, y + 16
        parts += [swatch(x, y), text(x + 27, y + 4, label)]
        x += width
        end = max(end, x)
    return parts, (end, y)


def bar_swatch(class_: str, x: float, y: float) -> Markup:
    """Draw a small bar."""
    return path(class_, box(x + 10, x + 22, y + 5, y - 5))


def line_swatch(class_: str, x: float, y: float) -> Markup:
    """Draw a short line."""
    return path(class_, [(x, y), (x + 22, y)])


def caption_of(svg: Markup) -> str:
    """Return a figure's description for screen readers, which is also its caption."""
    return ElementTree.fromstring(svg).attrib["aria-label"]


def standalone(svg: Markup) -> str:
    """Return a figure as a separate file: with its namespace, a title for the browser's tab, and its style."""
    head, _, rest = str(svg).partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}><title>{escape(caption_of(svg))}</title><style>{figure_style()}</style>{rest}\n"
