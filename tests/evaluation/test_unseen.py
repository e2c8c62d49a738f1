"""Splits that hold pairs of the training are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import NAMED_SOURCES, PairSet, ReadOptions, SourceReport
from hafrm.errors import ConfigError
from hafrm.evaluation.run import EvaluateConfig, evaluate
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


def report(name: str, split: str = "test", kind: str = "named") -> SourceReport:
    return SourceReport(name=name, kind=kind, split=split)


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
    """The model's folder holds nothing that could be loaded."""
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
