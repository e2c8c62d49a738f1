"""Damaged or outdated checkpoints and caches give an error that names them, and never a wrong reward."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hafrm.errors import DamagedError, DataError, ModelError
from hafrm.judging.cache import ReplyCache
from hafrm.models.checkpoints import load_run
from hafrm.models.export import export
from hafrm.models.loading import load_log_prob_scorer, load_scorer
from hafrm.models.options import ExportConfig, LoraOptions
from hafrm.models.runinfo import RUN_FILE, RunInfo
from hafrm.training.config import TrainConfig
from hafrm.training.resuming import (
    last_checkpoint,
    last_listed_checkpoint,
    list_training_state,
    require_whole_archives,
)
from hafrm.training.run import train
from tests.faults.runs import saved_run
from tests.tiny import save_tiny

SAVED = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES: list[Callable[[Path], None]] = [cut, flip, Path.unlink]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return saved_run(save_tiny(tmp_path / "base"), tmp_path / "run")


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "flip", "gone"])
@pytest.mark.parametrize("name", SAVED)
def test_a_damaged_run_scores_nothing(name: str, damage: Callable[[Path], None], run: Path) -> None:
    damage(run / name)
    for read in (load_scorer, load_log_prob_scorer, lambda run: export(ExportConfig(run=run))):
        with pytest.raises(ModelError, match=r"damaged|checksum|missing|tokenizer|adapters") as error:
            read(str(run))
        assert str(run) in str(error.value)
    assert not (run / "export").exists()


def test_a_flipped_bit_of_a_weight_is_named(run: Path) -> None:
    flip(run / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors .*checksum differs"):
        load_run(run)


def test_what_was_changed_on_purpose_is_let_through(run: Path) -> None:
    """Apply the remedy that the error names: put the new checksum in place of the old one."""
    (run / "chat_template.jinja").write_text((run / "chat_template.jinja").read_text() + "{# changed #}")
    with pytest.raises(DamagedError) as error:
        load_run(run)
    (digest,) = re.findall("[0-9a-f]{64}", str(error.value))
    described = json.loads((run / RUN_FILE).read_text())
    described["sha256"]["chat_template.jinja"] = digest
    (run / RUN_FILE).write_text(json.dumps(described))
    load_run(run)


def test_runs_of_another_version(run: Path) -> None:
    """Fields of a later version are not guessed."""
    described = json.loads((run / RUN_FILE).read_text())
    (run / RUN_FILE).write_text(json.dumps(described | {"format": 2}))
    with pytest.raises(ModelError, match="`format` is 2"):
        load_run(run)


@pytest.mark.parametrize("damage", [cut, flip], ids=["cut", "flip"])
@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_1.pth"])
def test_damaged_archives_are_named(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Checkpoints of one process, of several, and of FSDP, whose optimizer is in a .bin file."""
    torch.save({"state": torch.randn(10_000)}, tmp_path / name)
    require_whole_archives(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(DamagedError, match=rf"{name} is damaged\. Delete the folder"):
        require_whole_archives(tmp_path)


def swap(path: Path) -> None:
    """Replace a file with that of the previous checkpoint."""
    step = int(path.parent.name.removeprefix("checkpoint-"))
    shutil.copy(path.parent.with_name(f"checkpoint-{step - 1}") / path.name, path)


STATE = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", "hafrm.json"]


@pytest.fixture(scope="session")
def undisturbed(stopped_once: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights of the undisturbed run."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(replace(stopped_once, out=str(out)))
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("damage", [*DAMAGES, swap], ids=["cut", "flip", "gone", "swapped"])
@pytest.mark.parametrize("name", STATE)
def test_a_run_resumes_from_no_checkpoint_that_is_not_as_it_was_written(
    name: str,
    damage: Callable[[Path], None],
    stopped: TrainConfig,
    undisturbed: dict[str, torch.Tensor],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Training resumes from the previous checkpoint, names the skipped one, and ends with the undisturbed weights."""
    checkpoint = Path(stopped.out) / "checkpoint-2"
    assert last_listed_checkpoint(Path(stopped.out), say=lambda line: None) == checkpoint
    before = (checkpoint / name).read_bytes()
    damage(checkpoint / name)
    if (checkpoint / name).exists() and (checkpoint / name).read_bytes() == before:
        return  # no random number was drawn between the two steps
    assert last_listed_checkpoint(Path(stopped.out), say=print) == Path(stopped.out) / "checkpoint-1"
    said = capfd.readouterr().out
    assert str(checkpoint) in said
    assert name in said or damage is swap
    if (name, damage) in RESUMED:
        assert train(stopped).steps == 3
        found = load_file(Path(stopped.out) / "model.safetensors")
        assert all(torch.equal(tensor, found[name]) for name, tensor in undisturbed.items())


@pytest.mark.parametrize("name", ["scaler.pt", "optimizer.bin", "rng_state_0.pth", "pytorch_model.bin", "latest"])
def test_training_state_that_is_not_listed_is_named(name: str, stopped: TrainConfig, capfd) -> None:
    """transformers would read it by its name: `scaler.pt` ends a run that has no scaler with a traceback."""
    checkpoint = Path(stopped.out) / "checkpoint-2"
    shutil.copy(checkpoint / "optimizer.pt", checkpoint / name)
    assert last_listed_checkpoint(Path(stopped.out), say=print) == Path(stopped.out) / "checkpoint-1"
    said = capfd.readouterr().out
    assert str(checkpoint / name) in said
    assert "read by its name" in said


RESUMED = [("optimizer.pt", Path.unlink), ("trainer_state.json", swap)]
"""Files for which the test also completes the run, which takes a second."""


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
def test_a_damaged_checkpoint_without_another_is_refused_by_name(name: str, stopped: TrainConfig) -> None:
    """Starting over would lose all work, so that needs an explicit command."""
    flip(Path(stopped.out) / "checkpoint-2" / name)
    shutil.rmtree(Path(stopped.out) / "checkpoint-1")
    with pytest.raises(DamagedError, match=rf"checkpoint-2/{name} .*checksum.*Delete the folder .*-2:"):
        train(stopped)
    shutil.rmtree(Path(stopped.out) / "checkpoint-2")
    assert train(stopped).steps == 3


@pytest.mark.parametrize("step", [0, 1, 3, -1, None, "2", 2.5, True])
def test_a_checkpoint_of_another_step_than_its_name_says(step: object, stopped: TrainConfig) -> None:
    path = Path(stopped.out) / "checkpoint-2" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": step}))
    assert last_listed_checkpoint(Path(stopped.out), lambda line: None) == Path(stopped.out) / "checkpoint-1"


@pytest.mark.parametrize("names", [["optimizer.pt"], ["optimizer.bin"], ["optimizer_0"], ["global_step2", "latest"]])
def test_each_way_to_keep_an_optimizer_counts(names: list[str], tmp_path: Path) -> None:
    """Optimizer states of one process, of FSDP (whole and in parts), and of ZeRO, which may include the schedule."""
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    needed = ["trainer_state.json", "rng_state_1.pth", *names, *(["scheduler.pt"] if "latest" not in names else [])]
    for name in needed:
        (folder / name).write_text('{"global_step": 2}')
    assert last_checkpoint(tmp_path, lambda line: None) == folder
    for name in set(needed) - {"latest"}:
        (folder / name).rename(tmp_path / name)
        assert last_checkpoint(tmp_path, lambda line: None) is None
        (tmp_path / name).rename(folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    assert last_checkpoint(tmp_path, lambda line: None) is None


def test_a_moved_run_keeps_its_best_checkpoint(stopped: TrainConfig, tmp_path: Path) -> None:
    """The best checkpoint that the state names is searched only in the run's own folder."""
    elsewhere = tmp_path / "elsewhere" / "checkpoint-2"
    elsewhere.mkdir(parents=True)
    path = Path(stopped.out) / "checkpoint-2" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_model_checkpoint": str(elsewhere)}))
    list_training_state(path.parent)
    moved = replace(stopped, out=str(tmp_path / "moved"))
    Path(stopped.out).rename(moved.out)
    assert train(moved).steps == 3
    (newest,) = Path(moved.out).glob("checkpoint-3")
    state = json.loads((newest / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(Path(moved.out) / "checkpoint-2")
    assert list(elsewhere.iterdir()) == []


def test_a_best_checkpoint_that_is_gone_is_said_before_training_goes_on(stopped: TrainConfig) -> None:
    path = Path(stopped.out) / "checkpoint-2" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_model_checkpoint": "run/checkpoint-1"}))
    list_training_state(path.parent)
    shutil.rmtree(Path(stopped.out) / "checkpoint-1", ignore_errors=True)
    with pytest.raises(
        ModelError, match=r"checkpoint-1, the best checkpoint according to .*trainer_state.json, is missing"
    ):
        train(stopped)
    assert train(replace(stopped, overwrite=True)).steps == 3


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "flip", "gone"])
def test_damaged_adapters_are_noticed(damage: Callable[[Path], None], tmp_path: Path) -> None:
    run = saved_run(save_tiny(tmp_path / "base"), tmp_path / "run", lora=LoraOptions(rank=2))
    damage(run / "adapter" / "adapter_model.safetensors")
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors"):
        export(ExportConfig(run=str(run)))


def test_replies_of_another_version(tmp_path: Path) -> None:
    """A table with other columns is refused as a cache."""
    path = tmp_path / "replies.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE chat_replies (key TEXT, answer BLOB)")
    cache = ReplyCache(path)
    with pytest.raises(DataError, match=r"can't be used.*move it away"):
        cache.get("key")
    cache.close()


def test_checksums_are_of_all_that_was_saved(run: Path) -> None:
    listed = RunInfo.load(run).sha256.keys()
    assert listed == {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} - {RUN_FILE}
    assert set(SAVED) <= listed
