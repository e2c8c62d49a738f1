"""A part's files, without Ray: what is scored, what is an error, and what a stop in the middle leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hafrm import atomic
from hafrm.errors import DataError, ModelError, RefusedError
from hafrm.models.loading import ScorerChoice
from hafrm.models.scorers import ScoreOptions
from hafrm.pairs import Conversation
from hafrm.scale.actors import NO_REWARD, PartScorer
from hafrm.scale.config import BulkConfig
from hafrm.scale.output import JobFolder
from hafrm.scale.plan import find_input, plan_parts
from tests.scale.conftest import answer, pair, read_lines, write_lines


class LengthScorer:
    """Rewards are lengths; "long" is over the limit, "refused" no template takes, and "poison" breaks the model."""

    encoder: Any = None
    options = ScoreOptions()
    reads_responses = False

    def __init__(self) -> None:
        self.calls = 0

    def score_tokens(self, sequences: Any) -> list[float]:
        raise NotImplementedError

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        self.calls += 1
        texts = [c.response[0].content for c in conversations]
        if refused := {i: "no" for i, text in enumerate(texts) if text == "refused"}:
            raise RefusedError(refused)
        if "poison" in texts:
            raise ModelError("not finite")
        return [None if text == "long" else float(len(text)) for text in texts]


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> LengthScorer:
    found = LengthScorer()
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: found)
    return found


def score(data: Path, out: Path, size: int = 100) -> Path:
    found = find_input(data)
    worker = PartScorer(BulkConfig(model="m", data=str(data), out=str(out), engine="ray"), found.folder)
    for part in plan_parts(found, size):
        assert worker({"part": json.dumps(asdict(part))}) == {"number": part.number}
    return out


def test_every_row_is_in_one_file(scorer: LengthScorer, tmp_path: Path) -> None:
    rows = [answer(0), "{broken", pair(1), answer(2) | {"response": "refused"}, answer(3) | {"response": "long"}, "5"]
    rows += [answer(4) | {"response": "poison"}, {"id": 5, "prompt": "p", "chosen": "a"}, answer(6) | {"reward": 9}]
    out = score(write_lines(tmp_path / "in" / "rows.jsonl", rows), tmp_path / "out")
    assert read_lines(out / "scored") == [
        answer(0) | {"reward": 5.0},
        pair(1) | {"reward_chosen": 8.0, "reward_rejected": 4.0},
        answer(3) | {"response": "long", "reward": None, "unscored": "overlong"},
        answer(6) | {"reward": 9.0},
    ]
    errors = read_lines(out / "errors")
    assert [(line["row"], line["reason"], line["detail"]) for line in errors] == [
        (2, "invalid_json", None),
        (4, "refused_by_template", None),
        (6, "wrong_type", None),
        (7, NO_REWARD, "not finite"),
        (8, "missing_field", "rejected"),
    ]
    assert {line["file"] for line in errors} == {"rows.jsonl"}
    assert [line["value"] for line in errors] == [None, rows[3], 5, rows[6], rows[7]]
    assert json.loads((out / "done" / "part-000000.json").read_text()) == {
        "scored": 3,
        "unscored": dict.fromkeys(["invalid_json", "refused_by_template", "overlong", "wrong_type"], 1)
        | {NO_REWARD: 1, "missing_field": 1},
    }


def test_one_poisoned_row_costs_few_calls(scorer: LengthScorer, tmp_path: Path) -> None:
    rows = [answer(i) for i in range(64)]
    rows[37]["response"] = "poison"
    out = score(write_lines(tmp_path / "in" / "rows.jsonl", rows), tmp_path / "out")
    assert [line["id"] for line in read_lines(out / "scored")] == [i for i in range(64) if i != 37]
    assert scorer.calls == 1 + 2 * 6


@pytest.mark.parametrize("unread", [[], ["{broken"], [answer(0) | {"response": "long"}]], ids=["none", "bad", "long"])
def test_a_model_that_fails_everywhere_stops(unread: list[Any], scorer: LengthScorer, tmp_path: Path) -> None:
    """Also among rows that never reach it."""
    rows = [*unread, *(answer(i) | {"response": "poison"} for i in range(100))]
    data = write_lines(tmp_path / "in" / "rows.jsonl", rows)
    with pytest.raises(ModelError, match=r"none of 100 rows that the model read has a reward\. not finite"):
        score(data, tmp_path / "out", size=200)
    assert not list((tmp_path / "out" / "done").glob("part-*"))


def test_a_server_that_fails_poisons_no_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Remote:
        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            raise ModelError("the server has gone")

    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Remote())
    with pytest.raises(ModelError, match="has gone"):
        score(write_lines(tmp_path / "in" / "rows.jsonl", [answer(1), answer(2)]), tmp_path / "out")


def test_parquet_keeps_its_types_in_every_part(scorer: LengthScorer, tmp_path: Path) -> None:
    """Also in a part where no row has a reward, or none is left; an earlier scoring's columns are replaced."""
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.large_string()),
            ("response", pyarrow.string()),
            ("when", pyarrow.timestamp("ms")),
            ("tags", pyarrow.list_(pyarrow.int8())),
            ("reward", pyarrow.string()),
        ]
    )
    responses = ["yes", "long", "long", "long", "", None]
    rows = [
        {"prompt": "p", "response": text, "when": 1000 * i, "tags": [i], "reward": "old"}
        for i, text in enumerate(responses)
    ]
    data = tmp_path / "in" / "rows.parquet"
    data.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), data)
    out = score(data, tmp_path / "out", size=2)
    tables = [pyarrow.parquet.read_table(path) for path in sorted((out / "scored").iterdir())]
    expected = schema.remove(4).append(pyarrow.field("reward", pyarrow.float64()))
    assert all(table.schema == expected.append(pyarrow.field("unscored", pyarrow.string())) for table in tables)
    assert [table.num_rows for table in tables] == [2, 2, 0]
    assert [row["reward"] for table in tables for row in table.to_pylist()] == [3.0, None, None, None]
    assert tables[0].column("when").to_pylist() == pyarrow.array([0, 1000], pyarrow.timestamp("ms")).to_pylist()
    assert [line["reason"] for line in read_lines(out / "errors")] == ["empty_response", "missing_field"]


@pytest.mark.parametrize("file", ["errors", "scored", "done"])
def test_a_stop_before_any_file_loses_and_doubles_nothing(
    file: str, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(0), "{broken", answer(1)])
    whole = score(data, tmp_path / "whole")
    new_file = atomic.new_file

    def stopped(path: Path) -> Any:
        if path.parent.name == file:
            raise KeyboardInterrupt
        return new_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "new_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            score(data, tmp_path / "out")
    out = score(data, tmp_path / "out")
    for folder in ("scored", "errors", "done"):
        assert [path.read_bytes() for path in (out / folder).iterdir()] == [
            path.read_bytes() for path in (whole / folder).iterdir()
        ]


def test_a_part_that_is_scored_again_leaves_no_earlier_errors(
    scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every row is in one file, also where the model no longer fails at it."""
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(0), answer(1) | {"response": "poison"}])
    out = score(data, tmp_path / "out")
    assert [line["row"] for line in read_lines(out / "errors")] == [2]
    (out / "done" / "part-000000.json").unlink()
    monkeypatch.setattr(scorer, "score", lambda conversations: [1.0] * len(conversations))
    score(data, out)
    assert [line["id"] for line in read_lines(out / "scored")] == [0, 1]
    assert read_lines(out / "errors") == []


def test_a_part_of_which_actors_die_is_given_up(
    scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four actors in one run; a new run tries again."""
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(i) for i in range(3)])

    def dies(self: PartScorer, *args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartScorer, "_score", dies)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                score(data, tmp_path / "out")
    with pytest.raises(ModelError, match="died 4 times of rows 1 to 3"):
        score(data, tmp_path / "out")
    JobFolder(tmp_path / "out").clear_temporary()
    assert len(read_lines(score(data, tmp_path / "out") / "scored")) == 3


@pytest.mark.parametrize("content", ["", '{"scored": 3, "unsc', "{}", "[]", '{"scored": "x", "unscored": {}}'])
def test_a_damaged_file_of_counts_is_named(content: str, scorer: LengthScorer, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(0)])
    out = score(data, tmp_path / "out")
    done = out / "done" / "part-000000.json"
    done.write_text(content)
    with pytest.raises(DataError, match=f"{done} is damaged.*Delete it"):
        JobFolder(out).counts(plan_parts(find_input(data), 100))


def test_a_part_that_is_done_is_not_scored_again(scorer: LengthScorer, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(i) for i in range(4)])
    score(data, tmp_path / "out", size=2)
    (tmp_path / "out" / "done" / "part-000001.json").unlink()
    scorer.calls = 0
    score(data, tmp_path / "out", size=2)
    assert scorer.calls == 1
