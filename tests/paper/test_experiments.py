"""Every experiment from its command to its files, in a tiny world, and a shortened real one."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from hafrm.cli import main
from hafrm.paper import presets
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.probes import claims, consistency
from hafrm.paper.probes.consistency import Share, share_text
from hafrm.paper.probes.heads import FitOptions
from hafrm.paper.runs import Run
from hafrm.sampling.options import SampleOptions
from hafrm.stats import Interval
from tests.paper.recorded import require_results_of_the_record
from tests.paths import TESTS

TINY = ["--scale", "world", "--steps", "2", "--sets", "Harmless", "BS"]


def reproduce(name: str, out: Path, *more: str) -> dict:
    asked = more if "--scale" in more else (*TINY, *more)
    assert main(["reproduce", name, "--out", str(out), *asked]) == 0
    results: dict = json.loads((out / "world" / name / "results.json").read_text())
    assert (out / "world" / name / "index.html").exists()
    return results


def manifests(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (out / "world" / "runs").rglob("manifest.json")}


@pytest.mark.slow
def test_experiments_share_their_runs(tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = reproduce("table2", tmp_path)
    runs = manifests(tmp_path)
    assert len(runs) == 6
    cell = results["accuracy"]["instruct"]["BS"]["haf"]
    assert cell["ci95"][0] <= cell["accuracy"] <= cell["ci95"][1]
    assert len(results["relations"]) == 2 * 3
    printed = {(r["tested_on"], r["over"]): r["paper"] for r in results["relations"]}
    assert printed == pytest.approx(
        {
            ("Harmless", "baseline"): 0.004,
            ("BS", "baseline"): 0.079,
            ("Avg", "baseline"): None,
            ("Harmless", "dpo"): 0.028,
            ("BS", "dpo"): -0.04,
            ("Avg", "dpo"): None,
        }
    )
    table = (tmp_path / "world" / "table2" / "table.md").read_text()
    for line in (
        "| accuracy, % | Harmless | BS | Avg |",
        "| the longer response |",
        "| HAF (Mistral) |",
        "DPO (instruct)",
    ):
        assert line in table

    found = reproduce("figure3", tmp_path)
    assert set(found["mixed"]["instruct"]) == {"Harmless", "BS"}
    assert (tmp_path / "world" / "figure3" / "figure3-instruct.svg").read_text().count("bar light") == 6
    table3 = reproduce("table3", tmp_path)
    assert list(table3["internal"]["instruct"]["BS"]) == ["Harmless"]
    assert any("--rewardbench was not given" in note for note in table3["notes"])
    for name in ("table2", "figure3", "table3"):
        require_results_of_the_record(tmp_path / "world" / name)
    assert "<sup>(" in (tmp_path / "world" / "table3" / "table.md").read_text()
    after = manifests(tmp_path)
    assert len(after) == 9
    assert after.items() > runs.items()
    capfd.readouterr()
    assert main(["reproduce", "table2", "--out", str(tmp_path), *TINY, "--dry_run"]) == 0
    printed_plan = capfd.readouterr().out
    assert "6 training runs, of which 6 are finished" in printed_plan
    assert printed_plan.count("[finished]") == 8


@pytest.mark.slow
def test_the_probes_share_the_runs_of_table_2(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables 6 and 7, Figure 7 and the claims need no extra training; Table 7 needs at least three sets."""
    monkeypatch.setattr(claims, "_FIT", FitOptions(max_steps=3))
    three = ["--scale", "world", "--steps", "2", "--sets", "Harmless", "BS", "AHP"]
    reproduce("table7", tmp_path, *three)
    runs = manifests(tmp_path)
    assert len(runs) == 9
    table7 = json.loads((tmp_path / "world" / "table7" / "results.json").read_text())
    assert table7["correlations"]["instruct"]["n"] == 3
    assert any("n = 3" in note for note in table7["notes"])
    table6 = reproduce("table6", tmp_path, "--scale", "world", *three[4:])
    assert set(table6["variances"]["instruct"]) == {"Harmless", "BS", "AHP"}
    for name, seeds in {"table6": "", "table7": ", 1 seed (0)", "figure7": ", 1 seed (0)"}.items():
        if name == "figure7":
            figure7 = reproduce("figure7", tmp_path, *three)
        said = (tmp_path / "world" / name / "table.md").read_text().splitlines()[2]
        assert said.endswith(f"Scale world, backbones instruct{seeds}.")  # no sentence on accuracies: there are none
    assert -1 <= figure7["agreement"]["instruct/BS"]["pearson"]["value"] <= 1
    assert (tmp_path / "world" / "figure7" / "figure7-instruct-AHP.svg").exists()
    assert "![AHP, instruct: Pearson" in (tmp_path / "world" / "figure7" / "table.md").read_text()
    claim = reproduce("claims", tmp_path, *three[:4], "--sets", "Harmless")["claims"]["instruct"]
    assert len(claim["seeds"]) == 1
    assert manifests(tmp_path) == runs


@pytest.mark.slow
def test_figure_2_keeps_its_checkpoints(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"eval_steps": 1, "save_steps": 1}
    training = presets.world_training
    monkeypatch.setattr(presets, "world_training", lambda steps: training(steps) | every)
    monkeypatch.setattr(consistency, "_SAMPLING", SampleOptions(max_new_tokens=4))
    found = reproduce("figure2", tmp_path, "--sets", "Harmless")["consistency"]["instruct"]
    assert set(found["by_matching"]) == {"reward", "acc", "loss", "margin", "step"}
    folder = tmp_path / "world" / "runs" / "instruct" / "Harmless" / "haf-seed0-checkpoints"
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


@pytest.mark.slow
def test_gradients_of_each_checkpoint_are_measured(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = presets.world_training
    monkeypatch.setattr(presets, "world_training", lambda steps: training(steps) | {"eval_steps": 1, "save_steps": 1})
    found = reproduce("gradients", tmp_path, "--sets", "Harmless", "--seeds", "0")["gradients"]["instruct"]
    assert list(found["seed 0"]) == ["0", "1", "2"]
    assert {"backbone", "embeddings", "layer 1", "norm"} <= set(found["seed 0"]["2"])
    assert (tmp_path / "world" / "gradients" / "gradients-instruct.svg").exists()


def test_figure_2_states_a_share_with_its_interval_if_it_has_one() -> None:
    assert share_text(Share(0.5, Interval(0.25, 0.75))) == "50.0 [25.0, 75.0]"
    assert share_text(Share(0.5, None)) == "50.0"


@pytest.mark.slow
def test_table_3_reads_rewardbench(tiny_world: Path, tmp_path: Path) -> None:
    """The external half: the section of the set's own category."""
    found = reproduce("table3", tmp_path, "--rewardbench", str(TESTS / "fixtures" / "suites" / "rewardbench"))
    assert set(found["external"]["instruct"]) == {"BS", "Harmless"}
    assert 0 <= found["external"]["instruct"]["BS"]["haf"] <= 1
    assert "instruct, external" in (tmp_path / "world" / "table3" / "table.md").read_text()


@pytest.mark.slow
def test_figure_6_draws_every_ratio(tiny_world: Path, tmp_path: Path) -> None:
    results = reproduce("figure6", tmp_path, "--sets", "Harmless")
    curves = results["curves"]["instruct"]
    assert list(curves) == ["-0.2", "0", "0.1", "0.2", "0.5", "1", "2"]
    assert results["set"] == "Harmless"
    assert {step for ratio in curves.values() for panel in ratio.values() for step, _ in panel} == {2}
    assert len(results["claims"]["instruct"]) == 4
    assert (tmp_path / "world" / "runs" / "instruct" / "Harmless" / "haf-ratio-0.2-seed0").is_dir()
    svg = (tmp_path / "world" / "figure6" / "figure6-instruct.svg").read_text()
    assert svg.count('class="series') == 7 * 4  # three panels and the legend


@pytest.mark.slow
def test_several_seeds_on_another_backbone(tiny_world: Path, tmp_path: Path) -> None:
    results = reproduce("table2", tmp_path, "--seeds", "0", "1", "--backbones", "base", "--sets", "BS")
    assert list(results["accuracy"]) == ["base"]
    assert len(results["accuracy"]["base"]["BS"]["dpo"]["by_seed"]) == 2
    assert all(len(each["by_seed"]) == 2 for each in results["relations"])
    assert "±" in (tmp_path / "world" / "table2" / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_reproduction_goes_on(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = []
    whole = Run.make

    def killed(run, job):  # type: ignore[no-untyped-def]
        if done:
            raise KeyboardInterrupt
        done.append(run)
        return whole(run, job)

    monkeypatch.setattr(Run, "make", killed)
    only = [*TINY, "--sets", "BS"]
    assert main(["reproduce", "table2", "--out", str(tmp_path), *only]) == 130
    assert "resumes where it stopped" in capfd.readouterr().err
    before = manifests(tmp_path)
    assert len(before) == 1
    monkeypatch.setattr(Run, "make", whole)
    reproduce("table2", tmp_path, "--sets", "BS")
    assert manifests(tmp_path).items() > before.items()
    assert "run 2/3" in capfd.readouterr().err
    assert main(["reproduce", "table2", "--out", str(tmp_path), *only, "--steps", "3"]) == 2
    assert "contains a run with other options: training.max_steps" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--pairs", "0"], "pairs must be at least 1"),
        (["--max_length", "0"], "max_length must be at least 1"),
        (["--learning_rate", "0"], "learning_rate must be above 0"),
        (["--learning_rate", "-1"], "learning_rate must be above 0"),
        (["--early_stopping", "-3"], "early_stopping must be at least 0"),
        (["--seeds", "-1"], "seeds must be"),
        (["--seeds", "1", "1"], "twice"),
        (["--sets", "Sums"], "Sums is none of Helpful"),
        (["--backbones", "phi-2"], "the scale world has no phi-2"),
        (["--backbone", "x"], "backbone has no effect at scale world"),
        (["--rewardbench", "x"], "rewardbench has no effect on table2"),
        (["--scale", "small"], "small needs --backbone"),
    ],
)
def test_options_that_can_not_work_are_refused(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table2", "--out", str(tmp_path), *words]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table6", "--seeds", "1"], "seeds has no effect on table6, which trains nothing"),
        (["table6", "--steps", "9", "--pairs", "9"], "steps has no effect on table6, which trains nothing; pairs"),
        (["table6", "--learning_rate", "1"], "learning_rate has no effect on table6"),
        (["table6", "--early_stopping", "1"], "early_stopping has no effect on table6"),
        (["figure2", "--seeds", "1", "2"], "seeds: figure2 uses only one"),
        (["figure7", "--seeds", "1", "2"], "seeds: figure7 uses only one"),
        *(([name, "--sets", "BS", "CA"], f"sets: {name} uses only one") for name in ("figure2", "ppo", "dense")),
        (["claims", "--sets", "BS", "CA"], "sets: claims uses only one"),
        (["table7", "--sets", "BS", "CA"], "table7 correlates over sets"),
        (["study", "--learning_rate", "1", "--learning_rates", "1", "2"], "learning_rate has no effect"),
        (["table2", "--rate_seeds", "2"], "rate_seeds has no effect on table2"),
        (
            ["study", "--learning_rates", "1", "2", "--rate_seeds", "3", "--seeds", "0", "1"],
            "rate_seeds is 3, of 2 seeds",
        ),
        (["study", "--publish", "nowhere"], "nowhere has no README.md and docs"),
        (["study", "--parts", "mixed", "ood", "--sets", "BS"], "on BS alone there is nothing to do for mixed, ood"),
    ],
)
def test_what_an_experiment_would_not_read_is_refused_before_anything_is_done(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path / "o"), "--dry_run"]) == 2
    assert message in capfd.readouterr().err


def test_every_experiment_says_what_it_is_and_its_functions_exist() -> None:
    for each in EXPERIMENTS.values():
        assert each.summary
        for function in (each.plan, each.find, each.execute, each.describe):
            assert function.__doc__
            if late := re.fullmatch(r"Call `(.+)\.(\w+)`\.", function.__doc__):
                assert getattr(importlib.import_module(late[1]), late[2]).__doc__


@pytest.mark.slow
def test_table_2_in_the_real_world_shortened(tmp_path: Path) -> None:
    """Trains the world's backbone and three short runs: minutes."""
    words = ["reproduce", "table2", "--out", str(tmp_path), "--steps", "60", "--sets", "BS"]
    assert main(words) == 0
    results = json.loads((tmp_path / "world" / "table2" / "results.json").read_text())
    assert all(cell["accuracy"] > 0.52 for cell in results["accuracy"]["instruct"]["BS"].values())
