"""From raw scores to results.json: hand-worked values and the file's contract."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.errors import DataError
from hafrm.evaluation.results import Results, summarise
from hafrm.evaluation.scoring import PairScore, read_scores, score_pairs, write_scores
from tests.tiny import some_pairs


def score(margin: float | None, *, model: str = "m", row: int = 1, longer: int = 1) -> PairScore:
    chosen, rejected = (None, None) if margin is None else (margin, 0.0)
    unscored = "overlong" if margin is None else ""
    return PairScore(model, "d", f"f:{row}", f"g{row}", chosen, rejected, 10 + longer, 10, unscored)


def test_hand_worked_accuracies() -> None:
    """Two right, one wrong, one tie, one unscored: 2.5 of 4."""
    margins = [1.0, 2.0, -1.0, 0.0, None]
    scores = [score(m, row=i, longer=(-1) ** i) for i, m in enumerate(margins)]
    entry = summarise(scores).as_dict()["models"]["m"]["data"]["d"]
    assert entry["accuracy"] == 2.5 / 4
    assert (entry["n"], entry["unscored"], entry["ties"], entry["groups"]) == (4, 1, 1, 4)
    assert entry["length_accuracy"] == 0.5
    assert entry["random_accuracy"] == 0.5
    assert entry["mean_margin"] == 0.5
    assert entry["ci95"] is None  # there are only four prompts
    assert entry["words_accuracy"] is None
    words = {"d": {f"f:{i}": rewards for i, rewards in enumerate([(2, 1), (1, 2), (1, 1), (3, 0), (0, 9)])}}
    entry = summarise(scores, words=words).as_dict()["models"]["m"]["data"]["d"]
    assert entry["words_accuracy"] == 2.5 / 4  # on the same pairs


@pytest.mark.parametrize(("prompts", "has_one"), [(5, False), (6, True)])
def test_an_interval_needs_six_prompts(prompts: int, has_one: bool) -> None:
    scores = [replace(score(1.0, row=i), group=f"g{i % prompts}") for i in range(60)]
    other = [replace(each, model="n", reward_chosen=-1.0) for each in scores]
    found = summarise(scores + other).as_dict()
    entry, (comparison,) = found["models"]["m"]["data"]["d"], found["comparisons"]
    assert (entry["ci95"], comparison["ci95"]) == (((1, 1), (1, 1)) if has_one else (None, None))
    assert (comparison["p_bootstrap"] < 1) == has_one


def test_comparisons_use_the_pairs_that_both_scored() -> None:
    a = [score(1.0, row=i) for i in range(20)]
    b = [score(-1.0 if i < 10 else None, model="n", row=i) for i in range(20)]
    (comparison,) = summarise(a + b).as_dict()["comparisons"]
    assert (comparison["a"], comparison["b"], comparison["n"]) == ("m", "n", 10)
    assert comparison["difference"] == 1.0
    assert comparison["ci95"] == (1.0, 1.0)
    assert comparison["p_mcnemar"] == pytest.approx(2 * 0.5**10)


def test_mcnemar_leaves_ties_out() -> None:
    """A pair that is right for one model and a tie for the other does not count: 3 of 9 pairs do, p = 2 / 2^3."""
    a = [score(1.0, row=i) for i in range(9)]
    b = [score(0.0 if i < 6 else -1.0, model="n", row=i) for i in range(9)]
    (comparison,) = summarise(a + b).as_dict()["comparisons"]
    assert comparison["difference"] == pytest.approx((6 * 0.5 + 3) / 9)
    assert comparison["p_mcnemar"] == pytest.approx(0.25)
    (reversed_,) = summarise(b + a).as_dict()["comparisons"]
    assert reversed_["p_mcnemar"] == pytest.approx(0.25)
    (all_ties,) = summarise(a[:6] + b[:6]).as_dict()["comparisons"]
    assert all_ties["p_mcnemar"] == 1.0


def test_holm_corrects_over_all_data_sets() -> None:
    """Two data sets, one comparison each: the smaller p doubles, the other is at least that."""
    scores = []
    for data, wrong in (("d", 1), ("e", 8)):
        scores += [replace(score(1.0, row=i), data=data) for i in range(20)]
        scores += [replace(score(-1.0 if i < wrong else 1.0, model="n", row=i), data=data) for i in range(20)]
    loose, strict = summarise(scores).as_dict()["comparisons"]
    assert strict["p_bootstrap"] < loose["p_bootstrap"]
    assert strict["p_holm"] == pytest.approx(2 * strict["p_bootstrap"])
    assert loose["p_holm"] == pytest.approx(max(loose["p_bootstrap"], strict["p_holm"]))


def test_brier_by_hand() -> None:
    """Margins log 3 and log(1/3): sigmoids .75 and .25, squared misses .0625 and .5625."""
    entry = summarise([score(math.log(3), row=1), score(-math.log(3), row=2)]).as_dict()["models"]["m"]["data"]["d"]
    assert entry["brier"] == pytest.approx((0.0625 + 0.5625) / 2)


def test_spearman_of_reward_and_length_by_hand() -> None:
    """Four responses whose rewards rise with their lengths but for one swap: 1 - 6 * 2 / (4 * 15) = 0.8."""
    first = PairScore("m", "d", "f:1", "g", 1.0, 2.0, 10, 20)
    second = PairScore("m", "d", "f:2", "h", 4.0, 3.0, 30, 40)
    entry = summarise([first, second]).as_dict()["models"]["m"]["data"]["d"]
    assert entry["spearman_length"]["value"] == pytest.approx(0.8)
    assert entry["spearman_length"]["p_value"] == pytest.approx(0.2)
    constant = replace(second, reward_chosen=1.0, reward_rejected=1.0), replace(first, reward_rejected=1.0)
    assert summarise(constant).as_dict()["models"]["m"]["data"]["d"]["spearman_length"] is None
    assert summarise([first]).as_dict()["models"]["m"]["data"]["d"]["spearman_length"] is None


def test_slices_are_quarters_by_hand() -> None:
    """Margins of 1 to 8, of which odd ones are wrong; only the largest differences in length are right."""
    margins = [(-1.0) ** size * size for size in range(1, 9)]
    scores = [score(margin, row=i, longer=8 if margin > 0 else -i) for i, margin in enumerate(margins)]
    entry = summarise(scores).as_dict()["models"]["m"]["data"]["d"]
    by_margin = entry["accuracy_by_margin"]
    assert [(each["n"], each["accuracy"]) for each in by_margin] == [(2, 0.5)] * 4
    assert (by_margin[0]["low"], by_margin[-1]["high"]) == (1.0, 8.0)
    by_length = entry["accuracy_by_length_difference"]
    assert [each["accuracy"] for each in by_length][-1] == 1.0
    assert by_length[0]["accuracy"] == 0.0
    assert sum(each["n"] for each in by_length) == 8
    assert (by_length[0]["low"], by_length[-1]["high"]) == (-6.0, 8.0)


@pytest.mark.parametrize("margins", [[1.0, 2.0], [-1.0, -2.0], [None]], ids=["all right", "all wrong", "unscored"])
def test_no_temperature_where_none_is_best(margins: list[float | None]) -> None:
    calibration = [replace(score(margin, row=i), data="v") for i, margin in enumerate(margins)]
    entry = summarise([score(1.0)], calibration).as_dict()["models"]["m"]["data"]["d"]
    assert entry["temperature"] is None
    assert entry["ece_calibrated"] is None


def test_temperature_is_each_models_own() -> None:
    calibration = [replace(score(m, row=i), data="v") for i, m in enumerate([3.0, 3.0, 3.0, -3.0])]
    entries = summarise([score(3.0), score(1.0, model="n")], calibration).as_dict()["models"]
    # three of four are right, so sigmoid(3 / T) = 3/4 is best
    assert entries["m"]["data"]["d"]["temperature"] == pytest.approx(3 / math.log(3))
    assert entries["m"]["data"]["d"]["ece_calibrated"] == pytest.approx(0.25)
    assert "temperature" not in entries["n"]["data"]["d"]


def test_nothing_scored_is_no_accuracy() -> None:
    assert summarise([score(None)]).as_dict()["models"]["m"]["data"]["d"] == {
        "n": 0,
        "unscored": 1,
        "unscored_reasons": {"overlong": 1},
    }


def test_results_are_json(tmp_path: Path) -> None:
    results = summarise([score(1.0), score(1.0, model="n")]).as_dict()
    atomic.write_json(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = [score(1.5, model="m\u2028\x85", row=1), score(None, row=2)]
    write_scores(scores, tmp_path / "scores.jsonl")
    assert read_scores(tmp_path / "scores.jsonl") == scores
    odd = replace(scores[0], id="na\udcefme:1")  # a file name that is not UTF-8
    write_scores([odd], tmp_path / "scores.jsonl")
    assert read_scores(tmp_path / "scores.jsonl") == [odd]
    (tmp_path / "scores.jsonl").write_text('{"model": "m"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_scores(tmp_path / "scores.jsonl")


def test_score_pairs_keeps_chosen_and_rejected_apart() -> None:
    class Length:
        """A scorer for which the reward is the length, and long texts are over-long."""

        def score(self, conversations):
            lengths = [len(c.response[0].content) for c in conversations]
            return [float(n) if n < 12 else None for n in lengths]

    pairs = some_pairs(7)
    done: list[int] = []
    scores = list(score_pairs(Length(), pairs, model="m", data="d", progress=done.append))
    assert done == [7]
    for pair, found in zip(pairs, scores, strict=True):
        assert found.id == pair.id
        lengths = len(pair.chosen[0].content), len(pair.rejected[0].content)
        assert (found.length_chosen, found.length_rejected) == lengths
        assert (found.reward_chosen, found.reward_rejected) == tuple(float(n) if n < 12 else None for n in lengths)
        assert (found.margin is not None) == (max(lengths) < 12)


def test_results_are_restored_from_their_file() -> None:
    """This includes cells without scores or calibration, and models whose margins are not log-odds."""
    scores = [score(i / 10, model=model, row=i, longer=i % 3) for i in range(-5, 20) for model in "abc"]
    scores += [replace(score(None, model="a"), data="other"), replace(score(1.0, model="b"), data="other")]
    calibration = [score(i - 5.0, model=model, row=i) for i in range(1, 20) for model in "ac"]
    found = summarise(scores, calibration, no_log_odds={"c"})
    found.servers["b"], found.sources["d"] = {"model": "x"}, [{"name": "d"}]
    found.suites["suite"] = {"models": {}}
    assert Results.from_dict(json.loads(atomic.json_text(found.as_dict()))) == found
    assert found.cells["a", "other"].measured is None
    assert found.cells["c", "d"].measured.calibration is not None  # type: ignore[union-attr]
