"""Rows in memory through the Python API: training, evaluation, scoring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from hafrm.data import DataOptions, load_pairs
from hafrm.errors import ConfigError, DataError
from hafrm.evaluation.bulk import score_rows
from hafrm.evaluation.options import EvaluateConfig, ScoreConfig
from hafrm.evaluation.run import evaluate
from hafrm.models.loading import load_scorer
from hafrm.pairs import Conversation
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs

ROWS = [pair.as_row() for pair in some_pairs(12)]
TRAINING = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "use_cpu": True, "report_to": []}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A baseline that was trained on rows in memory, which tests only read."""
    out = tmp_path_factory.mktemp("baseline") / "run"
    train(config(base, out, ROWS, method="baseline"))
    return str(out)


@pytest.fixture(scope="module")
def losses_on_file(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("file")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train(config(base, folder / "run", [str(folder / "a.jsonl")]))
    return losses(folder / "run")


def losses(run: Path) -> list[float]:
    return [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()][:2]


def config(base: str, out: Path, data: Any, **options: Any) -> TrainConfig:
    options = {"training": TRAINING, "data_options": DataOptions(max_length=128)} | options
    return TrainConfig(model=base, data=data, out=str(out), **options)


def endless(taken: list[int]) -> Iterator[dict[str, Any]]:
    while True:
        taken.append(1)
        yield ROWS[len(taken) % len(ROWS)]


HOLDERS = {
    "list": list,
    "pairs": lambda rows: load_pairs(rows).pairs,
    "pandas": pandas.DataFrame,
    "Dataset": datasets.Dataset.from_list,
}


@pytest.mark.parametrize(
    "holder", [name if name in ("list", "pandas") else pytest.param(name, marks=pytest.mark.slow) for name in HOLDERS]
)
def test_a_run_on_rows_in_memory_is_the_run_on_their_file(
    holder: str, base: str, losses_on_file: list[float], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held = HOLDERS[holder](ROWS)
    given = config(base, tmp_path / "memory", held, eval_data=held)
    train(given)
    assert losses(tmp_path / "memory") == losses_on_file
    assert "memory: read as TRL" in capfd.readouterr().err
    text = (tmp_path / "memory/manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["config"]["data"] == ["memory"]
    (source,) = manifest["data"]["train"]["sources"]
    assert source["sha256"] == load_pairs(ROWS).reports[0].sha256
    assert "12 rows" in source["read_from"][0]
    assert ROWS[0]["prompt"][0]["content"] not in text
    assert asdict(given)["data"][0].held is given.data[0].held is held


def test_an_endless_source_is_read_as_far_as_the_steps_go(base: str, tmp_path: Path) -> None:
    taken: list[int] = []
    options = TRAINING | {"gradient_accumulation_steps": 2}
    result = train(config(base, tmp_path / "run", endless(taken), training=options))
    assert result.steps == 2
    assert len(taken) == 2 * 3 * 2
    held = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert train(config(base, tmp_path / "held", held)).steps == 2
    with pytest.raises(ConfigError, match=r"training\.max_steps"):
        config(base, tmp_path / "run", endless([]), training={"num_train_epochs": 1})


def test_a_stopped_run_resumes_on_the_same_rows_and_refuses_others(base: str, tmp_path: Path) -> None:
    given = config(base, tmp_path / "run", ROWS)
    train(given)
    path = tmp_path / "run/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    with pytest.raises(ConfigError, match="other data"):
        train(replace(given, data=ROWS[::-1]))
    assert train(replace(given, data=list(ROWS))).steps == 2


@pytest.mark.parametrize("data", [3, {"prompt": "a"}, None], ids=str)
def test_what_is_no_data_is_refused_before_anything_is_loaded(data: Any, base: str, tmp_path: Path) -> None:
    for make in (
        lambda: config(base, tmp_path / "run", data),
        lambda: config(base, tmp_path / "run", ROWS, eval_data=data),
        lambda: EvaluateConfig(models=[base], data=data, out=str(tmp_path / "e")),
        lambda: ScoreConfig(model=base, data=data),
    ):
        with pytest.raises(ConfigError, match="can't read rows"):
            make()


def test_evaluation_and_scoring_take_rows_in_memory(run: str, tmp_path: Path) -> None:
    held = [pandas.DataFrame(ROWS[:6]), ROWS[6:]]
    results = evaluate(EvaluateConfig(models=[run], data=held, out=str(tmp_path / "e")))
    assert [(data, cell.n) for (_, data), cell in results.cells.items()] == [("memory", 6), ("memory-2", 6)]
    assert results.sources["memory-2"][0]["form"] == "TRL pairs with a prompt"
    score_rows(ScoreConfig(model=run, data=ROWS, out=str(tmp_path / "scored.jsonl")))
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (tmp_path / "e/scores.jsonl").read_text().splitlines()]
    for name in ("reward_chosen", "reward_rejected"):
        assert [row[name] for row in scored] == pytest.approx([row[name] for row in scores], abs=1e-5)
    for data in ([ROWS, ROWS], []):
        with pytest.raises(ConfigError, match="give one"):
            ScoreConfig(model=run, data=data)


def test_a_scorer_takes_texts_messages_and_conversations(run: str) -> None:
    scorer: Any = load_scorer(run)
    user, assistant = {"role": "user", "content": "How hot?"}, {"role": "assistant", "content": "Very."}
    forms = [
        Conversation.of("How hot?", "Very."),
        ("How hot?", "Very."),
        ["How hot?", "Very."],
        ([user], [assistant]),
        [user, assistant],
        {"prompt": "How hot?", "response": "Very."},
    ]
    rewards = [scorer.score([form])[0] for form in forms]
    assert rewards == [rewards[0]] * len(forms)
    assert scorer.score(forms) == pytest.approx(rewards, abs=1e-5)
    for item, message in (
        ("text", "item 2"),
        ([assistant, user], "item 2: .*role user"),
        (("", "a"), "item 2: .*empty"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            scorer.score([forms[0], item])
        assert "\n" not in str(caught.value)
