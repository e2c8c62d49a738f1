"""A folder without a complete evaluation is refused, with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hafrm.errors import DataError, UnreadableError
from hafrm.evaluation.scoring import PairScore, write_scores
from hafrm.report.loading import read_evaluation
from tests.report.conftest import DATA, MODELS


def test_what_was_evaluated_is_read_in_order(evaluation: Path, scores: list[PairScore]):
    found = read_evaluation(evaluation)
    assert (found.models, found.data) == (list(MODELS), list(DATA))
    assert len(found.results.comparisons) == 15
    assert list(found.scores) == scores


@pytest.mark.parametrize("name", ["results.json", "scores.jsonl"])
def test_a_missing_file_is_named(evaluation: Path, name: str):
    (evaluation / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing.*hafrm evaluate"):
        read_evaluation(evaluation)


def test_broken_json_is_reported(evaluation: Path):
    (evaluation / "results.json").write_text('{"models": ')
    with pytest.raises(UnreadableError, match=r"results\.json can't be read as JSON"):
        read_evaluation(evaluation)


@pytest.mark.parametrize("key", ["models", "comparisons"])
def test_missing_results_are_reported(evaluation: Path, key: str):
    path = evaluation / "results.json"
    results = json.loads(path.read_text())
    del results[key]
    path.write_text(json.dumps(results))
    with pytest.raises(DataError, match=f"results.*{key}"):
        read_evaluation(evaluation)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_reported(evaluation: Path, scores: list[PairScore], reward: float):
    lines = [json.dumps(asdict(each)) for each in (scores[0], replace(scores[1], reward_rejected=reward))]
    (evaluation / "scores.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"line 2: the reward (nan|inf) of pair harmless\.jsonl:2"):
        read_evaluation(evaluation)


def test_files_of_two_evaluations_do_not_mix(evaluation: Path, scores: list[PairScore]):
    write_scores([replace(scores[0], model="another")], evaluation / "scores.jsonl")
    with pytest.raises(DataError, match=r"scores of another on harmless\.jsonl.*different evaluations"):
        read_evaluation(evaluation)


@pytest.mark.parametrize("lines", [0, 5, 899])
def test_a_file_that_is_cut_short_is_no_whole_one(evaluation: Path, lines: int):
    path = evaluation / "scores.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    with pytest.raises(DataError, match=rf"{lines} scores.*900"):
        read_evaluation(evaluation)
