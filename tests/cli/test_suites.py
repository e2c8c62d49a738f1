"""`hafrm evaluate --suites`: from published formats to scores, a table and the page, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from hafrm.cli import main
from hafrm.errors import ConfigError
from hafrm.evaluation import scoring
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.models.options import ScorerChoice
from hafrm.pairs import Conversation
from tests.evaluation.test_suites import PATHS
from tests.tiny import save_tiny, tiny_tokenizer

NO_LEADERBOARD = {"ppe-correctness"}
SUITES = [f"{name}@{path}" for name, path in PATHS.items()]


def reward_model(folder: Path) -> str:
    """A tiny stock classifier on disk."""
    config = AutoConfig.from_pretrained(save_tiny(folder), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_suites_end_to_end(tmp_path: Path, capfd: Any) -> None:
    models, out = [reward_model(tmp_path / name) for name in ("one", "two")], tmp_path / "out"
    assert main(["evaluate", *models, "--suites", *SUITES, "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    for title in ("RewardBench", "RewardBench 2", "RM-Bench", "Left out", "fewer than six prompts"):
        assert title in printed
        assert title in (out / "index.html").read_text()
    results = json.loads((out / "results.json").read_text())
    assert list(results["suites"]) == SUITES
    lines = [json.loads(line) for line in (out / "suites.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (8 + 5 + 3 + 3 + 3 + 3 + 2)
    facts = [line for line in lines if line["model"] == models[0] and line["subset"] == "Factuality"]
    share = sum(line["rewards"][0] == max(line["rewards"]) for line in facts) / 2
    stated = results["suites"][SUITES[1]]["models"][models[0]]["sections"]["Factuality"]
    assert stated["value"] == pytest.approx(share)
    assert stated["ci95"] is None
    # The longest response wins on one of the two questions.
    assert results["suites"][SUITES[1]]["baselines"]["length"]["sections"]["Factuality"] == 0.5


def by_length(models: Sequence[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Evaluate models whose rewards are lengths; return the folder with the leaderboard files."""

    class Lengths:
        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            return [float(len(each.response[0].content)) for each in conversations]

    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Lengths())
    evaluate(EvaluateConfig(models=list(models), suites=SUITES, out=str(out)))
    return out / "leaderboards"


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in PATHS[name].read_text().splitlines()]


def test_each_leaderboard_gets_the_files_of_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reward_model(Path("runs/haf"))
    written = by_length(["runs/haf"], tmp_path / "out", monkeypatch)
    places = {name: written / name for name in PATHS}
    run = {"model": "runs/haf", "model_type": "Seq. Classifier", "chat_template": "tokenizer"}

    def read(suite: str, file: str) -> Any:
        return json.loads((places[suite] / file).read_text())

    # RewardBench: accuracies by subset, core sets and prior sets apart; a tie is wrong there.
    core, prior = read("rewardbench", "eval-set/runs/haf.json"), read("rewardbench", "pref-sets/runs/haf.json")
    assert {key: core.pop(key) for key in run} == {key: prior.pop(key) for key in run} == run
    assert list(prior) == ["shp"]
    columns = read("rewardbench", "eval-set-scores/runs/haf.json")
    for subset, accuracy in core.items():
        places_of = [place for place, each in enumerate(columns["subset"]) if each == subset]
        right = [columns["scores_chosen"][place] > columns["scores_rejected"][place] for place in places_of]
        assert accuracy == sum(right) / len(right)

    # RewardBench 2: the scores of the subsets as in the results.
    found = read("rewardbench-2", "eval-set/runs/haf.json")
    assert {key: found.pop(key) for key in run} == run
    results = json.loads((tmp_path / "out" / "results.json").read_text())["suites"]
    suite = next(name for name in SUITES if name.startswith("rewardbench-2@"))
    sections = results[suite]["models"]["runs/haf"]["sections"]
    assert found == {name: each["value"] for name, each in sections.items()}
    scores = read("rewardbench-2", "eval-set-scores/runs/haf.json")
    assert scores["scores"][0] == [
        float(len(text)) for side in ("chosen", "rejected") for text in rows_of("rewardbench-2")[0][side]
    ]

    # RM-Bench: the published rows with the rewards of both sides.
    rows = read("rm-bench", "total_dataset_haf.json")
    for row, published in zip(rows, rows_of("rm-bench"), strict=True):
        assert row["score_chosen"] == [float(len(text)) for text in published["chosen"]]
        assert row["score_rejected"] == [float(len(text)) for text in published["rejected"]]
        assert published.items() <= row.items()

    # JudgeBench: the decision in both orders, for the responses in the published order.
    (file,) = places["judgebench"].iterdir()
    assert (
        file.name
        == "dataset=judgebench,response_model=gpt-4o-2024-05-13,judge_name=reward_model,judge_model=runs_haf.jsonl"
    )
    for line, published in zip(file.read_text().splitlines(), rows_of("judgebench"), strict=True):
        judged = json.loads(line)
        a, b = (len(published[f"response_{side}"]) for side in "AB")
        first, second = judged["judgments"]
        assert first["judgment"]["scores"] == second["judgment"]["scores"][::-1] == [a, b]
        assert (first["decision"], second["decision"]) == ("A>B" if a > b else "B>A", "A>B" if b > a else "B>A")
        assert published.items() <= judged.items()

    # PPE: the published votes, ties included, with the rewards of both responses in the published order.
    votes = read("ppe", "data/human_preference_v1/haf.json")
    for row, published in zip(votes, rows_of("ppe"), strict=True):
        assert row["score_1"] == len(published["response_1"])
        assert row["score_2"] == len(published["response_2"])
        assert published.items() <= row.items()

    # RewardMATH: the rewards of each problem's solutions by their references.
    assert read("rewardmath", "haf_reward.json") == [
        {
            "problem": "What is 2 + 2?",
            "solution_reference": ["human_to_GPT-4", "model-a", "model-b"],
            "score": [30.0, 30.0, 9.0],
        },
        {"problem": "What is 3 - 1?", "solution_reference": ["human_to_GPT-4", "model-a"], "score": [23.0, 8.0]},
    ]
    assert sorted(path.name for path in written.iterdir() if path.is_dir()) == sorted(PATHS.keys() - NO_LEADERBOARD)


def test_files_of_an_earlier_evaluation_are_no_longer_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        reward_model(tmp_path / name)
    written = by_length([str(tmp_path / "one")], tmp_path / "out", monkeypatch)
    assert list(written.rglob("one.json"))
    by_length([str(tmp_path / "two")], tmp_path / "out", monkeypatch)
    assert list(written.rglob("two.json"))
    assert not list(written.rglob("one.json"))
    (tmp_path / "other" / "leaderboards").mkdir(parents=True)
    with pytest.raises(ConfigError, match="leaderboards was not written by"):
        by_length([str(tmp_path / "two")], tmp_path / "other", monkeypatch)


def test_neither_data_nor_suites(tmp_path: Path, capfd: Any) -> None:
    assert main(["evaluate", "m", "--out", str(tmp_path)]) == 2
    assert "give at least one, or a suite" in capfd.readouterr().err


@pytest.mark.parametrize("stop_after", [0, 2, 5])
def test_a_killed_suite_goes_on(stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    stop = [stop_after]

    class Lengths:
        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            if len(calls) == stop[0]:
                raise KeyboardInterrupt
            calls.append(len(conversations))
            return [len(c.response[0].content) + place * 1e-6 for place, c in enumerate(conversations)]

    model = reward_model(tmp_path / "model")
    monkeypatch.setattr(scoring, "CHUNK", 2)
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Lengths())
    config = EvaluateConfig(models=[model], suites=SUITES, out=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert not (tmp_path / "out" / "suites.jsonl").exists()
    stop[0] = -1
    evaluate(config)
    assert len(calls) == 4 + 3 + 2 + 2 + 2 + 2 + 1, "a chunk was scored twice"
    assert calls[4] == 8, "all four responses of two prompts are scored in one call"
    before = (tmp_path / "out" / "suites.jsonl").read_bytes()
    evaluate(config)
    assert len(calls) == 16
    assert (tmp_path / "out" / "suites.jsonl").read_bytes() == before
