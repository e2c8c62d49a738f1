"""The demo from start to end, with a tiny backbone and two steps; the real one runs in `make demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafrm.cli import main
from hafrm.data import loading
from hafrm.paper import presets, world
from hafrm.paper.world import backbone, source, world_pairs
from hafrm.report.loading import read_evaluation
from hafrm.report.verdict import verdicts
from hafrm.training import run
from tests.tiny import save_tiny


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small world with a tiny backbone."""
    base = save_tiny(tmp_path / "base", max_position_embeddings=512)
    monkeypatch.setattr(backbone, "world_backbone", lambda kind, recipe, progress: base)
    monkeypatch.setattr(backbone, "backbone_folder", lambda kind, recipe: base)
    monkeypatch.setattr(world, "WORLD_SETS", ("helpful",))
    monkeypatch.setattr(source, "world_pairs", lambda name, split, size: world_pairs(name, split, size=24))
    monkeypatch.setattr(loading, "_drawn", loading._drawn.__wrapped__)
    monkeypatch.setattr(presets, "WORLD_MAX_LENGTH", 512)  # bytes are more tokens than the world's own


def test_the_story_is_told_to_its_end_and_not_twice(tmp_path: Path, small: None, capfd) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "2"]) == 0
    printed = capfd.readouterr().out
    for word in (
        " left",
        "haf",
        "baseline",
        "dpo",
        "--head combined",
        "the longer response",
        "hafrm train --model MODEL --data TRAIN --eval_data VALID",
    ):
        assert word in printed
    results = json.loads((out / "evaluation" / "results.json").read_text())
    conclusions = verdicts(read_evaluation(out / "evaluation"))
    ending = printed.splitlines()[-2 - len(conclusions) :]
    assert ending[: len(conclusions)] == conclusions
    assert ending[-1].endswith(str(out / "evaluation" / "index.html"))
    assert len(results["models"]) == 3
    assert len(results["comparisons"]) == 3
    assert (out / "evaluation" / "index.html").exists()
    manifests = {path: path.read_bytes() for path in out.glob("*/manifest.json")}
    assert len(manifests) == 3
    trained = {json.loads(manifest)["config"]["data"][0] for manifest in manifests.values()}
    assert trained == {f"world/helpful[:{presets.MIXED_PAIRS['train']}]"}
    assert main(["demo", "--out", str(out), "--steps", "2"]) == 0
    assert all(path.read_bytes() == before for path, before in manifests.items())
    (out / "dpo" / "manifest.json").unlink()
    assert main(["demo", "--out", str(out), "--seed", "-1"]) == 2
    assert "seed must be" in capfd.readouterr().err
    assert main(["demo", "--out", str(out), "--seed", str(2**32)]) == 2
    assert "seed must be" in capfd.readouterr().err
    for option in (["--seed", "1"], ["--steps", "3"]):
        assert main(["demo", "--out", str(out), "--steps", "2", *option]) == 2
        error = capfd.readouterr().err
        assert f"{out / 'haf'} contains a run with other options: training." in error
        assert "Choose another --out." in error
    assert not (out / "dpo" / "manifest.json").exists()  # nothing was trained


@pytest.mark.slow
def test_a_weight_that_was_not_fitted_is_not_told(tmp_path: Path, small: None, monkeypatch, capfd) -> None:
    monkeypatch.setattr(run, "fit_combination", lambda margins: None)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--steps", "1"]) == 0
    printed = capfd.readouterr().out
    assert "--head combined" not in printed
    assert "hafrm evaluate runs/mine --data TEST" in printed
