"""The command line from real pairs to a reward model that other programs load, on a real tiny checkpoint."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hafrm.cli import main
from hafrm.models.stock import quiet_transformers
from tests.paths import shared_data, shared_model
from tests.tiny import save_tiny

FAST = ["--training.max_steps", "3", "--training.per_device_train_batch_size", "4", "--training.report_to", "[]"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen real pairs, the shortest ones, so that the tests stay quick."""
    with gzip.open(shared_data("pku_safe", "test"), "rt") as file:
        lines = sorted(file, key=len)[:24]
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("".join(lines))
    return path


def train(rows: Path, out: Path, *more: str) -> None:
    model = str(shared_model("stories260k"))
    command = ["train", "--model", model, "--data", str(rows), "--eval_data", str(rows), "--out", str(out)]
    assert main([*command, *FAST, *more]) == 0


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default method, which tests only read."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(rows, folder)
    return folder


SLOW = [pytest.param(["--method", method], marks=pytest.mark.slow) for method in ("baseline", "dpo")]


@pytest.mark.parametrize("more", [[], ["--lora.rank", "4"], *SLOW], ids=str)
def test_train_evaluate_score_export(more: list[str], rows: Path, tmp_path: Path, capfd) -> None:
    run = tmp_path / "run"
    train(rows, run, *more)
    assert "The model is in" in capfd.readouterr().out

    assert main(["evaluate", str(run), "--data", str(rows), "--out", str(tmp_path / "eval")]) == 0
    printed, errors = capfd.readouterr()
    assert "run was trained on the pairs of" in errors
    assert "the longer response" in printed
    assert "random" in printed
    result = json.loads((tmp_path / "eval" / "results.json").read_text())["models"][str(run)]["data"][str(rows)]
    assert result["n"] + result["unscored"] == 24
    assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
    scores = [json.loads(line) for line in (tmp_path / "eval" / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 24
    hits = [(s["reward_chosen"] > s["reward_rejected"]) for s in scores if s["reward_chosen"] is not None]
    assert np.mean(hits) == pytest.approx(result["accuracy"], abs=0.05)
    assert (tmp_path / "eval" / "index.html").stat().st_size > 1000

    assert main(["score", str(run), "--data", str(rows), "--out", str(tmp_path / "scored.jsonl")]) == 0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [s["reward_chosen"] for s in scored] == pytest.approx([s["reward_chosen"] for s in scores], abs=1e-5)
    assert [s["prompt"] for s in scored] == [json.loads(line)["prompt"] for line in rows.read_text().splitlines()]

    assert main(["export", str(run)]) == 0
    heads = {path.name for path in (run / "export").iterdir()}
    assert heads == {"--method baseline": {"reward"}, "--method dpo": {"policy"}}.get(
        " ".join(more), {"reward", "policy"}
    )


def test_a_run_loads_in_both_stock_classes_and_scores_the_same(run: Path, rows: Path, tmp_path: Path) -> None:
    """Stock transformers loads the run's own folder without custom code."""
    assert main(["score", str(run), "--data", str(rows), "--out", str(tmp_path / "scored.jsonl")]) == 0
    with quiet_transformers():
        classifier = AutoModelForSequenceClassification.from_pretrained(run).eval()
        causal = AutoModelForCausalLM.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    for line in (tmp_path / "scored.jsonl").read_text().splitlines()[:20]:
        row = json.loads(line)
        if row["reward_chosen"] is None:
            continue
        messages = [*row["prompt"], *row["chosen"]]
        inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            assert classifier(**inputs).logits[0, 0].item() == pytest.approx(row["reward_chosen"], abs=1e-5)
            assert torch.isfinite(causal(**inputs).logits).all()


def test_prompt_and_response_rows(run: Path, tmp_path: Path, capfd) -> None:
    """A row that can't be scored keeps its place and gives the reason."""
    lines = [
        json.dumps({"prompt": "How are you?", "response": "Fine.", "id": 7}),
        json.dumps({"prompt": "How are you?", "response": ""}),
        json.dumps({"prompt": "Tell me all.", "response": "word " * 2000}),
        "{broken",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    command = ["score", str(run), "--data", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    assert main(command) == 2
    assert "row 2" in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    assert main([*command, "--data_options.on_bad_row", "skip"]) == 0
    assert "1 rows scored; without a reward: 1 empty_response, 1 overlong, 1 invalid_json" in capfd.readouterr().err
    first, empty, long, broken = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert isinstance(first["reward"], float)
    assert first["id"] == 7
    assert (empty["reward"], empty["unscored"]) == (None, "empty_response")
    assert (long["reward"], long["unscored"]) == (None, "overlong")
    assert (broken["row"], broken["unscored"]) == (4, "invalid_json")


def test_several_models_are_compared(run: Path, rows: Path, tmp_path: Path, capfd) -> None:
    train(rows, tmp_path / "baseline", "--method", "baseline")
    models = [str(run), str(tmp_path / "baseline")]
    assert main(["evaluate", *models, "--data", str(rows), "--out", str(tmp_path / "eval")]) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    (comparison,) = results["comparisons"]
    a, b = (results["models"][model]["data"][str(rows)]["accuracy"] for model in models)
    assert comparison["difference"] == pytest.approx(a - b)
    printed = capfd.readouterr().out
    assert "McNemar" in printed
    assert "Holm" in printed


def test_an_evaluation_is_repeated_only_where_the_model_changed(rows: Path, tmp_path: Path, capfd) -> None:
    run, out = tmp_path / "run", tmp_path / "eval"
    train(rows, run, "--method", "dpo")  # its reference is a second model
    other = tmp_path / "validation.jsonl"
    other.write_text("".join(reversed(rows.read_text().splitlines(keepends=True)[:12])))
    command = ["evaluate", str(run), "--data", str(rows), "--calibration_data", str(other), "--out", str(out)]
    assert main(command) == 0
    capfd.readouterr()
    before = (out / "results.json").read_bytes()
    for path, said in ((None, ""), (run / "model.safetensors", "the model changed since")):
        if path is not None:
            os.utime(path, (1, 1))
        assert main(command) == 0
        assert said in capfd.readouterr().err.replace("\n", " ")
        assert (out / "results.json").read_bytes() == before
    cell = json.loads(before)["models"][str(run)]["data"][str(rows)]
    assert {"brier", "temperature", "spearman_length", "accuracy_by_margin"} <= cell.keys()


@pytest.mark.parametrize(("prompts", "said"), [(2, True), (12, False)])
def test_a_missing_interval_is_explained(prompts: int, said: bool, rows: Path, tmp_path: Path, capfd) -> None:
    few, model = tmp_path / "few.jsonl", str(shared_model("stories260k"))
    lines = [json.loads(line) | {"group": str(n % prompts)} for n, line in enumerate(rows.read_text().splitlines())]
    few.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["evaluate", model, "--head", "policy", "--reference", model, "--data", str(few)]
    command += ["--score.chat_template", "default", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert ("No interval and no p on few.jsonl" in capfd.readouterr().out) == said


@pytest.mark.slow
def test_the_combined_head(run: Path, rows: Path, tmp_path: Path) -> None:
    """r + w * beta * log-ratio: between the heads, and equal to the reward head at w = 0."""

    def rewards(name: str, *more: str) -> np.ndarray:
        out = tmp_path / f"{name}.jsonl"
        assert main(["score", str(run), "--data", str(rows), "--out", str(out), *more]) == 0
        values = [json.loads(line)["reward_chosen"] for line in out.read_text().splitlines()]
        return np.array([v for v in values if v is not None])

    reward = rewards("reward")
    policy = rewards("policy", "--head", "policy")
    np.testing.assert_allclose(rewards("zero", "--head", "combined", "--combined_weight", "0"), reward, atol=1e-5)
    both = rewards("both", "--head", "combined", "--combined_weight", "3")
    np.testing.assert_allclose(both, reward + 3 * policy, atol=1e-4)
    assert np.abs(policy).max() > 1e-4


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--model", "m", "--data", "nothing.jsonl", "--out", "o"], "nothing.jsonl"),
        (["train", "--model", "missing", "--data", "nothing.jsonl", "--out", "o"], "nothing.jsonl"),
        (["train", "--model", "m", "--data", "world/helpful", "--out", "o", "--loss.beta", "-1"], "loss.beta"),
        (["evaluate", "nowhere", "--data", "hh-harmles", "--out", "o"], "hh-harmless"),
        (["score", "nowhere", "--data", "x.jsonl"], "x.jsonl"),
        (["export", "nowhere"], "nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_mistakes_are_one_clear_line(command: list[str], message: str, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("m"))
    assert main(command) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_print_config_prints_what_would_run(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--model", "m", "--data", "a", "b", "--out", "o", "--print_config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "policy_ratio: 0.2" in printed
    assert "beta: 0.1" in printed


def test_a_config_file_is_read_and_overridden(rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {shared_model('stories260k')}\ndata: [{rows}]\nmethod: baseline\nout: elsewhere\n")
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run"), *FAST]) == 0
    assert json.loads((tmp_path / "run" / "hafrm.json").read_text())["method"] == "baseline"
