"""Every script in `examples/` runs on tiny models and rows, as its docstring says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

import hafrm
from hafrm.data import load_pairs
from hafrm.losses import REWARD_LOSSES, bradley_terry_loss, register_reward_loss
from tests.faults.runs import saved_run
from tests.tiny import save_tiny, some_pairs

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_all_examples_are_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"custom_loss.py", "own_data.py", "score_and_select.py"}


def test_a_loss_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, and the run loads in a process that does not know the loss."""
    monkeypatch.setattr("hafrm.losses.rewards._LOSSES", known := dict(REWARD_LOSSES))
    monkeypatch.setattr("hafrm.training.loss.REWARD_LOSSES", known)
    monkeypatch.setattr("hafrm.training.objective.REWARD_LOSSES", known)
    base, rows, out = (
        save_tiny(tmp_path / "base", max_position_embeddings=512),
        tmp_path / "rows.jsonl",
        tmp_path / "out",
    )
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(8)))
    run("custom_loss.py", base, rows, out, monkeypatch=monkeypatch)
    assert "focal" in known
    assert json.loads((out / "hafrm.json").read_text())["reward_loss"] == "focal"
    assert hafrm.load_scorer(str(out)).score([hafrm.Conversation.of("Hi", "Hello")])[0] is not None


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match="hinge"):
        register_reward_loss("hinge", bradley_terry_loss)


def test_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"text": "a", "votes": 0}, {"text": "b", "votes": 7}, {"text": "c", "votes": 7}]
    (tmp_path / "posts.jsonl").write_text(json.dumps({"question": "Why?", "answers": answers}))
    run("own_data.py", tmp_path / "posts.jsonl", tmp_path / "pairs.jsonl", monkeypatch=monkeypatch)
    pairs = load_pairs(str(tmp_path / "pairs.jsonl"), split="train").pairs
    assert [(pair.chosen[0].content, pair.rejected[0].content) for pair in pairs] == [("b", "a"), ("c", "a")]
    assert all(pair.margin is not None and pair.margin > 2 for pair in pairs)


def test_scores_and_selections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved_run(save_tiny(tmp_path / "base"), tmp_path / "run")
    rows = [{"prompt": "Hi", "responses": ["a", "b", "x" * 900]}, {"prompt": "Yo", "responses": ["c"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("score_and_select.py", model, tmp_path / "rows.jsonl", tmp_path / "best.jsonl", monkeypatch=monkeypatch)
    found = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    scores = hafrm.load_scorer(str(model)).score([hafrm.Conversation.of("Hi", text) for text in "ab"])
    assert found[0]["reward"] == pytest.approx(max(filter(None, scores)), abs=1e-5)
    assert found[1]["response"] == "c"
