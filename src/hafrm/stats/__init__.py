"""Statistics of preference models: pure functions on NumPy arrays.

They take margins, probabilities, groups, scores and ranks, and are independent of models, files and plots.
Shape letters: N pairs (or other values), G groups, R resamples, Q prompts.

A margin is the reward of `chosen` minus that of `rejected`; the label is always "chosen wins". A margin of 0 is a tie
and counts one half, so constant and random scorers both have an accuracy of .5.

Intervals resample whole groups, that is all pairs of a prompt, because these are not independent. They are percentile
intervals: if all groups agree, as a single group always does, they shrink to a point, which means that resampling found
no spread, not that there is none. Interpret them together with the number of groups; with fewer than `FEWEST_GROUPS`
there is no interval.
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
from hafrm.stats.logistic import best_penalty, fit_pairs
from hafrm.stats.relations import Correlation, LinearFit, linear_fit, pearson, pearson_interval, spearman
from hafrm.stats.selection import random_recall, top_k_hits
from hafrm.stats.significance import (
    FEWEST_GROUPS,
    Interval,
    PairedDifference,
    bootstrap_interval,
    few_groups,
    holm_correction,
    mcnemar_test,
    p_of_draws,
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
    "best_penalty",
    "bootstrap_interval",
    "brier_score",
    "calibration_bins",
    "expected_calibration_error",
    "few_groups",
    "fit_combination",
    "fit_pairs",
    "fit_temperature",
    "hits",
    "holm_correction",
    "linear_fit",
    "mcnemar_test",
    "p_of_draws",
    "paired_bootstrap",
    "pearson",
    "pearson_interval",
    "random_recall",
    "resampled_means",
    "spearman",
    "stated_probability",
    "top_k_hits",
]
