"""`hafrm sample` and `hafrm best-of-n` from prompts to the page, with real models and every kind of judge."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main
from tests.judging.server import serving
from tests.paths import shared_data, shared_model
from tests.tiny import save_tiny, some_pairs

TINY = ["--sampling.max_new_tokens", "8", "--sampling.batch_size", "8"]


def pairs(path: Path, count: int = 12) -> Path:
    path.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(count)))
    return path


def sample(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["sample", str(model), "--data", str(data), "--out", str(out), "--n", "4", *TINY, *more]


def train(model: Path, data: Path, method: str, out: Path) -> Path:
    words = ["--model", str(model), "--data", str(data), "--eval_data", str(data), "--method", method]
    steps = ["--training.max_steps", "2", "--training.report_to", "[]", "--data_options.max_length", "512"]
    assert main(["train", *words, *steps, "--out", str(out)]) == 0
    return out


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.slow
def test_the_three_methods_choose_among_real_responses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A pretrained model answers real prompts; runs of the three methods choose; a fourth one judges."""
    model, data = shared_model("stories260k"), shared_data("hh_harmless", "test")
    samples, out = tmp_path / "samples", tmp_path / "out"
    assert main(sample(model, data, samples, "--prompts", "6")) == 0
    assert "24 responses to 6 prompts" in capfd.readouterr().err
    few = pairs(tmp_path / "few.jsonl")
    runs = {name: train(model, few, name, tmp_path / "runs" / name) for name in ("haf", "baseline", "dpo")}
    judge = ["--judge.kind", "reward", "--judge.model", str(runs["baseline"])]
    words = ["best-of-n", *map(str, runs.values()), "--samples", str(samples), "--out", str(out), *judge]
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "chosen by" in printed
    found = results(out)
    assert found["models"][str(runs["baseline"])]["top_1"]["value"] == 1  # it judges itself
    assert len(found["wins"]) == 3
    page = (out / "index.html").read_text()
    headings = {
        "best-selection": "How often each scorer&#39;s choice is the best of all",
        "growth": "How the judge&#39;s reward grows with n",
    }
    for name, heading in headings.items():
        svg = (out / f"{name}.svg").read_text()
        assert svg.startswith("<svg xmlns")
        assert f"<h2>{heading}</h2>" in page
    scored = json.loads((out / "selections.jsonl").read_text().splitlines()[0])
    row = json.loads((samples / "samples.jsonl").read_text().splitlines()[0])
    (tmp_path / "one.jsonl").write_text(
        "".join(json.dumps({"prompt": row["prompt"], "response": text}) + "\n" for text in row["responses"])
    )
    assert main(["score", str(runs["haf"]), "--data", str(tmp_path / "one.jsonl")]) == 0
    alone = [json.loads(line)["reward"] for line in capfd.readouterr().out.splitlines()]
    assert alone == pytest.approx(scored["rewards"][str(runs["haf"])], abs=1e-5)


def test_a_judge_at_an_endpoint_ranks_and_compares_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The judge prefers the longer response, so the longest one has full recall; no question is asked twice."""
    rows = tmp_path / "rows.jsonl"
    texts = [["yes", "yes yes", "no no no no", "x"], ["a", "bb", "ccc", "dddd"], ["same"] * 4, ["b", "cc", "ccc", ""]]
    rows.write_text("".join(json.dumps({"prompt": f"q{i}", "responses": each}) + "\n" for i, each in enumerate(texts)))
    out = tmp_path / "out"
    with serving() as endpoint:
        judge = ["--judge.kind", "openai", "--judge.model", "judge", "--judge.base_url", endpoint.url]
        models = ["world/helpful", "world/safe"]
        words = ["best-of-n", *models, "--samples", str(rows), "--out", str(out), *judge, "--judge.retries", "0"]
        for _ in range(2):
            assert main(words) == 0
        assert set(endpoint.asked.values()) == {1}
    found = results(out)
    assert found["baselines"]["the longest response"]["top_1"] == {"n": 2, "value": 1.0, "ci95": None}
    assert found["curve"]["gold"] == {}
    assert found["alike"] == 1
    assert found["judge_runs"]["ranking"]["rows"] == 2  # a row with an empty response can't be shown
    assert "The judge's ranking: 2 of 2 questions answered" in capfd.readouterr().out
    lines = [json.loads(line) for line in (out / "selections.jsonl").read_text().splitlines()]
    assert [line["ranks"] for line in lines] == [[3, 2, 1, 4], [4, 3, 2, 1], None, None]


def test_without_a_judge_there_is_agreement(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "q", "responses": ["a", "b"]}) + "\n")
    words = ["best-of-n", "world/helpful", "world/safe", "--samples", str(rows), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "How often the same response is chosen" in printed
    assert "What is chosen" not in printed


@pytest.mark.slow
def test_a_killed_sampling_ends_with_the_same_file(tmp_path: Path) -> None:
    model, data = save_tiny(tmp_path / "model"), pairs(tmp_path / "pairs.jsonl", 40)
    assert main(sample(model, data, tmp_path / "whole")) == 0
    out = tmp_path / "out"
    code = "import sys; from hafrm.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *sample(model, data, out)], stderr=subprocess.PIPE)
    path, end = out / "samples.jsonl", time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 6) and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 6 <= path.read_bytes().count(b"\n") < 40
    assert main(sample(model, data, out)) == 0
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "nowhere", "--data", "world/helpful[:4]"], "nowhere"),
        (["sample", "http://localhost:1", "--data", "world/helpful[:4]"], "generates no responses"),
        (["sample", "m", "--data", "world/helpful[:4]", "--n", "0"], "n must be at least 1"),
        (["sample", "m", "--data", "world/nothing"], "world/nothing"),
        (["best-of-n", "world/helpful", "--samples", "nowhere.jsonl"], "nowhere.jsonl"),
        (["best-of-n", "nowhere", "--samples", "ROWS"], "nowhere"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_mistakes_are_one_clear_line(
    words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "q", "responses": ["a", "b"]}) + "\n")
    words = [str(rows) if word == "ROWS" else word for word in words]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error
