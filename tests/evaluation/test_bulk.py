"""Rows that were scored before, and rows that can't be scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import ReadOptions
from hafrm.evaluation.bulk import ScoreConfig, score_rows
from hafrm.models.loading import ScorerChoice
from hafrm.pairs import Conversation


class LengthScorer:
    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        lengths = [len(c.response[0].content) for c in conversations]
        return [float(length) if length < 20 else None for length in lengths]


@pytest.fixture
def rescored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())

    def score(*rows: Any) -> list[dict[str, Any]]:
        path = tmp_path / "in.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        out = tmp_path / "out.jsonl"
        options = ReadOptions(on_bad_row="skip")
        score_rows(ScoreConfig(model="m", data=str(path), out=str(out), data_options=options))
        return [json.loads(line) for line in out.read_text().splitlines()]

    return score


RESPONSE = {"prompt": "p", "response": "yes", "id": 7}
PAIR = {"prompt": "p", "chosen": "yes", "rejected": "no", "id": 8}
OLD = {"reward": 1.5, "reward_chosen": 2.5, "reward_rejected": 3.5, "unscored": "overlong"}


def test_what_an_earlier_scoring_left_is_replaced(rescored) -> None:
    once = rescored(RESPONSE, PAIR)
    assert once == [RESPONSE | {"reward": 3.0}, PAIR | {"reward_chosen": 3.0, "reward_rejected": 2.0}]
    assert rescored(*once) == once
    assert rescored(RESPONSE | OLD, PAIR | OLD) == once


def test_a_row_that_was_scored_before_and_now_is_not_keeps_no_reward(rescored) -> None:
    response, pair = RESPONSE | OLD | {"response": "y" * 30}, PAIR | OLD | {"chosen": "y" * 30}
    first, second = rescored(response, pair)
    assert {name: first.get(name) for name in OLD} == dict.fromkeys(OLD) | {"unscored": "overlong"}
    assert "reward_chosen" not in first
    assert (second["reward_chosen"], second["reward_rejected"], second["unscored"]) == (None, 2.0, "overlong")
    assert "reward" not in second


@pytest.mark.parametrize("bad", [PAIR | {"rejected": ""}, {"prompt": "p", "chosen": "yes"}], ids=["empty", "missing"])
def test_a_bad_pair_has_a_pairs_fields(rescored, bad: dict[str, Any]) -> None:
    (line,) = rescored(bad)
    assert line == bad | {"reward_chosen": None, "reward_rejected": None, "unscored": line["unscored"]}
    assert line["unscored"] in ("empty_response", "missing_field")


def test_a_bad_response_and_a_line_that_is_no_row_have_one_reward(rescored) -> None:
    empty, broken, number = rescored(RESPONSE | {"response": ""}, "{broken", "5")
    assert empty == RESPONSE | {"response": "", "reward": None, "unscored": "empty_response"}
    assert broken == {"row": 2, "reward": None, "unscored": "invalid_json"}
    assert number == {"row": 3, "reward": None, "unscored": "wrong_type"}
