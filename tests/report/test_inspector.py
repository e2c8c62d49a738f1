"""Which pairs the inspector lists, and its data on each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.evaluation.scoring import PairScore
from hafrm.pairs import PreferencePair
from hafrm.report.inspector import embedded_json, held_words, inspector_data
from hafrm.report.loading import read_evaluation
from tests.report.conftest import write_evaluation
from tests.tiny import pair


def score(model: str, row: int, margin: float | None, data: str = "set") -> PairScore:
    rewards = (None, None) if margin is None else (margin, 0.0)
    return PairScore(model, data, f"{data}:{row}", f"group {row}", *rewards, 10, 20)


@pytest.fixture
def held(tmp_path: Path):
    """Return the ids that the inspector lists, given scores and a limit."""

    def ids(scores: list[PairScore], limit: int) -> list[str]:
        evaluation = read_evaluation(write_evaluation(tmp_path, scores))
        return [pair["id"] for pair in inspector_data(evaluation, {}, max_pairs=limit)["pairs"]]

    return ids


def test_worst_mistakes_go_first(held):
    scores = [score("a", row, margin) for row, margin in enumerate([2.0, -1.0, 0.5, -3.0])]
    assert held(scores, 3) == ["set:3", "set:1", "set:2"]
    assert held(scores, 0) == []


def test_every_model_and_data_set_has_its_turn(held):
    """Rewards of models have different scales: otherwise the model with the largest would take all the places."""
    scores = [score("a", row, -100.0 - row) for row in range(4)] + [score("b", row, row - 2.0) for row in range(4)]
    scores += [score("a", row, 0.5 + row, data="other") for row in range(2)]
    assert held(scores, 4) == ["set:3", "set:0", "other:0", "set:2"]


def test_a_pair_that_several_models_get_wrong_is_held_once(held):
    scores = [score(model, row, margin) for model in "ab" for row, margin in enumerate([-2.0, -1.0])]
    assert held(scores, 10) == ["set:0", "set:1"]


def test_a_pair_that_no_model_scored_is_not_held(held):
    assert held([score("a", 0, 1.0), score("a", 1, None)], 10) == ["set:0"]


def test_texts_are_held_as_far_as_they_fit_worst_mistakes_first(tmp_path: Path):
    """Every pair is listed; of texts of 8 characters each, two fit into 20."""
    scores = [score("a", row, margin) for row, margin in enumerate([-1.0, 2.0, -3.0])]
    texts = {each.id: replace(pair("aaaa", "bb", "cc"), source="set", row=row) for row, each in enumerate(scores)}
    evaluation = read_evaluation(write_evaluation(tmp_path, scores))
    data = inspector_data(evaluation, texts, max_text=20)
    assert ["prompt" in each for each in data["pairs"]] == [True, True, False]
    assert [each["id"] for each in data["pairs"]] == ["set:2", "set:0", "set:1"]
    assert {"All", "3", "Texts", "2,", "20"} <= set(held_words(evaluation, data, max_text=20).split())
    assert "Texts" not in held_words(evaluation, inspector_data(evaluation, texts))
    assert "Texts" not in held_words(evaluation, inspector_data(evaluation, {}))


def test_pairs_that_are_not_listed_are_counted(tmp_path: Path):
    scores = [score("a", 0, 1.0), score("a", 1, None), score("a", 2, -1.0)]
    evaluation = read_evaluation(write_evaluation(tmp_path, scores))
    assert held_words(evaluation, inspector_data(evaluation, {})) == "2 pairs of 3: the others have no reward."
    few = held_words(evaluation, inspector_data(evaluation, {}, max_pairs=1))
    assert few.startswith("1 pair of 3")
    assert "worst" in few


def test_a_record_says_what_each_model_gave(tmp_path: Path):
    scores = [score("m/a", 1, -0.123456789), score("m/b", 1, None), score("m/b", 2, 1.0)]
    data = inspector_data(read_evaluation(write_evaluation(tmp_path, scores)), {})
    assert (data["models"], data["data"]) == (["a", "b"], ["set"])
    assert data["pairs"] == [
        {"id": "set:1", "data": 0, "lengths": [10, 20], "rewards": [[-0.123457, 0.0], None]},
        {"id": "set:2", "data": 0, "lengths": [10, 20], "rewards": [None, [1.0, 0.0]]},
    ]


def test_texts_join_the_record_where_they_are_at_hand(evaluation: Path, texts: dict[str, PreferencePair]):
    pair = texts["code.jsonl:7"]
    data = inspector_data(read_evaluation(evaluation), {pair.id: pair})
    (record,) = [each for each in data["pairs"] if "prompt" in each]
    assert record["id"] == pair.id
    assert record["prompt"] == [["user", pair.prompt.turns[0].content]]
    assert record["chosen"] == [["assistant", pair.chosen[0].content]]
    assert record["rejected"] == [["assistant", pair.rejected[0].content]]
    assert record["lengths"] == [len(pair.chosen[0].content), len(pair.rejected[0].content)]


@given(st.text(st.characters()) | st.sampled_from(["</script>", "<!--", "&lt;", "\u2028", "]]>"]))
def test_embedded_json_gives_the_text_back_and_holds_no_markup(text: str):
    embedded = str(embedded_json({"text": text}))
    assert json.loads(embedded) == {"text": text}
    assert embedded.isascii()
    assert not set(embedded) & set("<>&")


def test_embedded_json_has_nulls_where_numbers_are_not_finite():
    assert str(embedded_json({"a": [float("nan"), float("-inf"), 1.5]})) == '{"a":[null,null,1.5]}'


def test_tokens_join_the_record_as_lengths_that_a_browser_counts(tmp_path: Path):
    text = replace(pair("why", "a\U0001f680b", "no"), source="set", row=1)
    scores = [score("m/a", 1, -1.0), score("m/b", 1, 1.0), score("m/a", 2, 1.0)]
    evaluation = read_evaluation(write_evaluation(tmp_path, scores))
    sides = {
        "chosen": {
            "turns": [[("a", 0.123456), ("\U0001f680", -2.0), ("b", None)]],
            "template": 0.5,
            "rewards": [[1.23456, -0.5, None]],
            "reward": 0.25,
        },
        "rejected": {"turns": [[("yes", 1.0)]], "template": 0.0},  # belongs to another text
    }
    data = inspector_data(evaluation, {"set:1": text}, [{"model": "m/a", "data": "set", "id": "set:1", **sides}])
    records = {record["id"]: record for record in data["pairs"]}
    assert data["scales"] == [pytest.approx(1.9), None]
    chosen = {"turns": [[[1, 0.123, 1.2346], [2, -2.0, -0.5], [1, None, None]]], "template": 0.5, "reward": 0.25}
    assert records["set:1"]["tokens"] == [[chosen, None], None]
    assert "tokens" not in records["set:2"]
