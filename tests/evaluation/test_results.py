"""From raw scores to results.json: hand-worked values and the file's contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.errors import DataError
from hafrm.evaluation.results import summarise
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
    entry = summarise(scores)["models"]["m"]["data"]["d"]
    assert entry["accuracy"] == 2.5 / 4
    assert (entry["n"], entry["unscored"], entry["ties"], entry["groups"]) == (4, 1, 1, 4)
    assert entry["length_accuracy"] == 0.5
    assert entry["random_accuracy"] == 0.5
    assert entry["mean_margin"] == 0.5
    assert entry["ci95"][0] <= entry["accuracy"] <= entry["ci95"][1]


def test_comparisons_use_the_pairs_that_both_scored() -> None:
    a = [score(1.0, row=i) for i in range(20)]
    b = [score(-1.0 if i < 10 else None, model="n", row=i) for i in range(20)]
    (comparison,) = summarise(a + b)["comparisons"]
    assert (comparison["a"], comparison["b"], comparison["n"]) == ("m", "n", 10)
    assert comparison["difference"] == 1.0
    assert comparison["ci95"] == [1.0, 1.0]
    assert comparison["p_mcnemar"] == pytest.approx(2 * 0.5**10)


def test_nothing_scored_is_no_accuracy() -> None:
    assert summarise([score(None)])["models"]["m"]["data"]["d"] == {
        "n": 0,
        "unscored": 1,
        "unscored_reasons": {"overlong": 1},
    }


def test_results_are_json(tmp_path: Path) -> None:
    results = summarise([score(1.0), score(1.0, model="n")])
    atomic.write_json(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = [score(1.5, model="m\u2028\x85", row=1), score(None, row=2)]
    write_scores(scores, tmp_path / "scores.jsonl")
    assert read_scores(tmp_path / "scores.jsonl") == scores
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
