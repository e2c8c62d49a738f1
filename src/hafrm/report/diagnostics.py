"""Draw the charts of an evaluation's page: accuracies with intervals, margins, calibration, accuracy by length.

They use all pairs that have rewards, including those left out of the inspector. Each is drawn in one narrow column, so
that it is readable on a phone. Shares are in [0, 1], and are labelled in percent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup

from hafrm import stats
from hafrm.evaluation.results import Interval, Measured
from hafrm.evaluation.scoring import PairScore
from hafrm.report.charts import (
    Plot,
    Scale,
    Tick,
    bar_swatch,
    dot,
    label_of,
    legend,
    line,
    line_swatch,
    nice_step,
    path,
    picture,
    text,
    ticks,
)
from hafrm.report.loading import Evaluation
from hafrm.report.wording import count, interval, percent, points, short_names, shortened, with_interval
from hafrm.stats import Floats

ALL_DATA = "All data sets together"

_CHANCE = 0.5
_SLOTS = 8
_Z95 = 1.959964  # the 97.5% quantile of the normal distribution

_NO_RELIABILITY = (
    "Its loss was not Bradley-Terry's, so its margins are not log-odds: there is no calibration error, "
    "and no reliability diagram."
)

_WIDTH, _HEIGHT = 260.0, 190.0
_EDGES = {"left": 34.0, "right": 252.0, "top": 24.0, "bottom": 152.0}
_PERCENT = [(share, f"{100 * share:.0f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


@dataclass(frozen=True)
class ModelPlots:
    """One model's plots on one group of pairs, each with its title."""

    name: str
    pairs: str
    plots: tuple[tuple[str, Markup], ...]
    note: str = ""
    """Which plot is missing, and why."""


@dataclass(frozen=True)
class PlotGroup:
    """The plots of all models on one data set, or on all."""

    name: str
    models: tuple[ModelPlots, ...]


def forest_plots(evaluation: Evaluation) -> list[tuple[str, Markup]]:
    """Draw a forest plot for each data set, all on one axis; each with the data set's name."""
    names, titles = short_names(evaluation.models), short_names(evaluation.data)
    measured = [cell.measured for cell in evaluation.results.cells.values() if cell.measured]
    ends = [0.5] + [end for m in measured for end in (m.accuracy, m.length_accuracy, *(m.ci95 or ()))]
    extent = math.floor(min(ends) * 20 + 1e-9) / 20, math.ceil(max(*ends, 0.55) * 20 - 1e-9) / 20
    shown = []
    for data in evaluation.data:
        if fullest := evaluation.fullest_on(data):
            rows = {names[model]: m for model, m in evaluation.measured_on(data).items()}
            label = f"Accuracy of each model on {titles[data]}"
            shown.append((titles[data], forest(label, rows, extent, fullest.length_accuracy)))
    return shown


def plot_groups(evaluation: Evaluation) -> list[PlotGroup]:
    """Draw the plots of every model: on all data sets together, if there are several, and on each."""
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    table: dict[str, dict[str, list[PairScore]]] = defaultdict(lambda: defaultdict(list))
    for score in evaluation.scores:
        if score.margin is not None:
            if len(data) > 1:
                table[ALL_DATA][score.model].append(score)
            table[data[score.data]][score.model].append(score)
    return [
        PlotGroup(
            group,
            tuple(
                _model_plots(models[model], group, rows, log_odds=evaluation.log_odds(model))
                for model, rows in cells.items()
            ),
        )
        for group, cells in table.items()
    ]


def _model_plots(name: str, group: str, rows: Sequence[PairScore], *, log_odds: bool) -> ModelPlots:
    label = f"{name} on {group}"
    chosen, rejected = np.array([(row.reward_chosen, row.reward_rejected) for row in rows], dtype=np.float64).T
    margins = np.array([row.margin for row in rows], dtype=np.float64)
    lengths = np.array([float(row.length_chosen - row.length_rejected) for row in rows])
    plots = [("Reward margins", margin_histogram(f"Reward margins of {label}", margins))]
    if log_odds:
        error = stats.expected_calibration_error(stats.stated_probability(margins))
        plots.append((f"Reliability (ECE {error:.3f})", reliability_curve(f"Reliability of {label}", margins)))
    by_margin = accuracy_by(f"Accuracy by margin of {label}", margins, np.abs(margins), "|margin|, equal counts")
    by_length = accuracy_by(
        f"Accuracy by length difference of {label}", margins, lengths, "chosen - rejected, characters"
    )
    plots += [("Accuracy by margin", by_margin), ("Accuracy by length", by_length)]
    plots.append(
        ("Rewards", reward_histogram(f"Rewards of chosen and rejected responses of {label}", chosen, rejected))
    )
    return ModelPlots(name, count(len(rows), "pair"), tuple(plots), "" if log_odds else _NO_RELIABILITY)


def forest(label: str, rows: Mapping[str, Measured], extent: Interval, length_accuracy: float) -> Markup:
    """Draw accuracies with intervals, a row per model, with lines at 50% and at the accuracy of picking the longer
    response.

    Args:
        rows: The models by their names.
        extent: The range of the axis; the same for all plots that are to be compared.
        length_accuracy: Position of the dotted line.
    """
    width, row_height, top = 320.0, 36.0, 6.0
    bottom = top + row_height * len(rows)
    x = Scale(*extent, 8, width - 8)
    shown = ticks(*extent, 8, least=0.05, unit=100)
    dots = [top + row_height * number + 26 for number in range(len(rows))]

    def down(value: float, class_: str) -> Markup:
        """Draw a vertical line across all rows, interrupted at the labels."""
        return path(class_, *([(x(value), y - 8), (x(value), y + 9)] for y in dots))

    parts = [down(tick, "grid") for tick, _ in shown]
    parts += [text(x(tick), bottom + 14, name, "middle") for tick, name in shown]
    parts += [down(_CHANCE, "reference dashed"), down(length_accuracy, "reference dotted")]
    for number, (name, row) in enumerate(rows.items()):
        y = top + row_height * number
        worded = with_interval(row.accuracy, row.ci95, percent)
        parts += [text(x.start, y + 14, shortened(name, 26), "strong"), text(x.end, y + 14, worded, "end")]
        parts += _interval_dot(x, row.accuracy, row.ci95, y + 26, f"{name}: {worded}")
    return picture(width, bottom + 20, label, parts)


def difference_bar(difference: float, ci95: Interval | None, extent: float) -> Markup:
    """Draw a difference of accuracies with its interval, on an axis of [-extent, extent] with a line at 0."""
    x = Scale(-extent, extent, 4, 116)
    label = f"{points(difference)} points {interval(ci95, points)}".strip()
    return picture(120, 16, label, [line(x(0), 0, x(0), 16, "axis"), *_interval_dot(x, difference, ci95, 8)])


def _interval_dot(x: Scale, value: float, ci95: Interval | None, y: float, title: str = "") -> list[Markup]:
    """Draw a dot on its interval, if it has one, along a horizontal axis."""
    whiskers = [line(x(ci95[0]), y, x(ci95[1]), y, "whisker")] if ci95 else []
    return [*whiskers, dot(x(value), y, 4, title)]


def margin_histogram(label: str, margins: Floats) -> Markup:
    """Draw a histogram of margins, [N], with separate colours for wrong pairs (below 0) and right ones.

    The axis covers the middle 99% of the margins; values outside count in the outermost bars. One edge is at 0, so
    that no bar mixes wrong and right pairs.
    """
    low, high = map(float, np.quantile(margins, [0.005, 0.995]))
    low, high = min(low, 0.0), max(high, 0.0)
    step = nice_step(high - low or 1.0, 40)
    edges = _edges(min(math.floor(low / step), -1), max(math.ceil(high / step), 1), step)
    counts, wrong = _counts(margins, edges), edges[:-1] < -step / 2
    plot = _counting_plot(edges, counts.max(), "reward margin", "pairs")
    plot.bars(edges, np.where(wrong, counts, 0), "bars wrong")
    plot.bars(edges, np.where(wrong, 0, counts), "bars right")
    plot.line((0, plot.y.high), (0, 0), "reference dashed")
    return picture(_WIDTH, _HEIGHT, label, plot.parts)


def reward_histogram(label: str, chosen: Floats, rejected: Floats) -> Markup:
    """Draw a histogram of rewards, [N] each: the chosen responses as bars, the rejected ones as an outline over them.

    The axis covers the middle 99% of all rewards; values outside count in the outermost bars.
    """
    low, high = map(float, np.quantile(np.concatenate([chosen, rejected]), [0.005, 0.995]))
    spread = max(high - low, 1e-6 * max(abs(low), abs(high)))  # finer bins would be indistinguishable as floats
    step = nice_step(spread or 1.0, 40)
    edges = _edges(math.floor(low / step), math.floor(high / step) + 1, step)
    of_chosen, of_rejected = _counts(chosen, edges), _counts(rejected, edges)
    plot = _counting_plot(edges, max(of_chosen.max(), of_rejected.max()), "reward", "responses")
    plot.bars(edges, of_chosen, "bars right")
    tops = [(edge, n) for a, b, n in zip(edges[:-1], edges[1:], of_rejected, strict=True) for edge in (a, b)]
    plot.curve([(edges[0], 0.0), *tops, (edges[-1], 0.0)], "outline wrong")
    key = [(partial(bar_swatch, "bars right"), "chosen"), (partial(line_swatch, "outline wrong"), "rejected")]
    parts, _ = legend(key, _EDGES["right"] - 155, _EDGES["top"] - 12, _WIDTH)
    return picture(_WIDTH, _HEIGHT, label, plot.parts + parts)


def _edges(first: int, last: int, step: float) -> Floats:
    return np.asarray(np.arange(first, last + 1) * step, dtype=np.float64)


def _counts(values: Floats, edges: Floats) -> Floats:
    """Count the values in each bin; those outside count in the outermost ones."""
    inner = (edges[:-1] + edges[1:]) / 2
    return np.asarray(np.histogram(np.clip(values, inner[0], inner[-1]), edges)[0])


def _counting_plot(edges: Floats, most: float, x_label: str, y_label: str) -> Plot:
    plot = Plot((edges[0], edges[-1]), (0.0, max(float(most), nice_step(float(most), 4))), **_EDGES)
    plot.axes(ticks(plot.x.low, plot.x.high, 6), ticks(0.0, plot.y.high, 4, least=1.0), x_label, y_label)
    return plot


def reliability_curve(label: str, margins: Floats) -> Markup:
    """Draw accuracy against the confidence of a Bradley-Terry model, sigma(|margin|), in ten bins of equal width, with
    the diagonal of a calibrated model. Margins are [N].
    """
    plot = Plot((0.5, 1.0), (0.0, 1.0), **_EDGES)
    plot.axes(ticks(0.5, 1.0, 5, unit=100), _PERCENT, "stated confidence, %", "accuracy, %")
    plot.line((0.5, 0.5), (1.0, 1.0), "reference dashed")
    bins = stats.calibration_bins(stats.stated_probability(margins))
    shown = [(each.confidence, each.accuracy, each.n, (each.low, each.high)) for each in bins]
    return _accuracies(label, plot, shown)


def accuracy_by(label: str, margins: Floats, by: Floats, x_label: str) -> Markup:
    """Draw accuracy in at most eight bins of about equally many pairs, at equal distances; ticks are round values.

    Margins and length differences have long tails, which would squeeze most bins together on a linear axis. So the axis
    is linear within each bin only.

    Args:
        margins: Reward of the better response minus that of the other, [N], N > 0.
        by: Values that define the bins, [N].
    """
    bins = stats.accuracy_by_bin(margins, by, quantiles=_SLOTS)
    edges = [each.low for each in bins] + [bins[-1].high]
    plot = Plot((0.0, float(len(bins))), (0.0, 1.0), **_EDGES)
    plot.axes(_round_ticks(edges), _PERCENT, x_label, "accuracy, %")
    plot.level(_CHANCE, "reference dashed")
    found = [(at + 0.5, each.accuracy, each) for at, each in enumerate(bins) if each.accuracy]
    return _accuracies(label, plot, [(x, a.value, a.n, (each.low, each.high)) for x, a, each in found])


def _round_ticks(edges: Sequence[float]) -> list[Tick]:
    """Return round values between the edges; if there is no room for all, the roundest ones.

    Places are those of the values on an axis on which the edges have equal distances.
    """
    largest = max(map(abs, edges)) or 1.0
    powers = [10.0**power for power in range(math.floor(math.log10(largest)), math.floor(math.log10(largest)) - 5, -1)]
    sizes = [factor * power for factor in (1.0, 5.0, 2.0) for power in powers]
    found: dict[float, float] = {}
    for value in (0.0, *(sign * size for size in sizes for sign in (1, -1))):
        place = float(np.interp(value, edges, range(len(edges))))
        apart = (len(edges) - 1) / 5.5
        if edges[0] <= value <= edges[-1] and all(abs(place - other) >= apart for other in found.values()):
            found[value] = place
    return [(place, label_of(value, abs(value) or 1.0)) for value, place in sorted(found.items())]


def _accuracies(label: str, plot: Plot, shown: Sequence[tuple[float, float, int, Interval]]) -> Markup:
    """Draw dots with whiskers, joined by a line: their x, accuracies, numbers of pairs, and edges of their bins."""
    plot.curve([(x, accuracy) for x, accuracy, _, _ in shown], "curve")
    for x, accuracy, n, (low, high) in shown:
        ci95 = wilson_interval(accuracy, n)
        plot.line((x, ci95[0]), (x, ci95[1]), "whisker")
        title = f"{with_interval(accuracy, ci95, percent)}, n = {n:,}, from {low:.4g} to {high:.4g}"
        plot.parts.append(dot(*plot.at((x, accuracy)), 3.5, title))
    return picture(_WIDTH, _HEIGHT, label, plot.parts)


def wilson_interval(share: float, n: int) -> Interval:
    """Return Wilson's 95% interval of a share of `n` independent pairs (Wilson, 1927); it stays within [0, 1].

    The share may count ties as halves, which SciPy's interval functions refuse, since they are made for whole counts.
    """
    spread = _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
