"""Writing only touches a command's own files: `overwrite` and exports leave a user's files, and nothing is renamed over
what is not a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hafrm import atomic
from hafrm.cli import main
from hafrm.errors import ConfigError, ModelError
from hafrm.models.checkpoints import load_run
from hafrm.models.checksums import checksums
from hafrm.models.export import export
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, LoraOptions
from hafrm.models.runinfo import RUN_FILE
from hafrm.training.config import TrainConfig
from hafrm.training.owned import remove_own
from hafrm.training.run import train
from tests.faults.runs import saved_run
from tests.tiny import save_tiny

OWN = """
    notes.txt model-old.safetensors checkpoint-2/notes.txt checkpoint-best/model.safetensors checkpoint-9/thesis.tex
    photos/a.jpg export/reward/mine.md export/notes.md runs/mine.txt results.json
""".split()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("finished", [False, True])
def test_overwriting_keeps_a_users_own_files(
    finished: bool, stopped: TrainConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    """It deletes everything that the run wrote, and names what it kept."""
    out = Path(stopped.out)
    if finished:
        train(stopped)
        export(ExportConfig(run=str(out)))
    killed = out / "checkpoint-0" / ".files.hafrm-ab12_xyz"
    killed.mkdir(parents=True)
    for name in ("config.json", ".files.hafrm-ab12_xyz/model.safetensors"):
        (out / "checkpoint-0" / name).write_bytes(b"half")
    for name in OWN:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("years of work")
    (out / "linked").symlink_to(out.parent, target_is_directory=True)
    capfd.readouterr()
    train(replace(stopped, overwrite=True, training={**stopped.training, "save_steps": 5}))
    found = files(out)
    assert set(OWN) <= found
    assert (out / "linked").is_symlink()
    assert not (out / "checkpoint-0").exists()
    assert not {name for name in found - set(OWN) if name.startswith(("checkpoint-1/", "checkpoint-2/", "export/"))}
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("kept in")]
    assert "checkpoint-2/notes.txt" in line
    assert f"{len(OWN) + 1 - 3} more" in line
    load_run(out)


LOOKALIKES = [
    "adapter/adapter_notes.txt",
    ".notes.hafrm-ideas",
    ".my.hafrm-experiments/thesis.txt",
    ".model.safetensors.hafrm-chapters/thesis.txt",
    ".thesis.tex.hafrm-chapter1",
    "config.json",
    "tokenizer.json",
]


def test_overwriting_keeps_what_only_looks_like_a_runs_own(stopped: TrainConfig) -> None:
    """Similar names, files in another program's list, and a foreign name in hafrm's list."""
    out = Path(stopped.out)
    for name in [*LOOKALIKES, "notes.txt"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("years of work")
    digest = hashlib.sha256(b"years of work").hexdigest()
    (out / "checksums.json").write_text(json.dumps({"sha256": {"notes.txt": digest, "config.json": digest}}))
    shutil.copy(out / "checksums.json", out / "checkpoint-2")
    described = json.loads((out / "checkpoint-2" / RUN_FILE).read_text())
    described["sha256"]["thesis.tex"] = digest
    (out / "checkpoint-2" / RUN_FILE).write_text(json.dumps(described))
    (out / "checkpoint-2" / "thesis.tex").write_text("years of work")
    kept = remove_own(out)
    assert {
        *LOOKALIKES,
        "notes.txt",
        "checksums.json",
        "checkpoint-2/checksums.json",
        "checkpoint-2/thesis.tex",
    } == set(kept)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "README.md", "global_step1/mine.pt"])
def test_checkpoints_of_another_program_are_not_overwritten(name: str, stopped: TrainConfig) -> None:
    theirs = Path(stopped.out) / "checkpoint-999" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    with pytest.raises(ConfigError, match="checkpoint-999 has no list"):
        train(replace(stopped, overwrite=True))
    assert theirs.read_text() == "years of work"
    assert (Path(stopped.out) / "checkpoint-2").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["link", "folder"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors", "checkpoint-2/optimizer.pt"])
def test_a_run_does_not_write_through_what_is_not_a_plain_file(
    name: str, kind: str, overwrite: bool, stopped: TrainConfig, tmp_path: Path
) -> None:
    notes, path = tmp_path / "notes.txt", Path(stopped.out) / name
    notes.write_text("years of work")
    path.unlink(missing_ok=True)
    path.mkdir() if kind == "folder" else path.symlink_to(notes)
    with pytest.raises(ConfigError, match=rf"{path} is not a regular file"):
        train(replace(stopped, overwrite=overwrite))
    assert notes.read_text() == "years of work"


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("checkpoint-1")], ids=["file", "link"])
def test_a_checkpoint_that_is_not_a_folder_is_named(make: Callable[[Path], None], stopped: TrainConfig) -> None:
    make(Path(stopped.out) / "checkpoint-4")
    with pytest.raises(ConfigError, match="checkpoint-4 is not a folder"):
        train(stopped)


DAMAGED = [
    ("config", None),
    ("config", []),
    ("config", {"training": 5}),
    ("data", None),
    ("data", [{}]),
    ("data", {"train": 3}),
    ("data", {"train": {"sources": [{}]}}),
    ("data", {"train": {"sources": 3}}),
    ("status", []),
    ("effective", None),
    ("effective", {"world_size": "x"}),
    ("resumed", "x"),
    ("format", True),
]


@pytest.mark.parametrize(("field", "value"), DAMAGED, ids=lambda value: json.dumps(value))
def test_a_damaged_manifest_is_named_by_its_field(field: str, value: object, stopped: TrainConfig) -> None:
    path = Path(stopped.out) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=rf"manifest\.json: `{field}`"):
        train(stopped)


def test_a_home_with_a_runs_manifest_stays(stopped: TrainConfig, tmp_path: Path) -> None:
    home = tmp_path / "home"
    names = ["thesis.tex", ".bashrc", "data/vocab.bin", "model.pt", "README.md", "Desktop/config.json", "optimizer.pt"]
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("years of work")
    shutil.copy(Path(stopped.out) / "manifest.json", home)
    train(replace(stopped, out=str(home), overwrite=True))
    assert all((home / name).read_text() == "years of work" for name in names)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["special_tokens_map.json", "vocab.json", "adapter_config.json"])
def test_a_run_does_not_begin_beside_what_would_be_read_with_it(
    name: str, overwrite: bool, stopped: TrainConfig
) -> None:
    (Path(stopped.out) / name).write_text("{}")
    with pytest.raises(ConfigError, match=rf"{name} was not written by a run"):
        train(replace(stopped, overwrite=overwrite))
    assert (Path(stopped.out) / name).exists()
    assert (Path(stopped.out) / "checkpoint-2").is_dir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _null(path: Path) -> None:
    path.symlink_to("/dev/null")


PLACES: list[Callable[[Path], None]] = [_fifo, _socket, _dangling, _loop, _null, Path.touch]
COMMANDS = {
    "train": ["--model", "base", "--data", "rows.jsonl"],
    "evaluate": ["run", "--data", "rows.jsonl"],
    "export": ["run"],
    "sample": ["base", "--data", "rows.jsonl"],
    "best-of-n": ["run", "--samples", "rows.jsonl"],
    "judge": ["rows.jsonl", "--judge.kind=reward", "--judge.model=run"],
    "pretrain": ["--data", "rows.jsonl"],
    "rlhf": ["base", "--reward", "run", "--data", "rows.jsonl"],
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    saved_run(save_tiny(folder / "base"), folder / "run")
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "text": "a b"}] * 3
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_folder_that_can_not_be_one(
    command: str, make: Callable[[Path], None], desk: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """One line names it, and existing files stay."""
    monkeypatch.chdir(desk)
    out = desk / f"{command}-{make.__name__}"
    make(out)
    before = out.lstat()
    assert main([command, *COMMANDS[command], "--out", str(out)]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert str(out) in line
    assert "None" not in line
    assert not (desk / "gone").exists()
    assert (out.lstat().st_ino, out.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("kind", ["run", "base"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_output_goes_into_another_models_folder(
    command: str, kind: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    shutil.copytree(desk / kind, tmp_path / "other")
    before = {name: (tmp_path / "other" / name).read_bytes() for name in files(tmp_path / "other")}
    assert main([command, *COMMANDS[command], "--out", str(tmp_path / "other")]) == 2
    found = files(tmp_path / "other") - {".lock"}
    assert {name: (tmp_path / "other" / name).read_bytes() for name in found} == before


@pytest.mark.parametrize("make", [_fifo, _socket, _dangling, _null, Path.mkdir], ids=lambda make: make.__name__)
def test_no_file_of_a_folder_is_renamed_over_what_is_not_one(make: Callable[[Path], None], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out / "weights")
    with pytest.raises(ConfigError, match="not a regular file"), atomic.new_files(out, last="list") as temporary:
        (temporary / "weights").write_text("new")
        (temporary / "list").write_text("new")
    assert not (out / "list").exists()
    assert not (out / "weights").is_file()


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with atomic.new_folder(tmp_path / "link") as temporary:
        (temporary / "file").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_an_export_is_not_made_where_a_users_file_is(desk: Path, tmp_path: Path) -> None:
    config = ExportConfig(run=str(desk / "run"), out=str(tmp_path / "out"))
    reward, policy = export(config)
    export(config)
    (policy / "measurements.csv").write_text("years of work")
    with pytest.raises(ConfigError, match=r"policy contains measurements\.csv"):
        export(config)
    assert (policy / "measurements.csv").read_text() == "years of work"
    assert (reward / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "out", ["run", "run/checkpoint-2", "run/export/more", "run/reward", "link", "other", "other/export", "base"]
)
def test_an_export_is_not_made_in_a_models_folder(out: str, desk: Path, tmp_path: Path) -> None:
    for name in ("run", "base"):
        shutil.copytree(desk / name, tmp_path / name)
    shutil.copytree(desk / "run", tmp_path / "other")
    (tmp_path / "link").symlink_to("run")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="inside a model's folder"):
        export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / out)))
    assert files(tmp_path) == before
    assert len(export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "link" / "export")))) == 2


@pytest.fixture
def spoilt(tmp_path: Path) -> Callable[[str, float], Path]:
    """Make a run with a non-finite weight that matches its list."""

    def make(name: str, value: float) -> Path:
        run = saved_run(save_tiny(tmp_path / "base"), tmp_path / "run", lora=LoraOptions(rank=2))
        file = run / ("adapter/adapter_model.safetensors" if "lora" in name else "model.safetensors")
        weights = load_file(file)
        (whole,) = [each for each in weights if each.endswith(name)]
        weights[whole].view(-1)[-1] = value
        save_file(weights, file, metadata={"format": "pt"})
        described = json.loads((run / RUN_FILE).read_text())
        described["sha256"] = checksums(run, but=[RUN_FILE])
        (run / RUN_FILE).write_text(json.dumps(described))
        return run

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["score.weight", "layers.1.mlp.up_proj.weight", "layers.0.mlp.up_proj.lora_A.weight"])
def test_weights_that_are_not_finite_are_not_exported(name: str, value: float, spoilt: Callable[..., Path]) -> None:
    run = spoilt(name, value)
    with pytest.raises(ModelError, match=rf"{name.replace('.', '[.]')} has values that are not finite"):
        export(ExportConfig(run=str(run)))
    assert not (run / "export" / "reward").exists()


@pytest.mark.parametrize("method", ["haf", "baseline"])
def test_a_base_that_is_not_finite_is_named_before_training(method: str, stopped: TrainConfig, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weight model\.layers\.1\.mlp\.up_proj\.weight has values that are not fin"):
        train(replace(stopped, model=str(base), method=method, out=str(tmp_path / "new")))
    with pytest.raises(ModelError, match="up_proj"):
        load_scorer(str(base), head="policy", reference=str(base))
