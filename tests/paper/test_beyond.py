"""Studies of additional losses: from commands to files in a tiny world, and hand-worked measures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hafrm.cli import main
from hafrm.evaluation.scoring import SCORES_FILE, PairScore
from hafrm.paper.beyond import STUDIES, coverage, find, plan, true_leads, true_log_odds
from hafrm.paper.presets import small_scale
from hafrm.paper.scales import Overrides
from hafrm.paper.world import PROFILES, oracle_reward, world_pairs
from tests.paper.recorded import require_intervals_of_the_record
from tests.paper.test_plans import job, small_files

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "world"


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_from_its_command_to_its_files(name: str, tiny_world: Path, tmp_path: Path) -> None:
    words = ["reproduce", name, "--out", str(tmp_path), "--steps", "2", "--sets", "Helpful", "--seeds", "0", "1"]
    assert main(words) == 0
    root = tmp_path / "world"
    results = json.loads((root / name / "results.json").read_text())
    part, variant = STUDIES[name], {"rankings": "-ranked", "length": "-longer"}.get(name, "")
    assert set(results["accuracy"]) == {
        f"{tested}{column}" for tested in ("Helpful", "CA", "AHP") for column in ("", ", true order")
    }
    runs = list((root / "runs" / "instruct" / f"Helpful{variant}").glob("*-seed?"))
    assert len(runs) == 2 * len(part.rows)
    for column, rows in results["accuracy"].items():
        for one, other in part.rivals:
            found = results["differences"][column][f"{one} - {other}"]
            by_seed = np.subtract(rows[one]["by_seed"], rows[other]["by_seed"])
            assert list(found["by_seed"].values()) == pytest.approx(by_seed.tolist())
            assert found["difference"] == pytest.approx(by_seed.mean())
    require_intervals_of_the_record(root / name)


def test_a_study_on_files_says_which_test_pairs_it_leaves_out(tmp_path: Path) -> None:
    """Of each run's four test pairs of BS one is too long. Only the world has true rewards to write about."""
    scale = small_scale(Overrides(), backbones=["m"], data_folder=str(small_files(tmp_path / "data")))
    asked = job(scale, sets=("BS",), out=tmp_path / "o")
    for scoring in plan(asked, "consistency").scorings:
        folder = scoring.folder(asked)
        folder.mkdir(parents=True)
        of_sets = [(tested, scale.sets[tested].test) for tested in scoring.tested_on]
        rows = [
            PairScore(str(run.folder(asked)), data, f"{data}:{number}", f"prompt {number}", *rewards)
            for run in scoring.runs
            for tested, data in of_sets
            for number in range(4)
            for rewards in [(None, None, 5, 5, "overlong") if (tested, number) == ("BS", 3) else (1.0, 0.0, 5, 5)]
        ]
        (folder / SCORES_FILE).write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
    found = find(asked, "consistency")
    assert found.results["accuracy"]["BS"]["haf"]["n"] == 3
    (line,) = (note for note in found.notes if "left out" in note)
    assert line.startswith("BS, ")
    assert "1 overlong" in line
    assert not any("true reward" in note for note in found.notes)


def test_the_true_order_swaps_wrong_labels() -> None:
    leads = true_leads("world/helpful")
    pairs = world_pairs("helpful", "test")
    assert len(leads) == len(pairs)
    for pair in pairs[:20]:
        chosen, rejected = (oracle_reward(talk, "helpful") for talk in pair.conversations)
        assert leads[pair.id] == chosen - rejected
    annotator = PROFILES["helpful"].annotator
    likely = annotator.preference(1.3)
    assert true_log_odds("world/helpful", 1.3) == pytest.approx(math.log(likely / (1 - likely)))


def test_errors_that_are_as_large_as_stated_are_covered_as_often_as_stated() -> None:
    random = np.random.default_rng(0)
    true, errors = random.normal(size=4000), random.uniform(0.5, 2, size=(2, 4000))
    groups = list(map(str, range(4000)))
    seeds = [(true + each * random.normal(size=4000), each) for each in errors]
    found = coverage(seeds, true, groups)
    assert {level: each["share"] for level, each in found["covered"].items()} == pytest.approx(
        {"0.5": 0.5, "0.8": 0.8, "0.95": 0.95}, abs=0.015
    )
    assert found["true"] == pytest.approx(found["stated"], rel=0.05)
    assert min(found["rank_correlation"]) > 0.2
    halved = coverage([(mean, error / 2) for mean, error in seeds], true, groups)
    assert halved["covered"]["0.95"]["share"] == pytest.approx(2 * stats.norm.cdf(0.98) - 1, abs=0.015)


@pytest.mark.parametrize("name", [name for name in STUDIES if (RESULTS / name).is_dir()])
def test_a_published_table_says_what_its_results_say(name: str) -> None:
    results = json.loads((RESULTS / name / "results.json").read_text())
    table = (RESULTS / name / "table.md").read_text()
    assert len(results["seeds"]) == 3
    for rows in results["accuracy"].values():
        for row, cell in rows.items():
            (line,) = (line for line in table.split("## Accuracy")[1].splitlines() if line.startswith(f"| {row} |"))
            assert f"{100 * cell['accuracy']:.1f} ± {100 * cell['spread']:.1f}" in line
    for each in results.get("errors", {}).values():
        assert f"| {each['stated']:.2f} | {each['true']:.2f} | {100 * each['covered']['0.5']['share']:.1f}" in table
    for each in results.get("length", {}).values():
        assert f"| {np.mean(each['pays']):+.2f} (" in table
    for column, rows in results["differences"].items():
        for rivals, each in rows.items():
            (line,) = (line for line in table.splitlines() if line.startswith(f"| {rivals}, {column} |"))
            assert f"{100 * abs(each['difference']):.1f}" in line.split("[")[0]
