"""Rows that were scored before, and rows that can't be scored."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from hafrm.atomic import require_folder
from hafrm.data import ReadOptions, load_pairs
from hafrm.errors import BadRowError, ConfigError, ModelError
from hafrm.evaluation.bulk import RowScorer, score_rows
from hafrm.evaluation.options import ScoreConfig
from hafrm.models.options import ScorerChoice
from hafrm.models.tokens import TokenRewards
from hafrm.pairs import Conversation
from tests.faults.runs import saved_run
from tests.tiny import save_tiny, some_pairs


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


def test_a_row_with_nothing_to_score_says_so(rescored, tmp_path: Path) -> None:
    assert rescored({"prompt": "p"})[0]["unscored"] == "missing_field"
    (tmp_path / "in.jsonl").write_text('{"prompt": "p", "answer": "yes"}\n')
    for columns, problem in ((None, r"row 1.*`response` is missing.*prompt, answer"), ("response: answer", None)):
        options = ReadOptions(columns=columns)
        config = ScoreConfig(model="m", data=str(tmp_path / "in.jsonl"), out=str(tmp_path / "o"), data_options=options)
        with pytest.raises(BadRowError, match=problem) if problem else nullcontext():
            score_rows(config)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux's")
def test_a_file_that_can_not_be_written_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(PAIR))
    with pytest.raises(ConfigError, match=r"/proc/x.jsonl can't be created.*--out"):
        score_rows(ScoreConfig(model="m", data=str(tmp_path / "in.jsonl"), out="/proc/x.jsonl"))
    with pytest.raises(ConfigError, match=r"/proc/x/y can't be created.*--out"):
        require_folder(Path("/proc/x/y"))
    require_folder(tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_bad_response_and_a_line_that_is_no_row_have_one_reward(rescored) -> None:
    empty, broken, number = rescored(RESPONSE | {"response": ""}, "{broken", "5")
    assert empty == RESPONSE | {"response": "", "reward": None, "unscored": "empty_response"}
    assert broken == {"row": 2, "reward": None, "unscored": "invalid_json"}
    assert number == {"row": 3, "reward": None, "unscored": "wrong_type"}


class HalfByToken(LengthScorer):
    """Gives a reward of 1 per character, and as much again that belongs to no character."""

    def token_rewards(self, conversations: Sequence[Conversation]) -> list[TokenRewards | None]:
        texts = [c.response[0].content for c in conversations]
        return [
            None if len(text) >= 20 else TokenRewards((tuple((c, 1.0) for c in text),), 0.0, 2.0 * len(text))
            for text in texts
        ]


def test_tokens_are_added_to_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divided rewards are named like the rewards; scoring again replaces them, and scoring without them drops them."""
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: HalfByToken())
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [RESPONSE, PAIR | {"chosen": "y" * 30}, PAIR | {"chosen": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scored(data: Path, tokens: bool) -> list[dict[str, Any]]:
        options = ReadOptions(on_bad_row="skip")
        score_rows(ScoreConfig(model="m", data=str(data), out=str(out), data_options=options, tokens=tokens))
        return [json.loads(line) for line in out.read_text().splitlines()]

    first, second, third = scored(path, True)
    pieces = [[letter, 1.0] for letter in "yes"]
    assert first == RESPONSE | {
        "reward": 6.0,
        "token_rewards": {"turns": [pieces], "template": 0.0, "reward": 6.0},
    }
    assert second["token_rewards_chosen"] is None
    assert second["token_rewards_rejected"]["reward"] == second["reward_rejected"] == 4.0
    assert third["token_rewards_chosen"] is third["token_rewards_rejected"] is third["reward_chosen"] is None
    again = tmp_path / "again.jsonl"
    again.write_text("".join(json.dumps(row) + "\n" for row in (first, second, third)))
    assert scored(again, True) == [first, second, third]
    assert not any("token_rewards" in name for row in scored(again, False) for name in row)


def test_tokens_need_a_model_that_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(RESPONSE) + "\n")
    with pytest.raises(ModelError, match="--head policy"):
        score_rows(ScoreConfig(model="m", data=str(path), out=str(tmp_path / "out.jsonl"), tokens=True))
    with pytest.raises(ConfigError, match="tokens"):
        ScoreConfig(model="http://localhost:1", data=str(path), tokens=True)


def test_rows_of_one_pair_in_other_forms_are_scored(rescored) -> None:
    """Rows keep their own columns."""
    alpaca = {"instruction": "p", "chosen": "yes", "rejected": "no"}
    completion = {"prompt": "p", "completion": "yes"}
    ranking = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
    found = rescored(alpaca, completion, completion | {"label": True}, ranking)
    assert found[0] == alpaca | {"reward_chosen": 3.0, "reward_rejected": 2.0}
    assert found[1] == completion | {"reward": 3.0}
    assert found[2] == completion | {"label": True, "reward": 3.0}
    assert found[3]["unscored"] == "unsupported"


def test_columns_and_mappings_apply_to_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    monkeypatch.chdir(tmp_path)
    Path("answers.py").write_text("def of(row):\n    return {'prompt': row['q'], 'response': row['a']}\n")
    row = {"q": "p", "a": "yes"}
    for options in (ReadOptions(columns="prompt: q, response: a"), ReadOptions(mapping="answers.py:of")):
        score_rows(ScoreConfig(model="m", data=[row, row], out="out.jsonl", data_options=options))  # type: ignore[arg-type]
        assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == [row | {"reward": 3.0}] * 2


def test_numbers_that_json_lacks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    path, out = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    values = [{"x": 1.0, "y": [0.5]}, {"x": float("nan"), "y": [0.5]}, {"x": None, "y": [0.5, float("-inf")]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([RESPONSE | each for each in values]), path)
    assert score_rows(ScoreConfig(model="m", data=str(path), out=str(out))).altered == 2
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["x"], row["y"]) for row in written] == [(1.0, [0.5]), (None, [0.5]), (None, [0.5, None])]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Rows in three files, of which one is in a folder below and one is empty."""
    rows = [{"prompt": f"p{i}", "response": "y" * (1 + i % 7), "id": i} for i in range(23)]
    (folder / "b").mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    (folder / "b" / "more.json").write_text(json.dumps(rows[9:]))
    (folder / "c.jsonl").write_text("")
    return rows


@pytest.mark.parametrize(("name", "kept"), [("[:2]", [1, 2]), ("[2:]", [3, 4]), ("[-1:]", [4]), ("[:50%]", [1, 2])])
def test_a_slice_of_a_file_is_scored(
    name: str, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "response": "y", "id": row}) + "\n" for row in range(1, 5)))
    score_rows(ScoreConfig(model="m", data=f"{path}{name}", out=str(out)))
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == kept
    with pytest.raises(ConfigError, match="no splits"):
        score_rows(ScoreConfig(model="m", data=f"{path}#test", out=str(out)))


@pytest.mark.parametrize("count", [1, 2, 5, 23, 40])
def test_shards_one_after_the_other_are_the_whole(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    monkeypatch.setattr("hafrm.evaluation.bulk.CHUNK", 4)
    rows = rows_of(tmp_path / "in")
    found: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        out = tmp_path / f"{number}.jsonl"
        score_rows(ScoreConfig(model="m", data=str(tmp_path / "in"), out=str(out), shard=f"{number}/{count}"))
        lines = out.read_text().splitlines()
        assert len(lines) in (len(rows) // count, len(rows) // count + 1)
        found += map(json.loads, lines)
    assert found == [row | {"reward": float(len(row["response"]))} for row in rows]


def test_saved_data_sets_are_scored_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folders contain JSON files without rows."""
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    splits = {name: Dataset.from_list([{"prompt": "p", "response": name}]) for name in ("test", "train")}
    DatasetDict(splits).save_to_disk(str(tmp_path / "rows" / "several"))
    splits["test"].save_to_disk(str(tmp_path / "rows" / "one"))
    (tmp_path / "rows" / "more.jsonl").write_text(json.dumps({"prompt": "p", "response": "more"}) + "\n")
    out = tmp_path / "scored.jsonl"
    assert score_rows(ScoreConfig(model="m", data=str(tmp_path / "rows"), out=str(out))).scored == 4
    assert [json.loads(line)["response"] for line in out.read_text().splitlines()] == ["more", "test", "test", "train"]


def test_every_data_name_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As elsewhere: a pattern, a folder's split, a data set on the hub with its own columns, and a named set."""
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    calls = []

    def hub(path: str, **options: Any) -> Dataset:
        calls.append((path, options["split"]))
        return Dataset.from_list([{"prompt": "p", "response": "hub", "extra": 1}])

    monkeypatch.setattr("datasets.load_dataset", hub)
    (tmp_path / "in").mkdir()
    for name in ("train", "test"):
        (tmp_path / "in" / f"{name}.jsonl").write_text(json.dumps({"prompt": "p", "response": name}) + "\n")

    def scored(data: str) -> list[dict[str, Any]]:
        score_rows(ScoreConfig(model="m", data=data, out=str(tmp_path / "out" / "scored.jsonl")))
        return [json.loads(line) for line in (tmp_path / "out" / "scored.jsonl").read_text().splitlines()]

    assert [row["response"] for row in scored(f"{tmp_path}/in/t*.jsonl")] == ["test", "train"]
    assert [row["response"] for row in scored(f"{tmp_path}/in#train")] == ["train"]
    assert scored("hub:a/b#valid") == [{"prompt": "p", "response": "hub", "extra": 1, "reward": 3.0}]
    assert ("a/b", "valid") in calls
    pairs = load_pairs("world/helpful#test[:3]").pairs
    assert [(row["prompt"][-1]["content"], row["chosen"][-1]["content"]) for row in scored("world/helpful[:3]")] == [
        (pair.prompt.turns[-1].content, pair.chosen[-1].content) for pair in pairs
    ]


def test_no_file_below_the_folder_that_is_scored_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    rows_of(tmp_path / "in")
    (tmp_path / "in" / "b" / "rows.jsonl").write_text(json.dumps({"prompt": "p", "response": "y"}) + "\n")
    with pytest.raises(ConfigError, match="would overwrite"):
        score_rows(ScoreConfig(model="m", data=str(tmp_path / "in"), out=str(tmp_path / "in" / "b" / "rows.jsonl")))
    assert len((tmp_path / "in" / "b" / "rows.jsonl").read_text().splitlines()) == 1


def test_a_bad_row_of_a_folder_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: LengthScorer())
    rows_of(tmp_path / "in")
    (tmp_path / "in" / "b" / "more.json").write_text(json.dumps([{"prompt": "p", "response": 3}]))
    with pytest.raises(BadRowError, match=r"more\.json, row 1"):
        score_rows(ScoreConfig(model="m", data=str(tmp_path / "in"), out=str(tmp_path / "out.jsonl")))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        ScoreConfig(model="m", data="rows.jsonl", shard=shard)


@pytest.mark.parametrize("out", ["scored.parquet", "scored.csv", "scored.JSON", "scored.jsonl.zst", "."])
def test_outputs_that_are_not_json_lines_are_refused(out: str) -> None:
    with pytest.raises(ConfigError, match="--out"):
        ScoreConfig(model="m", data="rows.jsonl", out=out)


def test_batches_of_columns_get_their_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hafrm.evaluation.bulk.load_scorer", lambda model: LengthScorer())
    messages = np.empty(2, dtype=object)
    messages[:] = [np.array([{"role": "user", "content": "p", "name": None}], dtype=object), "q"]
    batch = {"prompt": messages, "response": np.array(["yes", "y" * 30]), "id": np.array([4, 5])}
    found = RowScorer("m")(batch)
    assert found["reward"] == [3.0, None]
    assert found["unscored"] == [None, "overlong"]
    assert found["id"] == [4, 5]
    margin = [np.float32(1)]
    pairs = RowScorer("m")({"prompt": ["p"], "chosen": ["yes"], "rejected": ["no"], "margin": margin, "reward": [7.0]})
    assert (pairs["reward_chosen"], pairs["reward_rejected"]) == ([3.0], [2.0])
    assert "reward" not in pairs


@pytest.mark.slow
def test_ray_data_and_datasets_take_the_class(tmp_path: Path) -> None:
    """The documented pipelines, on a real model: the rewards of `hafrm score`, in order."""
    ray, datasets = pytest.importorskip("ray"), pytest.importorskip("datasets")
    run = str(saved_run(save_tiny(tmp_path / "base"), tmp_path / "run"))
    rows = [{"prompt": pair.prompt.turns[0].content, "response": pair.chosen[0].content} for pair in some_pairs(20)]
    table = datasets.Dataset.from_list(rows)
    expected = table.map(RowScorer(run), batched=True)["reward"]
    table.to_parquet(tmp_path / "rows.parquet")
    out = tmp_path / "scored.jsonl"
    score_rows(ScoreConfig(model=run, data=str(tmp_path / "rows.parquet"), out=str(out)))
    assert [json.loads(line)["reward"] for line in out.read_text().splitlines()] == pytest.approx(expected, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            ray.data.DataContext.get_current().execution_options.preserve_order = True
            blocks = ray.data.read_parquet(str(tmp_path / "rows.parquet"), override_num_blocks=4)
            scored = blocks.map_batches(RowScorer, fn_constructor_args=[run], concurrency=1, batch_size=4)
            found = [(row["response"], row["reward"]) for row in scored.take_all()]
        finally:
            ray.shutdown()
    assert [response for response, _ in found] == [row["response"] for row in rows]
    assert [reward for _, reward in found] == pytest.approx(expected, abs=1e-5)
