"""Plots of best-of-N: overlapping circles of whose selection is best, and curves over n.

Pure functions from numbers to inline SVG, coloured by CSS class.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hafrm.report.svg import Frame, Scale, drawing, element, nice_step, path, steps, text
from hafrm.report.wording import percent, shortened, visible

MOST_CIRCLES = 3
"""Maximum number of circles whose overlaps can all be drawn."""

_RADIUS, _APART = 76.0, 46.0
_MIDDLE = (190.0, 158.0)


def overlap_circles(label: str, names: Mapping[str, str], regions: Mapping[frozenset[str], float]) -> Markup:
    """Draw one circle per scorer, with the share of each region in percent (the paper's Figure 4).

    Args:
        label: Description for screen readers.
        names: Two or three scorers, with their names in the figure.
        regions: The share of prompts whose best selection is that of exactly these scorers.

    Raises:
        ValueError: there are fewer than two scorers, or more than three.
    """
    if not 2 <= len(names) <= MOST_CIRCLES:
        raise ValueError(f"circles are drawn for two or three scorers, got {len(names)}")
    centres = dict(zip(names, _centres(len(names)), strict=True))
    parts = []
    for number, (name, (x, y)) in enumerate(centres.items()):
        circle = sum(share for whose, share in regions.items() if name in whose)
        title = element("title", visible(f"{names[name]}: {percent(circle)}%"))
        parts.append(element("circle", title, cx=x, cy=y, r=_RADIUS, class_=f"s{number} many"))
        parts.append(text(*_outside(x, y), f"{shortened(names[name], 22)} {percent(circle)}", "middle strong"))
    for whose, share in regions.items():
        parts.append(text(*_inside(centres, whose), percent(share), "middle"))
    return drawing(2 * _MIDDLE[0], 2 * _MIDDLE[1] + 14, label, parts)


def _centres(count: int) -> list[tuple[float, float]]:
    """Return centres on a ring, the first at the top; two are next to each other."""
    first = math.pi if count == 2 else -math.pi / 2
    angles = [first + 2 * math.pi * number / count for number in range(count)]
    return [(_MIDDLE[0] + _APART * math.cos(angle), _MIDDLE[1] + _APART * math.sin(angle)) for angle in angles]


def _outside(x: float, y: float) -> tuple[float, float]:
    """Return the position of a circle's name: outside it, above or below."""
    if y < _MIDDLE[1] - 1:
        return x, y - _RADIUS - 8
    return x + 0.5 * (x - _MIDDLE[0]), y + _RADIUS + 16


def _inside(centres: Mapping[str, tuple[float, float]], whose: Collection[str]) -> tuple[float, float]:
    """Return the middle of the region of exactly these circles."""
    x, y = (sum(centres[name][axis] for name in whose) / len(whose) - _MIDDLE[axis] for axis in (0, 1))
    stretch = 1.0 if len(whose) == len(centres) else 1.85
    return _MIDDLE[0] + stretch * x, _MIDDLE[1] + stretch * y + 4


@dataclass(frozen=True)
class Growth:
    """One value's growth with n."""

    name: str
    kind: str
    """The CSS classes of its curve."""
    values: Sequence[float]
    """At n = 1, 2, ..."""
    ci95: Sequence[Sequence[float] | None] = ()


def growth_curves(label: str, curves: Sequence[Growth], kl: Sequence[float], y_label: str) -> Markup:
    """Draw curves over n, with the bound of the KL divergence below each n.

    Args:
        label: Description for screen readers.
        curves: The curves, all of the same length.
        kl: The second label of the axis at each n, in nats.
        y_label: Label of the y axis.
    """
    ends = np.array(
        [end for each in curves for end in [*each.values, *(e for pair in each.ci95 if pair for e in pair)]]
    )
    step = nice_step(float(np.ptp(ends)) or 1.0, 6)
    low, high = math.floor(ends.min() / step) * step, math.ceil(ends.max() / step) * step
    frame = Frame(Scale(1.0, max(2.0, float(len(kl))), 46, 368), Scale(low, high, 230, 26))
    shown = range(0, len(kl), max(1, len(kl) // 8))
    x_ticks = [(float(n + 1), f"{n + 1}") for n in shown]
    y_ticks = [(tick, f"{tick + 0.0:.3g}".replace("-", "−")) for tick in steps(low, high, step)]
    parts = frame.axes(x_ticks, y_ticks, "", y_label)
    parts += [text(frame.x(n + 1.0), 258, f"{kl[n]:.2f}", "middle") for n in shown]
    parts += [text(207, 275, "n, and below it the most that KL grows to, in nats", "middle name")]
    for place, each in enumerate(curves):
        parts += _growth(frame, each)
        x, y = 46 + 165 * (place % 2), 292 + 16 * (place // 2)
        parts += [path([("M", x, y - 4.0), ("L", x + 22.0, y - 4.0)], f"series {each.kind}")]
        parts += [text(x + 27.0, float(y), shortened(each.name, 24))]
    return drawing(380, 296 + 16 * ((len(curves) - 1) // 2), label, parts)


def _growth(frame: Frame, each: Growth) -> list[Markup]:
    at = [(frame.x(n), frame.y(value)) for n, value in enumerate(each.values, 1)]
    drawn = path((("L" if number else "M", x, y) for number, (x, y) in enumerate(at)), f"series {each.kind}")
    parts = [element("g", element("title", visible(each.name)), drawn)]
    for n, ends in enumerate(each.ci95, 1):
        if ends:
            low, high = map(frame.y, ends)
            parts.append(path([("M", frame.x(n), low), ("L", frame.x(n), high)], f"series {each.kind}"))
    return parts
