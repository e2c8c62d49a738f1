"""Statistics of preference models: pure functions on NumPy arrays.

Knows margins, probabilities, groups, scores and ranks. Knows no model, no file and no plot.
Shape letters: N pairs (or any values), G groups, Q prompts.

A margin is the reward of `chosen` minus that of `rejected`; the label is always "chosen wins". A margin of 0 is a tie
and counts one half, so that a constant scorer and a random one are both at .5, as they should be.

Intervals resample whole groups, the pairs of one prompt, since those are not independent. They are percentile
intervals: where all groups agree (and so always for a single group), they shrink to a point, which says that
resampling found no spread, not that there is none. So read them beside the number of groups, and not at all where there
are fewer than `FEWEST_GROUPS`.
"""

from __future__ import annotations

from hafrm.stats.accuracies import Accuracy, AccuracyBin, accuracy, accuracy_by_bin, hits
from hafrm.stats.calibration import (
    CalibrationBin,
    brier_score,
    calibration_bins,
    expected_calibration_error,
    fit_combination,
    fit_temperature,
    stated_probability,
)
from hafrm.stats.checks import Floats
from hafrm.stats.relations import Correlation, LinearFit, linear_fit, pearson, pearson_interval, spearman
from hafrm.stats.selection import random_recall, top_k_hits, top_k_recall
from hafrm.stats.significance import (
    FEWEST_GROUPS,
    Interval,
    PairedDifference,
    bootstrap_interval,
    few_groups,
    holm_correction,
    mcnemar_test,
    paired_bootstrap,
    resampled_means,
)

__all__ = [
    "FEWEST_GROUPS",
    "Accuracy",
    "AccuracyBin",
    "CalibrationBin",
    "Correlation",
    "Floats",
    "Interval",
    "LinearFit",
    "PairedDifference",
    "accuracy",
    "accuracy_by_bin",
    "bootstrap_interval",
    "brier_score",
    "calibration_bins",
    "expected_calibration_error",
    "few_groups",
    "fit_combination",
    "fit_temperature",
    "hits",
    "holm_correction",
    "linear_fit",
    "mcnemar_test",
    "paired_bootstrap",
    "pearson",
    "pearson_interval",
    "random_recall",
    "resampled_means",
    "spearman",
    "stated_probability",
    "top_k_hits",
    "top_k_recall",
]
