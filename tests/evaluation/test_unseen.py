"""Splits that contain training pairs are refused; evaluating on training data itself is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import NAMED_SOURCES, PairSet, ReadOptions, SourceReport
from hafrm.errors import ConfigError
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.unseen import require_unseen
from tests.tiny import some_pairs

DRAWN = next(name for name, source in NAMED_SOURCES.items() if not source.has_test)
OWN = next(name for name, source in NAMED_SOURCES.items() if source.has_test)


def run_folder(folder: Path, *sources: dict[str, str], seed: int = 0, manifest: str | None = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "hafrm.json").write_text("{}")
    value: dict[str, Any] = {
        "config": {"data_options": {"split_seed": seed}},
        "data": {"train": {"sources": list(sources)}},
    }
    (folder / "manifest.json").write_text(json.dumps(value) if manifest is None else manifest)
    return str(folder)


def report(name: str, split: str = "test", kind: str = "named", sha256: str = "") -> SourceReport:
    return SourceReport(name=name, kind=kind, split=split, sha256=sha256)


NAMED = {"name": DRAWN, "kind": "named"}


@pytest.mark.parametrize("trained", [DRAWN, f"{DRAWN}@copy", f"{DRAWN}#train", f"{DRAWN}@copy#train"])
@pytest.mark.parametrize(
    "held_out", [DRAWN, f"{DRAWN}@elsewhere", f"{DRAWN}#SPLIT", f"{DRAWN}@elsewhere#SPLIT", f"{DRAWN}@else#where"]
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_another_seed_is_refused(tmp_path: Path, trained: str, held_out: str, split: str) -> None:
    model = run_folder(tmp_path / "run", {"name": trained, "kind": "named"}, seed=3)
    held_out = held_out.replace("SPLIT", split)
    require_unseen(model, [report(held_out, split)], 3)
    with pytest.raises(ConfigError, match=r"run was trained on .*split_seed 3; .*Use --data_options.split_seed 3"):
        require_unseen(model, [report(OWN), report(held_out, split)], 4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_that_was_trained_on_is_refused_and_no_seed_helps(tmp_path: Path, split: str, seed: int) -> None:
    trained = {"name": f"{DRAWN}#{split}", "kind": "named", "split": split}
    model = run_folder(tmp_path / "run", trained)
    with pytest.raises(ConfigError, match=rf"{split} split.*Evaluate it on data that it was not trained on\.$"):
        require_unseen(model, [report(DRAWN, split)], seed)


def test_of_two_splits_that_were_trained_on_a_third_is_unseen_with_their_seed(tmp_path: Path) -> None:
    trained = [{"name": f"{DRAWN}#{split}", "kind": "named", "split": split} for split in ("train", "test")]
    model = run_folder(tmp_path / "run", *trained)
    require_unseen(model, [report(DRAWN, "validation")], 0)
    with pytest.raises(ConfigError, match=r"Use --data_options\.split_seed 0"):
        require_unseen(model, [report(DRAWN, "validation")], 1)


@pytest.mark.parametrize(
    ("trained", "held_out"), [("hh-harmless", "hh-harmless-full"), ("hh-helpful-full", "hh-helpful")]
)
def test_another_name_of_the_same_source_is_refused(tmp_path: Path, trained: str, held_out: str) -> None:
    model = run_folder(tmp_path / "train", {"name": trained, "kind": "named", "split": "train"})
    require_unseen(model, [report(held_out), report("hh-helpful" if "harmless" in trained else "hh-harmless")], 0)
    with pytest.raises(ConfigError, match=f"trained on {trained}, train split.*{held_out}.*not trained on"):
        require_unseen(model, [report(held_out, "validation")], 0)
    model = run_folder(tmp_path / "test", {"name": f"{trained}#test", "kind": "named", "split": "test"})
    require_unseen(model, [report(held_out, "validation")], 0)
    with pytest.raises(ConfigError, match=f"trained on {trained}#test, test split.*{held_out}.*not trained on"):
        require_unseen(model, [report(held_out)], 0)


@pytest.mark.parametrize("kind", ["named", "world"])
def test_the_very_pairs_under_another_name_are_refused_as_a_held_out_split(tmp_path: Path, kind: str) -> None:
    model = run_folder(tmp_path / "run", {"name": "copy.jsonl", "kind": "file", "sha256": "abc"})
    require_unseen(model, [report(OWN, kind=kind, sha256="abd")], 0)
    with pytest.raises(ConfigError, match=f"trained on .* of {OWN}"):
        require_unseen(model, [report(OWN, kind=kind, sha256="abc")], 0)


@pytest.mark.parametrize(("name", "split", "kind"), [("pairs.jsonl", "", "file"), (OWN, "train", "named")])
def test_training_pairs_that_are_asked_for_are_named(tmp_path: Path, name: str, split: str, kind: str) -> None:
    model = run_folder(tmp_path / "run", {"name": "copy.jsonl", "kind": "file", "sha256": "abc"})
    said: list[str] = []
    require_unseen(model, [report(name, split, kind, "abd"), report(name, split, kind)], 0, said.append)
    assert said == []
    require_unseen(model, [report(name, split, kind, "abc")], 0, said.append)
    (line,) = said
    assert f"run was trained on the pairs of {name}" in line


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", NAMED)
    checkpoint = tmp_path / "run" / "checkpoint-20"
    checkpoint.mkdir()
    (checkpoint / "hafrm.json").write_text("{}")
    with pytest.raises(ConfigError, match="checkpoint-20 was trained on"):
        require_unseen(str(checkpoint), [report(DRAWN)], 1)


@pytest.mark.parametrize(
    "held_out",
    [report(OWN), report(DRAWN, kind="file"), report(DRAWN, "train"), report("world/helpful", kind="world")],
    ids=["a test split that the source brings", "a file", "training pairs, asked for", "the world"],
)
def test_what_no_seed_draws_is_not_refused(tmp_path: Path, held_out: SourceReport) -> None:
    model = run_folder(tmp_path / "run", NAMED, {"name": OWN, "kind": "named"})
    require_unseen(model, [held_out], 1)


def test_a_drawn_validation_split_of_a_source_with_a_test_split_is_refused(tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run", {"name": OWN, "kind": "named"})
    with pytest.raises(ConfigError, match=f"{OWN}.*validation split"):
        require_unseen(model, [report(OWN, "validation")], 1)


@pytest.mark.parametrize("manifest", ["{", "[]", '{"name": "a web app"}'])
def test_other_programs_manifests_say_nothing(tmp_path: Path, manifest: str) -> None:
    require_unseen(run_folder(tmp_path / "run", manifest=manifest), [report(DRAWN)], 1)


def test_models_that_are_no_runs_say_nothing(tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run", NAMED)
    (tmp_path / "run" / "hafrm.json").unlink()
    require_unseen(model, [report(DRAWN)], 1)
    require_unseen("owner/model", [report(DRAWN)], 1)


@pytest.mark.parametrize("as_calibration", [False, True])
def test_evaluate_asks_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_calibration: bool
) -> None:
    """The model's folder contains nothing that could be loaded."""
    model = run_folder(tmp_path / "run", NAMED)
    held_out = PairSet(some_pairs(3), [report(DRAWN, "validation")])
    harmless = PairSet(some_pairs(4), [replace(report(OWN), sha256="x")])
    monkeypatch.setattr("hafrm.evaluation.run.load_pairs", lambda name, split, options: held_out)
    config = EvaluateConfig(
        models=[model],
        data=[OWN if as_calibration else DRAWN],
        out=str(tmp_path / "out"),
        calibration_data=DRAWN if as_calibration else None,
        data_options=ReadOptions(split_seed=1),
    )
    with pytest.raises(ConfigError, match="was trained on"):
        evaluate(config, sets={OWN: harmless} if as_calibration else {DRAWN: held_out})
