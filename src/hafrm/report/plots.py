"""The page's plots: pure functions from numbers to inline SVG.

Each is drawn in one narrow column and scaled by the page, so that it is readable on a phone. Shares are in [0, 1], and
are labelled in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hafrm.report.bins import PlottedBin
from hafrm.report.svg import Frame, Scale, Tick, drawing, element, line, nice_step, path, steps, text
from hafrm.report.wording import interval, percent, points, shortened, visible
from hafrm.stats import Floats

_WIDTH, _HEIGHT = 260.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 252.0, 24.0, 152.0
_PERCENT_TICKS: list[Tick] = [(share, f"{100 * share:.0f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


@dataclass(frozen=True)
class ForestRow:
    """One accuracy with its interval."""

    name: str
    accuracy: float
    ci95: tuple[float, float] | None


def forest(label: str, rows: Sequence[ForestRow], extent: tuple[float, float], length_accuracy: float) -> Markup:
    """Draw accuracies with intervals, a row per model, with lines at 50% and at the accuracy of picking the longer
    response.

    Args:
        label: Description for screen readers.
        rows: The models.
        extent: The range of the axis, in [0, 1]; the same for all plots that are to be compared.
        length_accuracy: Position of the dotted line.
    """
    width, row_height, top = 320.0, 36.0, 6.0
    bottom = top + row_height * len(rows)
    x = Scale(*extent, 8, width - 8)
    ticks = steps(*extent, max(0.05, nice_step(extent[1] - extent[0], 8)))
    parts = [line(x(tick), top, x(tick), bottom, "grid") for tick in ticks]
    parts += [text(x(tick), bottom + 14, f"{100 * tick:.0f}", "middle") for tick in ticks]
    parts.append(line(x(0.5), top, x(0.5), bottom, "reference dashed"))
    parts.append(line(x(length_accuracy), top, x(length_accuracy), bottom, "reference dotted"))
    for number, row in enumerate(rows):
        parts += _forest_row(row, x, top + row_height * number)
    return drawing(width, bottom + 20, label, parts)


def _forest_row(row: ForestRow, x: Scale, top: float) -> list[Markup]:
    worded = f"{percent(row.accuracy)} {interval(row.ci95, percent)}".strip()
    title = element("title", visible(f"{row.name}: {worded}"))
    return [
        text(x.start, top + 14, shortened(row.name, 26), "strong"),
        text(x.end, top + 14, worded, "end"),
        *_interval_dot(x, row.accuracy, row.ci95, top + 26, title),
    ]


def _interval_dot(
    x: Scale, value: float, ci95: tuple[float, float] | None, y: float, *children: Markup
) -> list[Markup]:
    """Draw a dot on its interval, if it has one, along a horizontal axis."""
    whiskers = [line(x(ci95[0]), y, x(ci95[1]), y, "whisker")] if ci95 else []
    return [*whiskers, element("circle", *children, cx=x(value), cy=y, r=4, class_="dot")]


def difference_bar(difference: float, ci95: tuple[float, float] | None, extent: float) -> Markup:
    """Draw a difference of accuracies with its interval, on an axis of [-extent, extent] with a line at 0."""
    x = Scale(-extent, extent, 4, 116)
    return drawing(
        120,
        16,
        f"{points(difference)} points {interval(ci95, points)}".strip(),
        [line(x(0), 0, x(0), 16, "axis"), *_interval_dot(x, difference, ci95, 8)],
    )


def margin_histogram(label: str, margins: Floats) -> Markup:
    """Draw a histogram of margins, with separate colours for wrong pairs (below 0) and right ones.

    The axis covers the middle 99% of the margins; values outside count in the outermost bars.

    Args:
        label: Description for screen readers.
        margins: Reward of the better response minus that of the other, [N], N > 0.
    """
    edges = _margin_edges(margins)
    inner = (edges[:-1] + edges[1:]) / 2
    counts = _counts(margins, edges)
    frame, parts = _counting_frame(edges, int(counts.max()), "reward margin", "pairs")
    for class_, wanted in (("bars wrong", inner < 0), ("bars right", inner > 0)):
        bars = [bar for bar in zip(edges[:-1][wanted], edges[1:][wanted], counts[wanted], strict=True) if bar[2]]
        parts.append(path((command for bar in bars for command in _bar(frame, *bar)), class_))
    parts.append(line(frame.x(0), _TOP, frame.x(0), _BOTTOM, "reference dashed"))
    return drawing(_WIDTH, _HEIGHT, label, parts)


def reward_histogram(label: str, chosen: Floats, rejected: Floats) -> Markup:
    """Draw a histogram of rewards: the chosen responses as bars, the rejected ones as an outline over them.

    The axis covers the middle 99% of all rewards; values outside count in the outermost bars.

    Args:
        label: Description for screen readers.
        chosen: Rewards of the better responses, [N], N > 0.
        rejected: Rewards of the other responses, [N].
    """
    low, high = map(float, np.quantile(np.concatenate([chosen, rejected]), [0.005, 0.995]))
    spread = max(high - low, 1e-6 * max(abs(low), abs(high)))  # finer bins would be indistinguishable as floats
    step = nice_step(spread or 1.0, 40)
    first, last = int(np.floor(low / step)), int(np.floor(high / step)) + 1
    edges = np.asarray(np.arange(first, last + 1) * step, dtype=np.float64)
    of_chosen, of_rejected = _counts(chosen, edges), _counts(rejected, edges)
    frame, parts = _counting_frame(edges, int(max(of_chosen.max(), of_rejected.max())), "reward", "responses")
    bars = [bar for bar in zip(edges[:-1], edges[1:], of_chosen, strict=True) if bar[2]]
    parts.append(path((command for bar in bars for command in _bar(frame, *bar)), "bars right"))
    outline = [(frame.x(low), _BOTTOM) for low in edges[:1]]
    for low, high, count in zip(edges[:-1], edges[1:], of_rejected, strict=True):
        outline += [(frame.x(low), frame.y(count)), (frame.x(high), frame.y(count))]
    outline.append((frame.x(edges[-1]), _BOTTOM))
    parts.append(path((("L" if number else "M", x, y) for number, (x, y) in enumerate(outline)), "outline wrong"))
    return drawing(_WIDTH, _HEIGHT, label, [*parts, *_KEY])


_KEY = (
    text(_RIGHT - 60, _TOP - 8, "▪ chosen", "end of-right"),
    text(_RIGHT, _TOP - 8, "– rejected", "end of-wrong"),
)


def _counts(values: Floats, edges: Floats) -> Floats:
    """Count the values in each bin; those outside count in the outermost ones."""
    inner = (edges[:-1] + edges[1:]) / 2
    return np.asarray(np.histogram(np.clip(values, inner[0], inner[-1]), edges)[0])


def _counting_frame(edges: Floats, most: int, x_label: str, y_label: str) -> tuple[Frame, list[Markup]]:
    step = nice_step(float(most), 4)
    frame = _frame((float(edges[0]), float(edges[-1])), (0.0, max(float(most), step)))
    x_step = nice_step(float(edges[-1] - edges[0]), 6)
    counted = [(value, f"{value:,.0f}") for value in steps(0, frame.y.high, step) if value == round(value)]
    return frame, frame.axes(_ticks(steps(frame.x.low, frame.x.high, x_step)), counted, x_label, y_label)


def _margin_edges(margins: Floats) -> Floats:
    """Return the edges of equal bins, with one edge at 0, so that no bar mixes wrong and right pairs."""
    low, high = np.quantile(margins, [0.005, 0.995])
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    step = nice_step(high - low or 1.0, 40)
    first, last = min(int(np.floor(low / step)), -1), max(int(np.ceil(high / step)), 1)
    return np.asarray(np.arange(first, last + 1) * step, dtype=np.float64)


def _bar(frame: Frame, low: float, high: float, count: int) -> list[tuple[str, float, float]]:
    left, right, top = frame.x(low) + 0.5, frame.x(high) - 0.5, frame.y(count)
    return [("M", left, _BOTTOM), ("L", left, top), ("L", right, top), ("L", right, _BOTTOM)]


def reliability_curve(label: str, bins: Sequence[PlottedBin]) -> Markup:
    """Draw accuracy against stated confidence, with the diagonal of a calibrated model."""
    frame = _frame((0.5, 1.0), (0.0, 1.0))
    ticks: list[Tick] = [(share, f"{100 * share:.0f}") for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    parts = frame.axes(ticks, _PERCENT_TICKS, "stated confidence, %", "accuracy, %")
    parts.append(line(frame.x(0.5), frame.y(0.5), frame.x(1.0), frame.y(1.0), "reference dashed"))
    return drawing(_WIDTH, _HEIGHT, label, parts + _curve(frame, [(each.confidence or 0.5, each) for each in bins]))


def accuracy_by_slot(label: str, bins: Sequence[PlottedBin], x_label: str) -> Markup:
    """Draw accuracy in bins of equal width on the page, regardless of their width in `x`; the ticks are the bins'
    edges.

    Margins and length differences have long tails, which would squeeze most bins together on a linear axis.
    """
    frame = _frame((0.0, float(len(bins))), (0.0, 1.0))
    edges = [each.low for each in bins] + [bins[-1].high]
    shown = range(0, len(edges), 2) if len(edges) > 5 else range(len(edges))
    labels = [label for _, label in _ticks(edges)]
    parts = frame.axes([(float(at), labels[at]) for at in shown], _PERCENT_TICKS, x_label, "accuracy, %")
    parts.append(line(_LEFT, frame.y(0.5), _RIGHT, frame.y(0.5), "reference dashed"))
    return drawing(_WIDTH, _HEIGHT, label, parts + _curve(frame, [(at + 0.5, each) for at, each in enumerate(bins)]))


def _curve(frame: Frame, places: Sequence[tuple[float, PlottedBin]]) -> list[Markup]:
    """Draw dots with whiskers, joined by a line."""
    at = [(frame.x(x), frame.y(each.accuracy)) for x, each in places]
    parts = [path((("L" if number else "M", x, y) for number, (x, y) in enumerate(at)), "curve")]
    for (x, y), (_, each) in zip(at, places, strict=True):
        parts.append(line(x, frame.y(each.ci95[0]), x, frame.y(each.ci95[1]), "whisker"))
        worded = f"{percent(each.accuracy)} {interval(each.ci95, percent)}, n = {each.n:,}"
        title = element("title", f"{worded}, from {each.low:.4g} to {each.high:.4g}")
        parts.append(element("circle", title, cx=x, cy=y, r=3.5, class_="dot"))
    return parts


def _frame(x: tuple[float, float], y: tuple[float, float]) -> Frame:
    return Frame(Scale(*x, _LEFT, _RIGHT), Scale(*y, _BOTTOM, _TOP))


def _ticks(values: Sequence[float]) -> list[Tick]:
    """Label values with as many decimals as give the largest value three digits: "−0.25", "1,200"."""
    largest = max(map(abs, values)) or 1.0
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    rounded = [round(value, decimals) + 0.0 for value in values]  # + 0.0 avoids negative zero
    return [
        (value, (f"{short:,.0f}" if abs(short) >= 1000 else f"{short:g}").replace("-", "−"))
        for value, short in zip(values, rounded, strict=True)
    ]
