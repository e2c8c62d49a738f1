"""Commands that scored, judged or sampled nothing end with status 2; others report what share failed and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafrm.cli import main
from hafrm.evaluation.bulk import ScoreCounts
from tests.faults.runs import saved_run
from tests.tiny import save_tiny, some_pairs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outcomes")
    return saved_run(save_tiny(folder / "base"), folder / "run")


def pairs_file(path: Path, *, long: int, short: int) -> str:
    pairs = [pair.as_row() for pair in some_pairs(long + short)]
    for pair in pairs[:long]:
        pair["chosen"][-1]["content"] = "x" * 400
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(path)


def evaluated(run: Path, data: str, out: Path, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main(["evaluate", str(run), "--data", data, "--out", str(out), "--score.max_length", "200", *options])
    return status, " ".join(capfd.readouterr().err.split())


def test_evaluate_without_one_reward_fails(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = pairs_file(tmp_path / "long.jsonl", long=3, short=0)
    status, said = evaluated(run, data, tmp_path / "out", capfd)
    assert status == 2
    assert "3 of 3 rows unscored: 3 over the length limit (--score.max_length" in said


def test_evaluate_says_what_share_has_no_reward(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = pairs_file(tmp_path / "some.jsonl", long=1, short=3)
    status, said = evaluated(run, data, tmp_path / "out", capfd)
    assert status == 0
    assert "1 of 4 rows unscored: 1 over the length limit (--score.max_length" in said


def test_folders_are_named_as_they_are(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A part of a path in brackets could be taken for markup of the terminal."""
    data = pairs_file(tmp_path / "pairs.jsonl", long=0, short=3)
    for command in (
        ["evaluate", str(run), "--data", data, "--out", str(tmp_path / "[scores]")],
        ["export", str(run), "--out", str(tmp_path / "[heads]")],
    ):
        assert main(command) == 0
        assert command[-1] in capfd.readouterr().out


def test_a_calibration_that_fits_nothing_says_so(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = pairs_file(tmp_path / "some.jsonl", long=0, short=3)
    calibration = pairs_file(tmp_path / "long.jsonl", long=2, short=0)
    status, said = evaluated(run, data, tmp_path / "out", capfd, "--calibration_data", calibration)
    assert status == 0
    assert "temperature to 2 calibration pairs" in said


def test_score_without_one_reward_fails(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, out = pairs_file(tmp_path / "long.jsonl", long=2, short=0), tmp_path / "out.jsonl"
    assert main(["score", str(run), "--data", data, "--out", str(out), "--score.max_length", "200"]) == 2
    assert "2 overlong" in capfd.readouterr().err
    assert len(out.read_text().splitlines()) == 2  # the rows are written with their reasons nevertheless


def test_score_of_an_empty_file_fails(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["score", str(run), "--data", str(tmp_path / "empty.jsonl")]) == 2


def test_a_shard_may_have_no_rows(run: Path, tmp_path: Path) -> None:
    """There may be more machines than rows; the concatenated parts are the whole all the same."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "part.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    assert main(["score", str(run), "--data", str(rows), "--out", str(out), "--shard", "1/2"]) == 0
    assert out.read_text() == ""


def test_sample_without_one_response_fails(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "x" * 1000}))
    command = ["sample", str(run), "--data", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*command, "--max_length", "100", "--sampling.max_new_tokens", "4"]) == 2


def test_sample_counts_what_it_drew_and_left_out(run: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    made = {"responses": 8, "prompts": 4, "distinct": 7, "unfinished": 3, "empty": 1}
    made |= {"skipped": {"no_prompt": 5}, "unsampled": {"overlong": 2}}
    monkeypatch.setattr("hafrm.sampling.run.sample", lambda config, progress, say: made)
    data = pairs_file(tmp_path / "pairs.jsonl", long=0, short=3)
    assert main(["sample", str(run), "--data", data, "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().err.strip().split("; ")
    assert said[0].startswith("8 responses to 4 prompts, 7 distinct")
    assert [part.split(" ")[0] for part in said[1].split(", ")] == ["3", "1"]
    assert said[2:] == [
        "5 prompts left out: no_prompt",
        "2 prompts left out: overlong",
        f"{tmp_path / 'out'}/samples.jsonl",
    ]


@pytest.mark.parametrize(("altered", "note"), [(0, ""), (2, "special tokens")])
def test_score_says_what_it_changed(altered: int, note: str, run: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    counts = ScoreCounts(scored=3, altered=altered, note=note)
    monkeypatch.setattr("hafrm.evaluation.bulk.score_rows", lambda config, config_files: counts)
    assert main(["score", str(run), "--data", pairs_file(tmp_path / "pairs.jsonl", long=0, short=3)]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "3 rows scored"
    assert [line.split(" ")[0] for line in said[1:]] == (["2", "special"] if altered else [])


@pytest.mark.parametrize(
    ("option", "value"),
    [("learning_rate", "-1"), ("weight_decay", "-0.1"), ("adam_beta1", "1.5"), ("adam_epsilon", "-1")],
)
def test_an_optimizer_that_cant_be_built_is_refused_before_the_model_is_read(
    option: str, value: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pairs_file(tmp_path / "pairs.jsonl", long=0, short=3)
    command = ["train", "--model", str(tmp_path), "--data", data, "--out", str(tmp_path / "run")]
    assert main([*command, f"--training.{option}", value]) == 2
    said = capfd.readouterr().err
    assert f"training.{option}" in said
    assert value in said


def test_options_that_only_an_optimizer_knows_are_tried_on_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pairs_file(tmp_path / "pairs.jsonl", long=0, short=3)
    command = ["train", "--model", str(save_tiny(tmp_path / "base")), "--data", data, "--out", str(tmp_path / "run")]
    options = {"optim": "sgd", "optim_args": "momentum=-1", "use_cpu": True}
    assert main([*command, *(f"--training.{name}={value}" for name, value in options.items())]) == 2
    assert "hafrm train: training: " in capfd.readouterr().err.splitlines()[-1]


def test_a_margin_beyond_reason_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [pair.as_row() for pair in some_pairs(3)]
    rows[1]["margin"] = -1e30
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["data", "check", str(tmp_path / "pairs.jsonl")])
    assert "`margin`" in capfd.readouterr().out
