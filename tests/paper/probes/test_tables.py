"""Perplexities, variances and agreement, compared with hand-worked values, stock transformers and the paper."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hafrm.errors import DataError
from hafrm.evaluation.scoring import PairScore, score_pairs
from hafrm.models.loading import load_log_prob_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.stock import load_causal_lm
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.probes.agreement import agreement
from hafrm.paper.probes.perplexity import PerplexityVariance, perplexity_variance, variance_correlation
from hafrm.stats import pearson_interval
from tests.tiny import save_tiny, some_pairs


def score(row: int, chosen: float | None, rejected: float | None, *, model: str = "m", group: str = "") -> PairScore:
    reason = "overlong" if chosen is None or rejected is None else ""
    return PairScore(model, "d", f"d:{row}", group or str(row), chosen, rejected, 1, 1, reason)


def test_variances_are_of_the_sample_and_of_the_pairs_that_fit() -> None:
    found = perplexity_variance([score(1, -1, -2), score(2, -3, -2), score(3, None, -9), score(4, -5, -8)])
    assert (found.n, found.unscored) == (3, {"overlong": 1})
    assert (found.mean_win, found.mean_lose) == (3, 4)
    assert (found.var_win, found.var_lose) == (4, 12)  # (4 + 0 + 4) / 2, (4 + 4 + 16) / 2
    assert found.var_difference == 4  # variance of -1, 1, -3


def test_one_pair_has_no_variance() -> None:
    with pytest.raises(DataError, match="1 of 2 pairs"):
        perplexity_variance([score(1, -1, -2), score(2, None, None)])


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_perplexity_is_the_stock_models_mean_loss_of_the_response(layout: str, tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "lm"))
    pairs = some_pairs(5)
    scorer = load_log_prob_scorer(folder, ScoreOptions(layout=layout, max_length=250), per_token=True)
    scores = list(score_pairs(scorer, pairs, model=folder, data="d"))
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    for pair, found in zip(pairs, scores, strict=True):
        for response, reward in ((pair.chosen, found.reward_chosen), (pair.rejected, found.reward_rejected)):
            group = scorer.encoder.encode(pair.prompt, [response])  # type: ignore[attr-defined]
            labels = torch.tensor([[-100] * len(group.prompt) + list(group.responses[0])])
            ids = torch.tensor([[*group.prompt, *group.responses[0]]])
            assert reward == pytest.approx(-model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
    assert tokenizer.pad_token_id is not None


PAPER_WIN = (3.50, 5.13, 2.33, 1.58, 1.98)
PAPER_LOSE = (6.08, 5.81, 3.52, 1.31, 2.67)
PAPER_DPO = (74.29, 70.30, 81.90, 92.70, 60.30)
PAPER_BASELINE = (76.20, 72.70, 79.80, 80.80, 56.30)


def cell(data: str, win: float, lose: float, difference: float) -> PerplexityVariance:
    return PerplexityVariance(
        model="m", data=data, n=9, unscored={}, mean_win=0, mean_lose=0, var_win=win, var_lose=lose,
        var_difference=difference,
    )  # fmt: skip


def test_table_7_follows_from_tables_2_and_6() -> None:
    """The paper's own variances and accuracies give its correlations, so this is what it computed."""
    names = ["Helpful", "Harmless", "CA", "BS", "AHP"]
    cells = {n: cell(n, w, lose, w) for n, w, lose in zip(names, PAPER_WIN, PAPER_LOSE, strict=True)}
    accuracies = {n: (d / 100, b / 100) for n, d, b in zip(names, PAPER_DPO, PAPER_BASELINE, strict=True)}
    found = variance_correlation(cells, accuracies)
    assert found.pp_win.value == pytest.approx(-0.8166, abs=5e-4)
    assert found.pp_win.p_value == pytest.approx(0.0916, abs=5e-4)
    assert found.pp_lose.value == pytest.approx(-0.9492, abs=5e-4)
    assert found.pp_lose.p_value == pytest.approx(0.0136, abs=5e-4)
    assert "n = 5" in found.warning
    assert found.as_dict()["n"] == 5
    differences = np.subtract(PAPER_DPO, PAPER_BASELINE)
    assert np.corrcoef(np.subtract(PAPER_WIN, PAPER_LOSE), differences)[0, 1] > 0  # so no difference of variances


def test_variances_and_accuracies_must_be_of_the_same_sets() -> None:
    with pytest.raises(DataError, match="b, c in one alone"):
        variance_correlation({"a": cell("a", 1, 1, 1), "b": cell("b", 1, 1, 1)}, {"a": (1, 0), "c": (1, 0)})


def test_agreement_of_a_straight_line() -> None:
    reward = [score(i, float(i), 0.5, group=str(i % 6)) for i in range(12)] + [score(12, 1, 1)]
    dpo = [score(i, 0.2 * i + 1, 0.1, model="dpo") for i in range(12)] + [score(12, None, 1)]
    found = agreement(reward, dpo)
    assert found.pearson.value == pytest.approx(1)
    assert found.spearman.value == pytest.approx(1)
    assert (found.fit.slope, found.fit.intercept) == (pytest.approx(0.2), pytest.approx(1))
    assert found.interval is not None
    assert found.interval.low == pytest.approx(1)
    assert (found.pairs, found.groups, found.left_out) == (12, 6, 1)
    assert found.same_sign == pytest.approx(11 / 12)  # margin -0.5 against 0.9


def test_agreement_needs_scores_of_both() -> None:
    with pytest.raises(DataError, match="2 pairs"):
        agreement([score(i, 1, 0) for i in range(4)], [score(i, 1, 0) for i in range(2)])
    with pytest.raises(DataError, match="can't be related"):
        agreement([score(i, 1, 0) for i in range(4)], [score(i, i, 0) for i in range(4)])


def test_the_interval_of_a_correlation_is_fishers_where_points_are_independent() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=800)
    y = 0.6 * x + 0.8 * rng.normal(size=800)
    found = pearson_interval(x, y, np.arange(800))
    z, half = math.atanh(float(np.corrcoef(x, y)[0, 1])), 1.96 / math.sqrt(797)
    assert found.low == pytest.approx(math.tanh(z - half), abs=0.01)
    assert found.high == pytest.approx(math.tanh(z + half), abs=0.01)


def test_groups_that_repeat_a_point_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 60))
    once = pearson_interval(x, y, np.arange(60))
    thrice = pearson_interval(np.tile(x, 3), np.tile(y, 3), np.tile(np.arange(60), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
