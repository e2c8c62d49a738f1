"""The console script: quick help, names with dashes, flags without values, and one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

import hafrm
from hafrm.cli import COMMANDS, main
from hafrm.cli.parser import training_fields
from hafrm.cli.train import parser
from tests.tiny import save_tiny, some_pairs

TRAIN = ["train", "--model", "m", "--data", "world/helpful", "--out", "o"]


def script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the console script in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "hafrm", *words],
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the only line that a refused command prints."""
    try:
        status = main(list(words))
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    said = capfd.readouterr()
    assert status == 2
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


IN_ONE_PROCESS = """
import contextlib, io, json, os, sys
from hafrm.cli import main
found = []
for words in json.load(sys.stdin):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code or 0
    loaded = sorted({"torch", "transformers", "huggingface_hub"} & set(sys.modules))
    found.append({"status": status, "out": out.getvalue(), "error": error.getvalue(), "loaded": loaded})
print(json.dumps(found))
"""


def in_one_process(commands: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """Run commands one after the other in a new process; return what each prints and the libraries loaded so far."""
    words, given = [sys.executable, "-c", IN_ONE_PROCESS], json.dumps(commands)
    done = subprocess.run(words, cwd=folder, input=given, check=True, capture_output=True, text=True, timeout=120)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_help_takes_less_than_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "usage: hafrm train" in script("train", "--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 2  # about 0.5 on an idle machine


def test_help_needs_no_torch(tmp_path: Path) -> None:
    helped = in_one_process([[command, "--help"] for command in COMMANDS], tmp_path)
    for command, found in zip(COMMANDS, helped, strict=True):
        assert (found["status"], found["loaded"]) == (0, []), command
        usage, empty, *rest = found["out"].splitlines()
        assert usage.startswith(f"usage: hafrm {command} "), usage
        assert usage.endswith(" [options]")
        assert not empty
        text = " ".join(" ".join(rest).split())
        assert ("paper" in text) == ("Liu et al., ACL 2025" in text)


def test_the_version_and_the_help_need_no_command() -> None:
    assert script("--version").stdout == f"hafrm {hafrm.__version__}\n"
    helped = script("--help")
    assert helped.returncode == 0
    assert all(text in " ".join(helped.stdout.split()) for text in COMMANDS.values())
    assert script().returncode == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], ["there is no command trian", "Did you mean train?"]),
        (["--verison"], ["--verison", "Did you mean --version?"]),
        (["train"], ["--data", "--model", "--out"]),
        ([*TRAIN, "--methd", "haf"], ["--methd", "Did you mean --method?"]),
        ([*TRAIN, "--loss.policy-rato", "1"], ["--loss.policy_ratio"]),
        ([*TRAIN, "--learning-rate", "1e-3"], ["Did you mean --training.learning_rate?"]),
        ([*TRAIN, "--lr", "1e-3"], ["Did you mean --training.learning_rate?"]),
        ([*TRAIN, "--epochs", "3"], ["Did you mean --training.num_train_epochs?"]),
        ([*TRAIN, "--batch_size", "8"], ["per_device_train_batch_size"]),
        ([*TRAIN, "--max_length=64"], ["Did you mean --data_options.max_length?"]),
        ([*TRAIN, "--method", "rm"], ["--method must be haf, baseline, dpo or grm, got rm"]),
        ([*TRAIN, "--lora.rank", "many"], ["--lora.rank must be a whole number, got many"]),
        ([*TRAIN, "--loss.reward_loss", "probt"], ["Did you mean probit?"]),
        ([*TRAIN, "--eval_data"], ["--eval_data needs a value"]),
        ([*TRAIN, "--config", "nothing.yaml"], ["nothing.yaml"]),
        ([*TRAIN, "left-over", "word"], ["left-over"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--head", "rewrd"], ["--head must be", "Did you mean reward?"]),
        (["evaluate", "--data", "d", "--out", "o"], ["MODELS"]),
        (["judge", "d", "--out", "o", "--judge.knd", "local"], ["--judge.kind"]),
        (["best-of-n", "m", "--samples", "s", "--out", "o", "--judge.kimd", "reward"], ["--judge.kind"]),
        ([*TRAIN, "--out", ""], ["out is empty"]),
        ([*TRAIN, "--model", ""], ["model is empty"]),
        ([*TRAIN, "--eval-data", "a.jsonl", ""], ["eval_data is empty"]),
        (["evaluate", "", "--data", "d", "--out", "o"], ["models is empty"]),
        ([*TRAIN, "--overwrite", "maybe"], ["--overwrite must be true or false, got maybe"]),
        (["data", "lst"], ["must be list, show or check, got lst"]),
        (["demo", "--setps", "3"], ["--steps"]),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_option(
    words: list[str], expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(capfd, *words)
    assert all(text in line for text in expected), line


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("methd: haf", "--method"),
        ("loss: {betta: 1}", "--loss.beta"),
        ("loss: [", "line 2"),
        ("method: rm", "got rm"),
        ("- a", "name: value"),
        ("", "name: value"),
        ("\xff", "not a text file"),
        ("data: {train: a}", "--data must be a text, got {'train': 'a'}"),
        ("data: 5", "--data must be a text, got 5"),
        ("data: [a, null]", "--data must be a text, got None"),
        ("out: a\nseed: 1\nout: b", "out is given twice"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_too(
    config: str, expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_bytes(config.encode("latin-1"))
    assert expected in refused(capfd, *TRAIN, "--config", str(tmp_path / "c.yaml"))


UNKNOWN = [
    (["evaluate", "runs/p-hff", "--data", "world/helpful", "--out", "o"], "Did you mean runs/p-haf?"),
    (["evaluate", "runs/p-haf", "--data", "runs/pairs.jsonl", "--out", "o"], "runs/pairs.jsonl: no such file"),
    (["train", "--model", "/nope/m", "--data", "world/helpful", "--out", "o"], "no such folder"),
    (["train", "--model", "a/b/c", "--data", "world/helpful", "--out", "o"], "no such folder"),
    (["train", "--model", "./m", "--data", "world/helpful", "--out", "o"], "no such folder"),
    (["train", "--model", "~/m", "--data", "world/helpful", "--out", "o"], "no such folder"),
    (["train", "--model", "m", "--data", "world/helpfull", "--out", "o"], "world/helpful"),
    (["evaluate", "localhost:8000", "--data", "world/helpful", "--out", "o"], "http://localhost:8000"),
    (["score", "runs/p-haf", "--data", "runs/rows.jsonl"], "no such file"),
    (["evaluate", "runs", "--data", "world/helpful", "--out", "o"], "folder of models: runs/p-haf"),
    (["evaluate", "runs/p-haf", "--data", "runs/rows.jsonl[:x]", "--out", "o"], "[START:STOP]"),
    ([*TRAIN, "--training.learnin_rate", "1e-5"], "Did you mean --training.learning_rate?"),
    ([*TRAIN, "--batch_size", "8"], "--training.per_device_train_batch_size"),
    (["export", "runs/p-hf"], "Did you mean runs/p-haf?"),
    (["serve", "runs/p-hf"], "Did you mean runs/p-haf?"),
    (["sample", "runs/p-hf", "--data", "world/helpful", "--out", "o"], "Did you mean runs/p-haf?"),
    (["rlhf", "m", "--reward", "runs/p-hf", "--data", "world/helpful", "--out", "o"], "Did you mean runs/p-haf?"),
]


def test_paths_are_checked_before_torch_is_loaded_and_never_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "runs" / "p-haf").mkdir(parents=True)
    (tmp_path / "runs" / "p-haf" / "hafrm.json").touch()
    refusals = in_one_process([words for words, _ in UNKNOWN], tmp_path)
    for (words, expected), found in zip(UNKNOWN, refusals, strict=True):
        (line,) = found["error"].splitlines()
        assert expected in line, words
        assert (found["status"], found["loaded"]) == (2, []), words


def test_the_fields_of_training_are_transformers_own() -> None:
    assert training_fields() == tuple(TrainingArguments.__dataclass_fields__)
    refuse_nothing = parser().words([*TRAIN[1:], "--training.lr-scheduler-kwargs.num_cycles", "2"])
    assert "--training.lr_scheduler_kwargs.num_cycles" in refuse_nothing


@pytest.mark.slow
def test_a_hub_that_cant_be_reached_is_asked_once(tmp_path: Path) -> None:
    """A closed port on this machine stands in for the hub."""
    words = ["train", "--model", "owner/model", "--data", "world/helpful", "--out", str(tmp_path / "out")]
    done = script(*words, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "owner/model" in line


def test_a_folder_may_look_like_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "localhost:8000").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert "http://" not in refused(capfd, "score", "localhost:8000", "--data", "rows.jsonl")


def parsed(*words: str) -> dict[str, object]:
    made = parser()
    return made.parse_args(made.words([*TRAIN[1:], *words])).as_dict()


def test_names_take_dashes_and_underscores() -> None:
    first = parsed("--data-options.max-length", "64", "--training.max-steps=3", "--eval-data", "a-b.jsonl", "c_d.jsonl")
    assert first == parsed(
        "--data_options.max_length", "64", "--training.max_steps=3", "--eval_data", "a-b.jsonl", "c_d.jsonl"
    )
    assert first["eval_data"] == ["a-b.jsonl", "c_d.jsonl"]


@pytest.mark.parametrize("words", [["--overwrite"], ["--overwrite", "true"], ["--overwrite=true"]])
def test_a_flag_may_come_without_a_value(words: list[str]) -> None:
    assert parsed(*words, "--method", "dpo")["overwrite"] is True
    assert parsed("--method", "dpo", *words)["overwrite"] is True
    assert parsed("--overwrite", "false")["overwrite"] is False


@pytest.mark.parametrize(
    "words", [["q_proj", "v_proj"], ["q_proj,v_proj"], ["[q_proj, v_proj]"], ["q_proj", "v_proj", "--method", "dpo"]]
)
def test_a_list_may_come_as_words_or_with_commas(words: list[str]) -> None:
    assert parsed("--lora.targets", *words)["lora"]["targets"] == ["q_proj", "v_proj"]  # type: ignore[index]
    assert parsed("--lora.targets=q_proj")["lora"]["targets"] == ["q_proj"]  # type: ignore[index]


def test_a_file_may_give_one_name_where_several_are_taken(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("eval_data: valid.jsonl\ndata: [a, b]\n")
    found = parser().parse_args(["--config", str(tmp_path / "c.yaml"), "--model", "m", "--out", "o"])
    assert (found.data, found.eval_data) == (["a", "b"], ["valid.jsonl"])


def test_a_field_of_the_trainer_may_be_a_flag_too() -> None:
    found = parsed("--training.bf16", "--training.learning_rate", "-1", "--training.tf32")["training"]
    assert found == {"bf16": True, "learning_rate": -1, "tf32": True}


@pytest.mark.parametrize("flag", [["--trust-remote-code"], ["--trust-remote-code", "True"]])
def test_a_flag_before_a_positional_argument_leaves_it_alone(flag: list[str]) -> None:
    from hafrm.cli.evaluate import parser as evaluation

    made = evaluation()
    found = made.parse_args(made.words([*flag, "runs/a", "runs/b", "--data", "d", "--out", "o"]))
    assert found.trust_remote_code is True
    assert found.models == ["runs/a", "runs/b"]


def test_shells_complete_every_option() -> None:
    pytest.importorskip("shtab", reason="needs the extra `completion`")
    done = script("--completion", "bash")
    assert done.returncode == 0
    assert all(name in done.stdout for name in [*COMMANDS, "--loss.policy_ratio", "--judge.kind", "bradley_terry"])


def test_results_in_a_terminal_are_tables(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "q", "responses": ["a", "b"]}) + "\n")
    words = ["best-of-n", "world/helpful", "world/safe", "--samples", str(rows), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert not {"<b>", "<u>", "&#39;", "![", "|---", "| --- |"} & {
        mark for mark in ("<b>", "<u>", "&#39;", "![", "|---", "| --- |") if mark in printed
    }


def test_comparisons_are_one_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(8)))
    for seed in (0, 1):
        words = ["train", "--model", str(save_tiny(tmp_path / "base")), "--data", str(data), "--method", "baseline"]
        words += ["--data_options.max_length", "256"]
        options = ["--training.max_steps", "1", "--training.seed", str(seed), "--training.use_cpu"]
        assert main([*words, *options, "--out", str(tmp_path / f"run{seed}")]) == 0
    models = [str(tmp_path / "run0"), str(tmp_path / "run1")]
    capfd.readouterr()
    assert main(["evaluate", *models, "--data", str(data), "--out", str(tmp_path / "eval")]) == 0
    printed = capfd.readouterr().out
    assert "Differences in accuracy" in printed
    assert "run0 - run1" in printed


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_its_encoding_lacks_is_escaped(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In terminals with an old encoding, and for file names that are not valid UTF-8 anywhere."""
    path = tmp_path / os.fsdecode("snow ❄ caf".encode() + b"\xe9.jsonl")
    path.write_text(json.dumps({"prompt": "¿Qué?", "chosen": "雪", "rejected": "❄"}) + "\n", encoding="utf-8")
    for command in (["data", "show", str(path)], ["data", "check", str(path)]):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
        assert main(command) == 0
        assert b"\\udce9" in written.getvalue()
        assert encoding == "utf-8" or b"\\u2744" in written.getvalue()
