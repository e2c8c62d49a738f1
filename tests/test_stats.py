"""Statistics, compared with scipy, scikit-learn, simulation and hand-worked values."""

import math
from collections import Counter
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression

from hafrm.stats import (
    FEWEST_GROUPS,
    Accuracy,
    accuracy,
    accuracy_by_bin,
    best_penalty,
    bootstrap_interval,
    brier_score,
    calibration_bins,
    expected_calibration_error,
    fit_combination,
    fit_temperature,
    hits,
    holm_correction,
    linear_fit,
    mcnemar_test,
    paired_bootstrap,
    pearson,
    pearson_interval,
    random_recall,
    resampled_means,
    spearman,
    top_k_hits,
)

finite = st.floats(-1e6, 1e6)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Accuracy


def test_a_tie_counts_one_half():
    assert hits([2.0, -0.1, 0.0, math.inf]).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert accuracy([2.0, -0.1, 0.0, math.inf]) == Accuracy(n=4, value=0.625, ties=1)


def test_a_constant_scorer_is_as_good_as_a_coin():
    assert accuracy(np.zeros(7)) == Accuracy(n=7, value=0.5, ties=7)


@given(st.lists(finite, min_size=1))
def test_swapped_labels_mirror_the_accuracy(margins):
    assert accuracy(-np.array(margins)).value == pytest.approx(1 - accuracy(margins).value)


def test_accuracy_by_edges():
    low, middle, high = accuracy_by_bin([1, -1, 1, 0, 1], [-5, 0, 1, 2, 4], edges=[-math.inf, 0, 3, 4])
    assert (low.low, low.high, low.accuracy) == (-math.inf, 0.0, Accuracy(1, 1.0, 0))
    assert middle.accuracy == Accuracy(3, 0.5, 1)  # 0 opens this bin, 4 closes the next
    assert high.accuracy == Accuracy(1, 1.0, 0)


def test_accuracy_by_quantiles():
    values = generator().permutation(100)
    bins = accuracy_by_bin(np.where(values < 25, -1.0, 1.0), values, quantiles=4)
    assert [each.accuracy.n for each in bins] == [25, 25, 25, 25]
    assert [each.accuracy.value for each in bins] == [0, 1, 1, 1]


def test_equal_quantiles_become_one_bin():
    (one,) = accuracy_by_bin([1, -1, 1], [7, 7, 7], quantiles=4)
    assert (one.low, one.high, one.accuracy.n) == (7, 7, 3)


def test_a_bin_may_be_empty():
    _, empty, _ = accuracy_by_bin([1, -1], [0, 5], edges=[0, 2, 4, 6])
    assert empty.accuracy is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "either edges or quantiles"),
        ({"edges": [0, 1], "quantiles": 2}, "either edges or quantiles"),
        ({"quantiles": 0}, "quantiles must be positive"),
        ({"edges": [0, 0, 9]}, "increasing"),
        ({"edges": [9]}, "two or more"),
        ({"edges": [2, 9]}, "outside the edges"),
        ({"edges": [0, 2]}, "outside the edges"),
    ],
)
def test_bins_that_can_not_be(how, message):
    with pytest.raises(ValueError, match=message):
        accuracy_by_bin([1, -1], [1, 3], **how)


# Intervals and paired tests


def test_the_interval_of_single_pairs_is_scipy_s():
    values = hits(generator().normal(0.5, 1, 400))
    ours = bootstrap_interval(values, np.arange(400), resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=generator(1))
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval, abs=0.004)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Groups of 1 to 5 pairs that share half of their variance: 300 simulated data sets, true mean 0."""
    random, covered = generator(), 0
    for repeat in range(300):
        groups = np.repeat(np.arange(60), random.integers(1, 6, 60))
        values = random.normal(size=60)[groups] + random.normal(size=len(groups))
        interval = bootstrap_interval(values, groups, level=0.9, resamples=400, seed=repeat)
        covered += interval.low <= 0 <= interval.high
    assert 0.85 <= covered / 300 <= 0.95


def test_groups_that_move_together_widen_the_interval():
    values = np.repeat(hits(generator().normal(size=100)), 9)
    grouped = bootstrap_interval(values, np.repeat(np.arange(100), 9))
    naive = bootstrap_interval(values, np.arange(900))
    assert grouped.high - grouped.low == pytest.approx(3 * (naive.high - naive.low), rel=0.15)


UNEQUAL = {"a": [1.0], "b": [0.0, 0.0, 1.0], "z": [0.0, 1.0, 1.0, 1.0, 1.0]}
"""Groups of one, three and five values."""


def every_draw() -> list[tuple[str, ...]]:
    """Return all equally likely ways to draw three groups with replacement."""
    return list(product(UNEQUAL, repeat=3))


def test_groups_weigh_by_their_size_and_each_is_drawn():
    """The means are those of the drawn groups' pooled values, with the frequencies of the draws."""
    pooled = [round(fmean([value for name in draw for value in UNEQUAL[name]]), 9) for draw in every_draw()]
    groups = [name for name, values in UNEQUAL.items() for _ in values]
    values = np.array([value for each in UNEQUAL.values() for value in each])
    drawn = Counter(resampled_means(values, groups, resamples=100_000).round(9).tolist())
    assert set(drawn) == set(pooled)
    for mean, count in Counter(pooled).items():
        assert drawn[mean] / 100_000 == pytest.approx(count / 27, abs=0.006)  # four standard errors


def test_the_interval_of_unequal_groups_is_that_of_multinomial_draws():
    """Groups of one to seven values, of which the smallest and the largest are right: multinomial draws."""
    groups = [f"g{size}" for size in range(1, 8) for _ in range(size)]
    values = np.array([1.0 if name in ("g1", "g7") else 0.0 for name in groups])
    means = resampled_means(values, groups, resamples=20_000)
    shares = np.bincount(np.unique(groups, return_inverse=True)[1])
    counts = np.random.default_rng(1).multinomial(7, [1 / 7] * 7, size=20_000)
    truth = (counts[:, [0, 6]] @ shares[[0, 6]]) / (counts @ shares)
    for share in (0.025, 0.5, 0.975):
        assert np.quantile(means, share) == pytest.approx(np.quantile(truth, share), abs=0.02)
    interval = bootstrap_interval(values, groups, resamples=20_000)
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_a_correlations_interval_draws_every_group():
    """Its ends are the least and the greatest correlation of all 27 ways to draw the three groups."""
    x = {"a": [0.0, 1.0], "b": [2.0, 0.5, 1.5], "z": [3.0, -1.0, 2.5, 0.0]}
    y = {"a": [0.2, 0.9], "b": [1.0, 2.0, 0.3], "z": [0.1, 4.0, -2.0, 1.0]}
    found = []
    for draw in every_draw():
        points = [np.concatenate([side[name] for name in draw]) for side in (x, y)]
        found.append(np.corrcoef(*points)[0, 1])
    groups = [name for name, values in x.items() for _ in values]
    sides = [np.concatenate([np.array(values) for values in side.values()]) for side in (x, y)]
    interval = pearson_interval(*sides, groups, level=0.999, resamples=20_000)
    assert interval == pytest.approx((min(found), max(found)), abs=1e-9)


def test_a_wider_level_is_a_wider_interval():
    values = generator().normal(size=50)
    narrow, wide = (bootstrap_interval(values, np.arange(50), level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < values.mean() < narrow.high < wide.high


def test_names_of_groups_and_order_of_rows_make_no_difference():
    random = generator()
    values, groups = random.normal(size=40), np.repeat(["c", "a", "b", "d", "f", "e", "h", "g"], 5)
    order = random.permutation(40)
    interval = bootstrap_interval(values, groups)
    shuffled = bootstrap_interval(values[order], groups[order].tolist())
    assert (interval.low, interval.high) == pytest.approx((shuffled.low, shuffled.high))


def test_blocks_of_resamples_make_no_difference(monkeypatch):
    values, groups = generator().normal(size=30), np.arange(30)
    whole = bootstrap_interval(values, groups)
    monkeypatch.setattr("hafrm.stats.significance._DRAWS_AT_ONCE", 1)
    assert bootstrap_interval(values, groups) == whole


def test_the_seed_decides():
    values, groups = generator().normal(size=30), np.arange(30)
    assert bootstrap_interval(values, groups) == bootstrap_interval(values, groups, seed=0)
    assert bootstrap_interval(values, groups) != bootstrap_interval(values, groups, seed=1)


def test_one_group_has_no_interval_and_proves_nothing():
    assert bootstrap_interval([1.0, 0.0, 1.0, 1.0], ["same"] * 4) is None
    paired = paired_bootstrap([1.0, 1.0], [0.0, 0.0], ["same"] * 2)
    assert (paired.difference, paired.interval, paired.p_value) == (1.0, None, 1.0)


@pytest.mark.parametrize(("groups", "p_value"), [(2, 1.0), (5, 1.0), (6, 2 / 2001)])
def test_pairs_of_few_groups_prove_nothing_however_many_they_are(groups: int, p_value: float):
    ours, theirs = np.ones(600), np.zeros(600)
    paired = paired_bootstrap(ours, theirs, np.arange(600) % groups)
    assert paired.p_value == p_value
    assert paired.interval == (None if groups < FEWEST_GROUPS else (1.0, 1.0))
    # the sign test on groups could not reach 5% either
    assert (stats.binomtest(groups, groups).pvalue >= 0.05) == (groups < FEWEST_GROUPS)


def test_paired_bootstrap_is_the_bootstrap_of_differences():
    random = generator()
    a, b, groups = random.normal(0.1, 1, 90), random.normal(size=90), np.repeat(np.arange(30), 3)
    paired = paired_bootstrap(a, b, groups)
    assert paired.difference == pytest.approx((a - b).mean())
    assert paired.interval == bootstrap_interval(a - b, groups)


def test_swapping_the_models_swaps_the_sign():
    random = generator()
    a, b, groups = random.normal(0.3, 1, 60), random.normal(size=60), np.arange(60)
    forward, back = paired_bootstrap(a, b, groups), paired_bootstrap(b, a, groups)
    assert forward.difference == pytest.approx(-back.difference)
    assert forward.p_value == back.p_value
    assert (forward.interval.low, forward.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))


def test_the_paired_p_value_is_near_that_of_a_t_test():
    random = generator()
    a, b = random.normal(0.25, 1, 200), random.normal(size=200)
    assert paired_bootstrap(a, b, np.arange(200), resamples=20_000).p_value == pytest.approx(
        stats.ttest_rel(a, b).pvalue, abs=0.01
    )


def test_the_same_model_twice_does_not_differ():
    values = hits(generator().normal(size=50))
    paired = paired_bootstrap(values, values, np.arange(50))
    assert (paired.difference, paired.interval.low, paired.interval.high, paired.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("seed", [1, 7, 46])
def test_means_over_seeds_that_are_equal_differ_by_nothing(seed):
    """Sums of hits over three seeds, which are integers, are the oracle: means are thirds and don't cancel exactly."""
    hits_of = np.random.default_rng(seed).integers(0, 2, size=(2, 3, 40))
    assert hits_of[0].sum() == hits_of[1].sum()
    paired = paired_bootstrap(*hits_of.mean(1), np.arange(40))
    assert paired.difference == 0
    draws = resampled_means((hits_of[0] - hits_of[1]).sum(0).astype(float), np.arange(40))
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    assert paired.p_value == min(1.0, 2 * (rarer + 1) / 2001)


def test_a_clear_difference_has_the_smallest_p_value_that_resamples_can_show():
    assert paired_bootstrap(np.ones(50), np.zeros(50), np.arange(50), resamples=999).p_value == 2 / 1000


@pytest.mark.parametrize(
    ("values", "groups", "how", "message"),
    [
        ([], [], {}, "at least one value"),
        ([1.0, math.nan], [0, 1], {}, "1 NaN"),
        ([1.0, 2.0], [0], {}, "there are 2 values"),
        ([[1.0], [2.0]], [0, 1], {}, r"shape \[2, 1\]"),
        ([1.0, 2.0], [0, 1], {"level": 1.0}, "level"),
        ([1.0, 2.0], [0, 1], {"resamples": 0}, "resamples"),
    ],
)
def test_intervals_refuse(values, groups, how, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, groups, **how)


def test_paired_bootstrap_refuses_other_lengths():
    with pytest.raises(ValueError, match="values_a 2, values_b 3"):
        paired_bootstrap([1, 2], [1, 2, 3], [0, 1])


def test_mcnemar_by_hand():
    """9 pairs only a gets right, 1 only b: twice the chance of 0 or 1 heads in 10."""
    a = np.array([True] * 9 + [False] + [True] * 30 + [False] * 5)
    b = np.array([False] * 9 + [True] + [True] * 30 + [False] * 5)
    assert mcnemar_test(a, b) == pytest.approx(2 * 11 / 1024)
    assert mcnemar_test(b, a) == pytest.approx(2 * 11 / 1024)
    assert mcnemar_test(a, a) == 1.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1, 0], [True, False], "boolean"), ([True], [True, False], "same length"), ([], [], "boolean")],
)
def test_mcnemar_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        mcnemar_test(a, b)


def test_holm_by_hand():
    assert holm_correction([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_correction([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm_correction([0.2]).tolist() == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1))
def test_holm_keeps_the_order_and_stays_between_p_and_bonferroni(p_values):
    p, corrected = np.array(p_values), holm_correction(p_values)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, len(p) * p)).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize("p_values", [[], [1.1], [-0.1, 0.5]])
def test_holm_refuses(p_values):
    with pytest.raises(ValueError, match="p_values"):
        holm_correction(p_values)


# Calibration


def test_calibration_by_hand():
    """Two pairs predicted with confidence .6 (one right), two with .9 (one right), one undecided."""
    probabilities = [0.62, 0.38, 0.92, 0.08, 0.5]
    undecided, unsure, sure = calibration_bins(probabilities, bins=5)
    assert (undecided.n, undecided.confidence, undecided.accuracy) == (1, 0.5, 0.5)
    assert (unsure.n, unsure.confidence, unsure.accuracy) == (2, pytest.approx(0.62), 0.5)
    assert (sure.low, sure.high, sure.n, sure.accuracy) == (pytest.approx(0.9), 1.0, 2, 0.5)
    assert expected_calibration_error(probabilities, bins=5) == pytest.approx((2 * 0.12 + 2 * 0.42) / 5)


def test_a_calibrated_model_has_no_calibration_error():
    """Of 10 pairs given .7, 7 are won; of 10 given .9, 9 are."""
    probabilities = [0.7] * 7 + [0.3] * 3 + [0.9] * 9 + [0.1]
    assert expected_calibration_error(probabilities) == pytest.approx(0, abs=1e-12)


def test_certainty_is_in_the_last_bin():
    assert expected_calibration_error([1.0, 0.0]) == 0.5
    assert [each.n for each in calibration_bins([1.0, 0.97, 0.0])] == [3]


def test_brier_by_hand():
    assert brier_score([1.0, 0.5, 0.2]) == pytest.approx((0 + 0.25 + 0.64) / 3)


@pytest.mark.parametrize("function", [brier_score, expected_calibration_error, calibration_bins])
@pytest.mark.parametrize("probabilities", [[], [1.01], [-0.01], [math.nan]])
def test_calibration_refuses_what_is_no_probability(function, probabilities):
    with pytest.raises(ValueError, match="probabilities_of_chosen"):
        function(probabilities)


def test_calibration_needs_bins():
    with pytest.raises(ValueError, match="bins must be positive"):
        calibration_bins([0.5], bins=0)


def test_temperature_is_the_most_likely_one():
    margins = generator().normal(1, 3, 500)
    best = optimize.minimize_scalar(
        lambda t: -special.log_expit(margins / t).sum(), bounds=(0.1, 100), options={"xatol": 1e-9}
    )
    assert fit_temperature(margins) == pytest.approx(best.x, rel=1e-5)


def test_temperature_undoes_overconfidence():
    """Labels are drawn from a known model, whose margins are then multiplied by 5."""
    random = generator()
    logits = random.normal(0, 2, 20_000)
    margins = 5 * np.where(random.random(20_000) < special.expit(logits), logits, -logits)
    temperature = fit_temperature(margins)
    assert temperature == pytest.approx(5, rel=0.05)
    assert expected_calibration_error(special.expit(margins / temperature)) < 0.01
    assert expected_calibration_error(special.expit(margins)) > 0.05


@given(scale=st.floats(1e-6, 1e6))
def test_temperature_scales_with_the_margins(scale):
    margins = np.array([3.0, -1.0, 0.5, 2.0, -0.2])
    assert fit_temperature(scale * margins) == pytest.approx(scale * fit_temperature(margins), rel=1e-6)


@pytest.mark.parametrize(
    ("margins", "limit"), [([1.0, -2.0], math.inf), ([0.0, 0.0], math.inf), ([1.0, -1.0], math.inf), ([1.0, 0.0], 0.0)]
)
def test_temperature_has_limits(margins, limit):
    assert fit_temperature(margins) == limit


@pytest.mark.parametrize("margins", [[], [math.inf, 1.0], [math.nan]])
def test_temperature_refuses(margins):
    with pytest.raises(ValueError, match="margins"):
        fit_temperature(margins)


def test_combination_is_scikit_learn_s_logistic_regression():
    margins = generator().normal([3, 0.05], [3, 0.1], (12, 2))  # so few that the prior counts
    units = np.sqrt((margins**2).mean(axis=0))
    labels = np.tile([1, 0], 6)  # half of the pairs swapped, since it wants two classes
    model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10)
    first, second = model.fit(margins / units * (2 * labels - 1)[:, None], labels).coef_[0] / units
    assert fit_combination(margins) == pytest.approx(second / first, rel=1e-4)


@settings(deadline=None)
@given(first=st.floats(0.01, 100), second=st.floats(0.01, 100))
def test_combination_follows_the_units(first, second):
    margins = generator().normal([1, 0.5], [1, 1], (40, 2))
    assert fit_combination(margins * [first, second]) == pytest.approx(
        fit_combination(margins) * first / second, rel=1e-3
    )


def test_combination_leaves_out_a_margin_that_does_not_help():
    useful, noise = np.abs(generator().normal(size=50)), generator(1).normal(-1, 1, 50)
    assert fit_combination(np.stack([useful, noise], axis=1)) == 0.0
    assert fit_combination(np.stack([useful, 0 * noise], axis=1)) == 0.0
    assert fit_combination(np.stack([noise, useful], axis=1)) is None
    assert fit_combination(np.stack([0 * noise, useful], axis=1)) is None


def test_combination_of_pairs_without_error_is_finite():
    margins = np.abs(generator().normal(size=(50, 2)))
    assert 0 < fit_combination(margins) < 10


@pytest.mark.parametrize("margins", [np.zeros((0, 2)), np.zeros((3, 3)), np.zeros(4), [[math.nan, 1.0]]])
def test_combination_refuses(margins):
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        fit_combination(margins)


# Relations


def test_relations_by_hand():
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 2.0, 5.0]
    assert pearson(x, y).value == pytest.approx(6 / math.sqrt(5 * 9))
    assert spearman(x, y).value == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    fit = linear_fit(x, y)
    assert (fit.slope, fit.intercept, fit.r_squared) == pytest.approx((1.2, -0.5, 0.8))
    assert fit.p_value == pytest.approx(pearson(x, y).p_value)


def test_a_falling_relation_is_negative():
    x, y = [1.0, 2.0, 3.0, 4.0], [9.0, 4.0, 2.0, 1.0]
    assert spearman(x, y).value == pytest.approx(-1)
    assert pearson(x, y).value < 0
    assert linear_fit(x, y).slope < 0


@pytest.mark.parametrize("function", [pearson, spearman, linear_fit])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [1, 2], "three or more"),
        ([1, 2, math.inf], [1, 2, 3], "x must be three or more finite"),
        ([1, 2, 3], [4, 4, 4], "all values of y are 4"),
        ([1, 2, 3], [1, 2, 3, 4], "same length"),
    ],
)
def test_relations_refuse(function, x, y, message):
    with pytest.raises(ValueError, match=message):
        function(x, y)


# Best-of-N selection

RANKS = [[1, 2, 3, 4], [4, 3, 2, 1]]


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 0]), (2, [1, 0]), (3, [1, 1]), (4, [1, 1])])
def test_top_k_by_hand(k, expected):
    """The first prompt's best response is selected, the second's third."""
    scores = [[9.0, 1.0, 2.0, 3.0], [1.0, 9.0, 2.0, 3.0]]
    assert top_k_hits(scores, RANKS, k).tolist() == expected
    assert top_k_hits(scores, RANKS, k).mean() == np.mean(expected)


def test_tied_scores_are_selected_equally_often():
    assert top_k_hits([[5.0, 5.0, 5.0, 1.0], [1.0, 1.0, 5.0, 5.0]], RANKS, 1).tolist() == pytest.approx([1 / 3, 1 / 2])


def test_tied_ranks_share_the_places_that_are_left():
    """Two responses on the first rank, then two on the second: for k = 3 these two share one place."""
    ranks = [[1, 1, 2, 2]]
    assert top_k_hits([[9, 0, 0, 0]], ranks, 1).tolist() == [0.5]
    assert top_k_hits([[0, 0, 9, 0]], ranks, 1).tolist() == [0]
    assert top_k_hits([[9, 0, 0, 0]], ranks, 3).tolist() == [1]
    assert top_k_hits([[0, 0, 9, 0]], ranks, 3).tolist() == [0.5]


def test_unranked_responses_are_never_among_the_ranked():
    ranks = [[1, 2, math.inf, math.inf]]
    assert top_k_hits([[0, 9, 0, 0]], ranks, 2).tolist() == [1]
    assert top_k_hits([[0, 0, 9, 0]], ranks, 2).tolist() == [0]


@given(ranks=st.lists(st.lists(st.integers(1, 4), min_size=5, max_size=5), min_size=1, max_size=5), k=st.integers(1, 5))
def test_a_constant_scorer_recalls_what_chance_does(ranks, k):
    assert top_k_hits(np.zeros_like(ranks), ranks, k).mean() == pytest.approx(random_recall(5, k))


def test_random_recall():
    """The first rows of Table 4."""
    assert [random_recall(n, k) for k in (1, 2) for n in (4, 8)] == [0.25, 0.125, 0.5, 0.25]


@pytest.mark.parametrize(
    ("scores", "ranks", "k", "message"),
    [
        ([[1, 2]], [[1, 2, 3]], 1, r"\[1, 2\] and \[1, 3\]"),
        ([1, 2], [1, 2], 1, r"must both be \[Q, N\]"),
        (np.zeros((0, 2)), np.zeros((0, 2)), 1, r"must both be \[Q, N\]"),
        ([[1, 2]], [[1, 2]], 3, "k must be between 1 and the number of responses, 2; got 3"),
        ([[1, 2]], [[1, 2]], 0, "k must be between"),
        ([[1, math.nan]], [[1, 2]], 1, "NaN"),
        ([[1, 2]], [[1, math.nan]], 1, "NaN"),
    ],
)
def test_top_k_refuses(scores, ranks, k, message):
    with pytest.raises(ValueError, match=message):
        top_k_hits(scores, ranks, k)


def test_the_penalty_is_chosen_by_the_loss_on_held_out_pairs() -> None:
    """As by scikit-learn's fits; here the accuracy would choose another one."""
    rng = np.random.default_rng(1)
    weights, x, held_out = rng.normal(0, 0.3, 20), rng.normal(0, 1, (60, 20)), rng.normal(0, 1, (30, 20))
    for rows in (x, held_out):
        rows *= np.where(rng.random(len(rows)) < special.expit(rows @ weights), 1, -1)[:, None]
    penalties = [0.1, 1.0, 10.0, 100.0]
    fits = {}
    for penalty in penalties:
        both, labels = np.concatenate([x, -x]), np.repeat([1, 0], len(x))
        model = LogisticRegression(C=0.5 / penalty, fit_intercept=False, tol=1e-9, max_iter=10_000).fit(both, labels)
        fits[penalty] = held_out @ model.coef_[0]
    losses = {penalty: np.logaddexp(0, -margins).mean() for penalty, margins in fits.items()}
    best = min(penalties, key=lambda penalty: losses[penalty])
    assert best != max(penalties, key=lambda penalty: (hits(fits[penalty]).mean(), penalty))
    found, chosen = best_penalty(x, held_out, penalties)
    assert found == best
    np.testing.assert_allclose(held_out @ chosen, fits[best], atol=1e-3)
