"""Draw the page's plots of each model from raw scores: margins, calibration, accuracy by margin and by length.

They use all pairs that have rewards, including those left out of the inspector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hafrm.evaluation.scoring import PairScore
from hafrm.report.bins import confidence_bins, equal_count_bins
from hafrm.report.loading import Evaluation
from hafrm.report.plots import (
    ForestRow,
    accuracy_by_slot,
    forest,
    margin_histogram,
    reliability_curve,
    reward_histogram,
)
from hafrm.report.wording import count, short_names
from hafrm.stats import Floats, expected_calibration_error, stated_probability

ALL_DATA = "All data sets together"

_SLOTS = 8

_NO_RELIABILITY = (
    "Its loss was not Bradley-Terry's, so its margins are no log-odds: there is no calibration error, "
    "and no reliability diagram."
)


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
    shown = []
    names, data_names = short_names(evaluation.models), short_names(evaluation.data)
    extent = _shared_extent(evaluation)
    for data in evaluation.data:
        if fullest := evaluation.fullest_on(data):
            measured = evaluation.measured_on(data)
            rows = [ForestRow(names[model], m.accuracy, m.ci95) for model, m in measured.items()]
            title = data_names[data]
            label = f"Accuracy of each model on {title}"
            shown.append((title, forest(label, rows, extent, fullest.length_accuracy)))
    return shown


def _shared_extent(evaluation: Evaluation) -> tuple[float, float]:
    """Return the common axis of all forest plots, which includes every interval and baseline, in steps of 5%."""
    measured = [cell.measured for cell in evaluation.cells.values() if cell.measured]
    ends = [0.5] + [end for m in measured for end in (m.accuracy, m.length_accuracy, *(m.ci95 or ()))]
    return float(np.floor(min(ends) * 20 + 1e-9) / 20), float(np.ceil(max(*ends, 0.55) * 20 - 1e-9) / 20)


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
                _shown(models[model], group, rows, log_odds=model not in evaluation.no_log_odds)
                for model, rows in cells.items()
            ),
        )
        for group, cells in table.items()
    ]


def _shown(name: str, group: str, rows: Sequence[PairScore], *, log_odds: bool) -> ModelPlots:
    plots = _model_plots(f"{name} on {group}", rows, log_odds=log_odds)
    return ModelPlots(name, count(len(rows), "pair"), plots, "" if log_odds else _NO_RELIABILITY)


def _rewards(rows: Sequence[PairScore]) -> tuple[Floats, Floats]:
    chosen, rejected = np.array([(row.reward_chosen, row.reward_rejected) for row in rows], dtype=np.float64).T
    return chosen, rejected


def _model_plots(label: str, rows: Sequence[PairScore], *, log_odds: bool) -> tuple[tuple[str, Markup], ...]:
    margins = np.array([row.margin for row in rows], dtype=np.float64)
    lengths = np.array([float(row.length_chosen - row.length_rejected) for row in rows])
    sizes = np.abs(margins)
    by_size, by_length = equal_count_bins(margins, sizes, _SLOTS), equal_count_bins(margins, lengths, _SLOTS)
    return (
        ("Reward margins", margin_histogram(f"Reward margins of {label}", margins)),
        *([_reliability(label, margins)] if log_odds else []),
        ("Accuracy by margin", accuracy_by_slot(f"Accuracy by margin of {label}", by_size, "|margin|, equal counts")),
        (
            "Accuracy by length",
            accuracy_by_slot(f"Accuracy by length difference of {label}", by_length, "chosen - rejected, characters"),
        ),
        ("Rewards", reward_histogram(f"Rewards of chosen and rejected responses of {label}", *_rewards(rows))),
    )


def _reliability(label: str, margins: Floats) -> tuple[str, Markup]:
    error = expected_calibration_error(stated_probability(margins))
    return f"Reliability (ECE {error:.3f})", reliability_curve(f"Reliability of {label}", confidence_bins(margins))
