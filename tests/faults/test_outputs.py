"""Results never overwrite what a command reads, nor a user's own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hafrm.cli import main
from hafrm.errors import ConfigError
from hafrm.evaluation.bulk import score_rows
from hafrm.evaluation.options import EvaluateConfig, ScoreConfig
from hafrm.judging.options import JudgeConfig, JudgeOptions
from hafrm.models.runinfo import RUN_FILE
from hafrm.outputs import require_results, require_unread
from hafrm.sampling.options import SampleConfig
from hafrm.sampling.run import sample
from hafrm.store import alone
from tests.faults.runs import saved_run
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    base = save_tiny(folder / "base")
    save_tiny(folder / "other")
    saved_run(base, folder / "run")
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    pairs = [{"prompt": f"a{n}", "chosen": "b", "rejected": "c"} for n in range(3)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "set").mkdir()
    shutil.copy(folder / "rows.jsonl", folder / "set")
    (folder / "set" / "eval").mkdir()
    (folder / "set" / "eval" / "results.json").write_text("{}")
    (folder / "saved" / "train").mkdir(parents=True)
    (folder / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "saved" / "train" / "data-0.arrow").touch()
    (folder / "linked").mkdir()
    shutil.copytree(base, folder / "apart")
    for path in (folder / "apart").iterdir():
        (folder / "linked" / path.name).symlink_to(path)
    (folder / "link.jsonl").symlink_to(folder / "rows.jsonl")
    return folder


@pytest.fixture
def desk(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


READ = {
    "the reference": (["--head", "policy", "--reference", "other"], "other/model.safetensors"),
    "a new file beside the reference": (["--head", "policy", "--reference", "other"], "other/scored.jsonl"),
    "what a linked reference leads to": (["--head", "policy", "--reference", "linked"], "apart/config.json"),
    "the base of the run": (["--head", "policy"], "base/model.safetensors"),
    "the run": ([], "run/rewards.jsonl"),
    "the template": (["--score.chat_template", "template.jinja"], "template.jinja"),
    "the rows": ([], "rows.jsonl"),
    "a link to the rows": ([], "link.jsonl"),
    "a file of a folder of rows": (["--data", "set"], "set/rows.jsonl"),
}


@pytest.mark.parametrize("name", READ)
def test_scores_are_not_written_over_what_is_read(name: str, desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options, out = READ[name]
    path = desk / out
    before = path.read_bytes() if path.exists() else None
    assert main(["score", "run", "--data", "rows.jsonl", *options, "--out", out]) == 2
    assert f"--out {out}" in capfd.readouterr().err
    assert (path.read_bytes() if path.exists() else None) == before


def test_what_any_option_reads_is_named_and_other_files_are_not(made: Path) -> None:
    """This includes options of groups, suites as NAME@PATH, patterns, and folders of calibration data and models."""
    rows, folder, model = str(made / "rows.jsonl"), str(made / "set"), str(made / "other")
    judge = JudgeOptions(kind="openai", model="m", prices=rows, cache=str(made / "template.jinja"))
    evaluation = EvaluateConfig(models=[model], data=[str(made / "pair?.jsonl")], out="o", calibration_data=folder)
    for options, read in (
        (JudgeConfig(data="d", out="o", judge=judge), {"rows.jsonl": "judge.prices", "template.jinja": "judge.cache"}),
        (ScoreConfig(model="m", data=str(made / "saved"), out="o"), {"saved/train/data-0.arrow": "data"}),
        (EvaluateConfig(models=["m"], suites=[f"rewardbench@{rows}"], out="o"), {"rows.jsonl": "suites"}),
        (evaluation, {"pairs.jsonl": "data", "set/rows.jsonl": "calibration_data", "other/new.json": "models"}),
    ):
        for name in read:
            with pytest.raises(ConfigError, match=f"`{read[name]}`"):
                require_unread(made / name, options)
        for name in ("link.jsonl", "new.jsonl", "set/new.jsonl", "set/eval/results.json", "run/config.json"):
            if not (name == "link.jsonl" and "rows.jsonl" in read):  # leads to the rows
                require_unread(made / name, options)


def test_scores_are_not_written_over_the_config_file(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "model: run\ndata: rows.jsonl\nout: options.yaml\n"
    (desk / "options.yaml").write_text(text)
    assert main(["score", "--config", "options.yaml"]) == 2
    assert "config" in capfd.readouterr().err
    assert (desk / "options.yaml").read_text() == text


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


NO_FILES: dict[str, Callable[[Path], Path]] = {
    "a link to itself": _loop,
    "under a link to itself": lambda folder: _loop(folder) / "x",
    "under a file": lambda folder: folder / "file" / "x",
    "under a file, deeper": lambda folder: folder / "file" / "x" / "y",
    "a name with a zero byte": lambda folder: folder / "x\0y",
    "a name too long": lambda folder: folder / ("x" * 300),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_can_not_be_a_file_is_named(name: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = NO_FILES[name](tmp_path)
    with pytest.raises(ConfigError, match="can't be a file"):
        score_rows(ScoreConfig(model=str(made / "run"), data=str(made / "rows.jsonl"), out=str(out)))
    assert (tmp_path / "file").read_text() == "mine"


def test_no_option_holds_a_zero_byte(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "base", "--data", "rows.jsonl", "--out", "x\0y"]) == 2
    assert "--out contains a zero byte" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["pretrain", "sample", "evaluate", "judge"])
def test_a_folder_under_a_file_is_named(command: str, desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = {"sample": ["base"], "evaluate": ["run"], "judge": ["pairs.jsonl"]}.get(command, [])
    data = ["--judge.kind=reward", "--judge.model=run"] if command == "judge" else ["--data", "pairs.jsonl"]
    for out in ("rows.jsonl", "rows.jsonl/x"):
        assert main([command, *more, *data, "--out", out]) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert "is not a folder" in line
        assert "Errno" not in line


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.JSONL.GZ"])
def test_names_that_end_in_gz_are_compressed_however_they_are_written(name: str, made: Path, tmp_path: Path) -> None:
    score_rows(ScoreConfig(model=str(made / "run"), data=str(made / "rows.jsonl"), out=str(tmp_path / name)))
    assert (tmp_path / name).read_bytes()[:2] == b"\x1f\x8b"


RESULTS = {
    "evaluate": (["run", "--data", "pairs.jsonl"], ["results.json", "index.html", "table.md", "scores.jsonl"]),
    "judge": (["pairs.jsonl", "--judge.kind=reward", "--judge.model=run"], ["results.json", "verdicts.jsonl"]),
    "best-of-n": (["run", "--samples", "candidates.jsonl"], ["results.json", "index.html", "selections.jsonl"]),
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in RESULTS for name in RESULTS[command][1]])
def test_a_users_own_results_are_not_written_over(
    command: str, name: str, desk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (desk / "candidates.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["b", "c"]}))
    (tmp_path / name).write_text('{"rows": "mine"}')
    assert main([command, *RESULTS[command][0], "--out", str(tmp_path)]) == 2
    assert f"{tmp_path / name} was not written" in capfd.readouterr().err
    assert (tmp_path / name).read_text() == '{"rows": "mine"}'


def test_an_earlier_evaluations_files_are_written_again(desk: Path, tmp_path: Path) -> None:
    """This includes stopped evaluations, which have partial scores but no results; never through a link."""
    command = ["evaluate", "run", "--data", "pairs.jsonl", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 0
    (tmp_path / "out" / "results.json").unlink()
    assert main(command) == 0
    part = min((tmp_path / "out" / "parts").glob("*.jsonl"))
    shutil.move(part, tmp_path / "notes.txt")
    part.symlink_to(tmp_path / "notes.txt")
    before = (tmp_path / "notes.txt").read_bytes()
    assert main(command) == 2
    assert (tmp_path / "notes.txt").read_bytes() == before


def test_samples_are_not_written_through_a_link_or_over_their_prompts(made: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "samples.jsonl").symlink_to(tmp_path / "notes.txt")
    config = SampleConfig(model=str(made / "base"), data=[str(made / "rows.jsonl")], out=str(tmp_path))
    with pytest.raises(ConfigError, match="not a regular file"):
        sample(config)
    (tmp_path / "samples.jsonl").unlink()
    (tmp_path / "samples.jsonl").write_text((made / "rows.jsonl").read_text())
    for data in ("samples.jsonl", "samples.jsonl[:1]", "samples.jsonl*0.5", "samples.jsonl#test[:10%]", "sam*.jsonl"):
        with pytest.raises(ConfigError, match="what `data` reads"):
            sample(SampleConfig(model=str(made / "base"), data=[str(tmp_path / data)], out=str(tmp_path)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_results_in_the_folder_of_the_samples_that_they_are_of(made: Path, tmp_path: Path) -> None:
    """Files other than those that are read may be present."""
    config = ScoreConfig(model=str(made / "run"), data=str(tmp_path / "samples.jsonl"), out=str(tmp_path / "x"))
    (tmp_path / "samples.jsonl").write_text("{}")
    require_results(tmp_path, config, ["results.json"], "results.json", ["rows"], by="hafrm evaluate")


def test_a_model_that_is_not_here_is_said_not_to_be(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "nowhere", "--data", "rows.jsonl", "--out", "out.jsonl"]) == 2
    assert "no such folder" in capfd.readouterr().err
    assert (desk / "run" / RUN_FILE).is_file()


COMMANDS = {
    "train": ["train", "--model", "MODEL", "--data", "pairs.jsonl", "--out", "OUT"],
    "evaluate": ["evaluate", "MODEL", "--data", "pairs.jsonl", "--out", "OUT"],
    "score": ["score", "MODEL", "--data", "rows.jsonl", "--out", "OUT/scored.jsonl"],
    "probe": ["probe", "MODEL", "--data", "pairs.jsonl", "--out", "OUT"],
    "sample": ["sample", "MODEL", "--data", "pairs.jsonl", "--out", "OUT"],
    "best-of-n": ["best-of-n", "MODEL", "--samples", "candidates.jsonl", "--out", "OUT"],
    "judge": ["judge", "candidates.jsonl", "--judge.kind", "local", "--judge.model", "MODEL", "--out", "OUT"],
    "rlhf": ["rlhf", "MODEL", "--reward", "run", "--data", "pairs.jsonl", "--out", "OUT"],
    "export": ["export", "MODEL", "--out", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_model_leaves_nothing_behind(
    command: str, desk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    (desk / "candidates.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["b", "c"]}) + "\n")
    argv = [each.replace("OUT", str(out)).replace("MODEL", "mistyped") for each in COMMANDS[command]]
    assert main(argv) == 2
    assert "mistyped" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["export", "probe"])
def test_two_commands_do_not_write_into_one_folder(
    command: str, desk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [each.replace("OUT", str(tmp_path / "out")).replace("MODEL", "run") for each in COMMANDS[command]]
    with alone(tmp_path / "out"):
        assert main(argv) == 2
    assert str(tmp_path / "out") in capfd.readouterr().err
    assert main(argv) == 0
    assert (tmp_path / "out").is_dir()
