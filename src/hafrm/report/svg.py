"""Small pieces of inline SVG: scales, ticks, elements and the frame of a plot.

Everything is coloured by class, so that the page's style sheet controls both light and dark mode; this module does not
depend on what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hafrm.report.wording import visible

Tick = tuple[float, str]
"""A position on an axis, in the units of the plotted values, and its label."""


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


def element(name: str, *children: Markup | str, **attributes: str | float) -> Markup:
    """Build one element, escaped; numbers have at most one decimal, and `_` in an attribute's name becomes `-`."""
    worded = "".join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value))
        for key, value in attributes.items()
    )
    return Markup("<{name}{worded}>{content}</{name}>").format(
        name=name, worded=Markup(worded), content=Markup("").join(children)
    )


def drawing(width: float, height: float, label: str, children: Iterable[Markup]) -> Markup:
    """Build a picture that scales with its container; `label` describes it to screen readers."""
    return element(
        "svg", *children, viewBox=f"0 0 {_number(width)} {_number(height)}", role="img", aria_label=visible(label)
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(commands: Iterable[tuple[str, float, float]], class_: str) -> Markup:
    """Draw a path of absolute commands that take two numbers each: ("M", x, y), ("L", x, y)."""
    return element("path", d="".join(f"{name}{_number(x)} {_number(y)}" for name, x, y in commands), class_=class_)


def text(x: float, y: float, content: str, class_: str = "") -> Markup:
    """Draw a line of text; its class sets its anchor."""
    return element("text", visible(content), x=x, y=y, **({"class_": class_} if class_ else {}))


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


def steps(low: float, high: float, step: float) -> list[float]:
    """Return the multiples of `step` within [low, high]."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Frame:
    """The axes of a plot."""

    x: Scale
    y: Scale

    def axes(self, x_ticks: Sequence[Tick], y_ticks: Sequence[Tick], x_label: str, y_label: str) -> list[Markup]:
        """Draw horizontal grid lines, the base line, tick labels, and axis labels."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = [line(left, self.y(value), right, self.y(value), "grid") for value, _ in y_ticks]
        parts += [text(left - 5, self.y(value) + 3.5, label, "end") for value, label in y_ticks]
        parts.append(line(left, bottom, right, bottom, "axis"))
        for value, label in x_ticks:
            parts += [
                line(self.x(value), bottom, self.x(value), bottom + 4, "axis"),
                text(self.x(value), bottom + 15, label, "middle"),
            ]
        parts.append(text((left + right) / 2, bottom + 30, x_label, "middle name"))
        parts.append(text(0, top - 8, y_label, "name"))
        return parts


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1f}".removesuffix(".0")
