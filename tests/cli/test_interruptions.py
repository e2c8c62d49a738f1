"""Interrupted commands resume where they stopped, refusals are one line, and no files are lost on the way."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main, score
from hafrm.data import DataOptions
from hafrm.errors import ConfigError, DataError, ModelError
from hafrm.models.export import export
from hafrm.models.options import ExportConfig
from hafrm.training import run as run_module
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from hafrm.training.trainer import HybridTrainer
from tests.faults.runs import saved_run
from tests.tiny import save_tiny, some_pairs


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(12)))
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True}
    return TrainConfig(
        model=str(save_tiny(tmp_path / "base")),
        data=[str(rows)],
        eval_data=[str(rows)],
        out=str(tmp_path / "run"),
        data_options=DataOptions(max_length=128),
        training=training | {"report_to": []},
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_in_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt training in the middle of a step."""
    compute = HybridTrainer.compute_loss

    def compute_or_stop(self: HybridTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(HybridTrainer, "compute_loss", compute_or_stop)


@pytest.mark.parametrize("stopped_in", [3, 5])
def test_patience_survives_a_resume(stopped_in: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is learnt, so the first evaluation is the best one and every later one uses up patience."""
    still = {"max_steps": 12, "learning_rate": 0.0, "eval_steps": 1, "save_steps": 1}
    config = replace(config, early_stopping=4, training=config.training | still)
    with monkeypatch.context() as patch:
        stop_in_step(stopped_in, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert json.loads((Path(config.out) / "manifest.json").read_text())["status"] == "running"
    assert train(config).steps == 5  # as an undisturbed run: the best one, and four more


def test_a_run_killed_after_its_last_evaluation_takes_no_step_more(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience has run out at the last checkpoint, so only saving is left to do."""
    still = {"max_steps": 12, "learning_rate": 0.0, "eval_steps": 1, "save_steps": 1}
    config = replace(config, early_stopping=2, training=config.training | still)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert train(config).steps == 3


def status_of(command: list[str]) -> int | None:
    """Return a command's exit status; None if an interruption gets through, which would end the tests."""
    try:
        return main(command)
    except KeyboardInterrupt:
        return None


def test_an_interrupted_command_is_one_line_and_goes_on(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Ctrl-C in the second step: status 130 as shells have it, and the same command takes that step again."""
    command = ["train", "--model", config.model, "--data", *config.data, "--out", config.out]
    for name, value in (config.training | {"save_steps": 1}).items():
        command.append(f"--training.{name}={value}")
    command += ["--data_options.max_length", "128"]
    with monkeypatch.context() as patch:
        stop_in_step(2, patch)
        assert status_of(command) == 130
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("hafrm train: stopped; the same command resumes")
    checkpoint = Path(config.out) / "checkpoint-1" / "model.safetensors"
    written = checkpoint.stat().st_mtime_ns
    assert main(command) == 0
    assert checkpoint.stat().st_mtime_ns == written  # the first step was not taken again
    lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


@pytest.fixture
def run(config: TrainConfig) -> Path:
    """A run's folder with both heads, as training leaves it."""
    return saved_run(Path(config.model), Path(config.out))


def test_a_file_system_that_refuses_is_one_line(run: Path, config: TrainConfig, tmp_path: Path, capfd) -> None:
    """The folder for `--out` would have to be created where a file is."""
    (tmp_path / "taken").write_text("a file")
    capfd.readouterr()
    command = ["score", str(run), "--data", *config.data, "--out", str(tmp_path / "taken" / "scores.jsonl")]
    assert main(command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("hafrm score: ")
    assert str(tmp_path / "taken") in line


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def full(args: object) -> None:
        raise OSError(28, "No space left on device", "scores.jsonl")

    monkeypatch.setattr(score, "run", full)
    assert main(["score", "model", "--data", "rows.jsonl"]) == 2
    assert capfd.readouterr().err == "hafrm score: [Errno 28] No space left on device: 'scores.jsonl'\n"


@pytest.mark.parametrize("words", [["score", "{run}", "--data", "{data}"], ["data", "check", "{data}", "--json"]])
def test_a_reader_that_has_read_enough_ends_a_command_quietly(
    words: list[str], run: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """As in `hafrm score ... | head -1`: no error is printed, not even by the flush at exit of a short output."""
    (data,) = config.data
    command = [word.format(run=run, data=data) for word in words]
    reader, writer = os.pipe()
    os.close(reader)
    capfd.readouterr()
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        assert main(command) == 1
        broken.flush()
    assert capfd.readouterr() == ("", "")


FOREIGN = {
    "no manifest": None,
    "a web app's": json.dumps({"name": "My app", "config": {}, "icons": []}),
    "another format": json.dumps({"format": 3, "status": "finished", "config": {}, "data": {}}),
    "other keys": json.dumps({"format": 1, "status": "finished", "data": {}}),
    "no object": json.dumps(["format", "status", "config", "data"]),
    "half of one": '{"format": 1, "status": "finished", "config": {}, "data"',
}


@pytest.mark.parametrize("manifest", FOREIGN.values(), ids=FOREIGN)
def test_overwriting_never_deletes_what_is_no_run(manifest: str | None, config: TrainConfig) -> None:
    """Other programs write a `manifest.json` too; only hafrm's makes a folder a run."""
    folder = Path(config.out)
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    before = contents(folder)
    with pytest.raises(ConfigError, match="no run of hafrm"):
        train(replace(config, overwrite=True))
    assert contents(folder) == before


def test_overwriting_never_deletes_a_file(config: TrainConfig) -> None:
    Path(config.out).write_text("years of work")
    with pytest.raises(ConfigError, match="not a folder"):
        train(replace(config, overwrite=True))
    assert Path(config.out).read_text() == "years of work"


def test_overwriting_deletes_an_unfinished_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of the old run are deleted, so the new one does not resume from its checkpoint."""
    with monkeypatch.context() as patch:
        stop_in_step(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, training=config.training | {"save_steps": 1, "eval_steps": 1}))
    assert (Path(config.out) / "checkpoint-1").is_dir()
    train(replace(config, overwrite=True))
    assert not (Path(config.out) / "checkpoint-1").exists()


def test_a_run_that_is_refused_deletes_nothing(config: TrainConfig) -> None:
    """Options, model and data are checked before the old run is deleted."""
    train(config)
    before = contents(Path(config.out))
    again = replace(config, overwrite=True)
    with pytest.raises(ConfigError):
        train(replace(again, training=config.training | {"lr_scheduler_type": "no such schedule"}))
    with pytest.raises(ModelError):
        train(replace(again, model=config.model + "-misspelt"))
    Path(config.data[0]).write_text("")
    with pytest.raises(DataError):
        train(again)
    assert contents(Path(config.out)) == before


@pytest.mark.parametrize("head", ["reward", "policy"])
@pytest.mark.parametrize("card", [None, "# My model cards"], ids=["no card", "another card"])
def test_export_replaces_no_foreign_folder(card: str | None, head: str, run: Path, tmp_path: Path) -> None:
    """A folder without hafrm's model card belongs to another program."""
    foreign = tmp_path / "export" / head
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("years of work")
    if card is not None:
        (foreign / "README.md").write_text(card)
    before = contents(foreign)
    with pytest.raises(ConfigError, match="earlier export"):
        export(ExportConfig(run=str(run), out=str(tmp_path / "export")))
    assert contents(foreign) == before


def test_export_replaces_its_own_earlier_export(run: Path) -> None:
    """The new folder is complete, and nothing is left of the old one."""
    folders = export(ExportConfig(run=str(run)))
    whole = [contents(folder) for folder in folders]
    for folder in folders:
        (folder / "model.safetensors").write_bytes(b"of an older run")
    assert export(ExportConfig(run=str(run))) == folders
    assert [contents(folder) for folder in folders] == whole
    assert sorted(path.name for path in (run / "export").iterdir()) == ["policy", "reward"]
