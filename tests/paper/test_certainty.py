"""Calibration in a study, against scikit-learn and values worked by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from hafrm.evaluation.scoring import PairScore
from hafrm.paper.study import certainties

LN3 = math.log(3)  # the margin at which a model is 75% certain


def scores(margins: list[float | None], prompts: int = 8) -> list[PairScore]:
    return [
        PairScore("m", "d", f"d:{i}", f"g{i % prompts}", margin, None if margin is None else 0.0, 5, 5)
        for i, margin in enumerate(margins)
    ]


def test_values_worked_by_hand() -> None:
    """Of eight choices with a certainty of 75%, six are right; the baseline always says 50%."""
    haf = {0: scores([LN3] * 6 + [-LN3] * 2), 1: scores([LN3] * 8)}
    found = certainties({"BS": {"haf": haf, "baseline": {0: scores([0.0] * 8), 1: scores([0.0] * 8)}}})["BS"]
    assert found["haf"]["right"] == (0.75 + 1) / 2
    assert found["haf"]["stated"] == pytest.approx(0.75)
    assert found["haf"]["ece"] == pytest.approx((0 + 0.25) / 2)
    assert found["haf"]["brier_by_seed"] == pytest.approx([6 / 8 * 0.0625 + 2 / 8 * 0.5625, 0.0625])
    assert found["haf"]["over"]["difference"] == pytest.approx(np.mean(found["haf"]["brier_by_seed"]) - 0.25)
    low, high = found["haf"]["over"]["ci95"]
    assert low < found["haf"]["over"]["difference"] < high < 0
    assert (found["baseline"]["stated"], found["baseline"]["brier"], found["baseline"]["over"]) == (0.5, 0.25, None)


def test_the_difference_is_on_the_pairs_and_seeds_of_both() -> None:
    rng = np.random.default_rng(0)
    haf, baseline = rng.normal(0.5, 1, (2, 40)), rng.normal(0.5, 1, 40)
    unread: list[float | None] = [None] * 10
    rows = {
        "haf": {0: scores([*unread, *haf[0, 10:]]), 3: scores(list(haf[1]))},
        "baseline": {0: scores([*baseline[:30], *unread])},
        "dpo": {3: scores(list(haf[1]))},
    }
    found = certainties({"BS": rows})["BS"]
    ones = np.ones(20)
    expected = [brier_score_loss(ones, 1 / (1 + np.exp(-each[10:30]))) for each in (haf[0], baseline)]
    assert found["haf"]["over"]["difference"] == pytest.approx(expected[0] - expected[1])
    assert found["dpo"]["over"] is None
    apart = {"haf": {0: scores([LN3] * 5 + [None] * 5)}, "baseline": {0: scores([None] * 5 + [LN3] * 5)}}
    assert certainties({"BS": apart})["BS"]["haf"]["over"] is None
    assert certainties({"BS": {"haf": rows["haf"]}}) == {}


def test_few_prompts_have_no_interval() -> None:
    rows = {name: {0: scores([LN3] * 8, prompts=2)} for name in ("haf", "baseline")}
    assert certainties({"CA": rows})["CA"]["haf"]["over"] == {"difference": 0, "ci95": None}
