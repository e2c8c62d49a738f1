"""What a model's rewards depend on: each thing that changes them changes the identity, and nothing else does."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hafrm.models.checksums import checksums
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.runinfo import RunInfo
from tests.tiny import save_tiny


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a folder as a run of hafrm does, and the base from which it was trained."""
    base = save_tiny(tmp_path / "base")
    run = save_tiny(tmp_path / "run", seed=1)
    describe(run, base)
    return run


def describe(run: Path, base: Path, policy_loss: str = "dpo") -> None:
    RunInfo(
        method="haf",
        base_model=str(base),
        reward_weight=1.0,
        policy_ratio=0.2,
        policy_loss=policy_loss,
        beta=0.1,
        max_length=64,
        overlong="drop",
        pad_token="<pad>",
        dtype="float32",
        sha256=checksums(run),
    ).save(run)


def identity(run: Path, **choice: object) -> dict[str, object]:
    return model_identity(str(run), ScorerChoice(**choice), ScoreOptions())


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda run: touch(run / "model.safetensors"),
        lambda run: describe(run, run.parent / "base", "simpo"),
        lambda run: (run / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        lambda run: (run / "tokenizer.json").write_text("{}"),
        lambda run: (run / "model-2.safetensors").write_text(""),
    ],
    ids=["weights", "hafrm.json", "template", "tokenizer", "one file more"],
)
def test_files_that_matter(run: Path, change: Callable[[Path], object]) -> None:
    before = identity(run)
    assert identity(run) == before
    change(run)
    assert identity(run)["the model"] != before["the model"]


def test_files_that_do_not_matter(run: Path) -> None:
    before = identity(run)
    for name in ("manifest.json", "metrics.jsonl", "trainer_state.json", "training_args.bin", "optimizer.pt"):
        (run / name).write_text("{}")
    (run / "export").mkdir()
    touch(run.parent / "base" / "model.safetensors")
    assert identity(run) == before


def test_the_default_template_is_no_file_of_that_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = model_identity(str(run), ScorerChoice(), ScoreOptions(chat_template="default"))
    (tmp_path / "default").write_text("{{ messages[0].content }}")
    assert model_identity(str(run), ScorerChoice(), ScoreOptions(chat_template="default")) == before


@pytest.mark.parametrize("head", ["policy", "combined"])
def test_the_base_matters_where_it_is_the_reference(run: Path, head: str) -> None:
    before = identity(run, head=head)
    touch(run.parent / "base" / "model.safetensors")
    assert identity(run, head=head)["its reference"] != before["its reference"]
    describe(run, run.parent / "gone", "simpo")
    assert identity(run, head=head)["its reference"] == []


def test_adapters_stand_on_their_base(run: Path) -> None:
    (run / "adapter").mkdir()
    (run / "model.safetensors").rename(run / "adapter" / "adapter_model.safetensors")
    describe(run, run.parent / "base")
    before = identity(run)
    touch(run / "adapter" / "adapter_model.safetensors")
    assert identity(run)["the model"] != before["the model"]
    touch(run.parent / "base" / "model.safetensors")
    assert identity(run)["its reference"] != before["its reference"]


def test_half_precision_runs_are_computed_with_their_base_where_it_is(run: Path) -> None:
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_model.safetensors").touch()
    describe(run, run.parent / "base")
    info = RunInfo.load(run)
    replace(info, dtype="bfloat16", base_digest="abc").save(run)
    with_base = identity(run)
    touch(run.parent / "base" / "model.safetensors")
    assert identity(run)["its base"] != with_base["its base"]
    assert "its base" not in model_identity(str(run), ScorerChoice(), ScoreOptions(dtype="float32"))
    (run.parent / "base").rename(run.parent / "elsewhere")
    assert "its base" not in identity(run)
    replace(info, dtype="float32", base_digest="abc").save(run)
    assert "its base" not in identity(run)


@pytest.mark.parametrize(("name", "value"), [("dtype", "bfloat16"), ("max_length", 9), ("overlong", "truncate")])
def test_options_that_change_rewards_are_part_of_it(run: Path, name: str, value: object) -> None:
    before, after = (model_identity(str(run), ScorerChoice(), ScoreOptions(**each)) for each in ({}, {name: value}))
    assert {key for key in before if before[key] != after[key]} == {f"score.{name}"}
