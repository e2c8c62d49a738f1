"""The study: its plan, its choice of rates, its journal, and the whole of it in a tiny world."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from markupsafe import Markup
from transformers import AutoModel

from hafrm.cli import main
from hafrm.cli.reproduce import ReproduceConfig
from hafrm.data import DataOptions, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError, TrainingError
from hafrm.evaluation.scoring import PairScore, read_scores
from hafrm.evaluation.words import fit_words
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Conversation
from hafrm.paper import costs, executor, numbers, references, runs, stages, study
from hafrm.paper.measures import Measured, Paired, mean_compared
from hafrm.paper.plans import FROZEN, PARTS, WORDS, Scoring, cells, noise_part, shares_part
from hafrm.paper.presets import small_scale, world_scale
from hafrm.paper.publishing import page_of, publish, with_block
from hafrm.paper.record import Journal, Record, journal_of, record_of, write_header
from hafrm.paper.references import fit_frozen
from hafrm.paper.runs import Run
from hafrm.paper.samples import unseen
from hafrm.paper.scales import Job, Overrides, SetFiles
from hafrm.paper.stages import stage_order, trials
from hafrm.paper.study_page import findings_of
from hafrm.stats import bootstrap_interval
from hafrm.training import run as training_run
from hafrm.training.manifest import save_manifest
from tests.paper.test_plans import small_files
from tests.tiny import pair, save_tiny, some_pairs

ROOT = Path(__file__).parents[2]


def job(out: Path, **values: Any) -> Job:
    asked = {
        "scale": world_scale(Overrides(steps=2)),
        "backbones": ("instruct", "base"),
        "sets": numbers.SETS,
        "seeds": (0, 1, 2),
        "out": out,
        "parts": tuple(PARTS),
    }
    return Job(**(asked | values))  # type: ignore[arg-type]


def marked(asked: Job, found: Mapping[Path, float]) -> Record:
    """Record runs, given by folder, with their validation accuracies."""
    record = record_of(asked)
    for folder, mark in found.items():
        effective = {"bf16": False, "fp16": False, "dtype": "float32", "device": "cpu"}
        others = {"eval_policy/accuracies": 1 - mark, "eval_length/accuracies": 0.5}
        metrics = {"eval_rewards/accuracies": mark} | others
        manifest = {"effective": effective, "eval_metrics": metrics, "versions": {}}
        made = {"started": "2026-01-01", "git_revision": None}
        record.add_run(str(folder.relative_to(asked.root / "runs")), {}, manifest | made)
    return record


def test_width_comes_before_depth(tmp_path: Path) -> None:
    """The first 45 runs are all five sets, three methods and three seeds on one backbone, seed after seed."""
    asked = job(tmp_path)
    assert next(stage_order(asked)) == ("table2", "instruct")
    runs = list(trials(asked, "table2", "instruct"))
    assert len(runs) == 45
    assert [run.seed for run in runs] == [0] * 15 + [1] * 15 + [2] * 15
    stages = list(stage_order(asked))
    assert set(stages) == {(part, backbone) for part in PARTS for backbone in asked.backbones}
    assert len(stages) == len(set(stages))
    assert stages.index(("table2", "base")) < stages.index(("losses", "instruct"))
    assert list(stage_order(replace(asked, parts=("sizes",)))) == [
        ("sizes", "instruct"),
        ("sizes", "base"),
    ]


def test_parts_share_their_runs(tmp_path: Path) -> None:
    asked = job(tmp_path, backbones=("instruct",))
    single = set(trials(asked, "table2", "instruct"))
    assert set(trials(asked, "ood", "instruct")) == set(trials(asked, "heads", "instruct")) | single == single
    assert len(set(trials(asked, "losses", "instruct")) - single) == 3 * 5 * 3
    assert len(set(trials(asked, "sizes", "instruct")) - single) == 4 * 5 * 3 * 3
    assert len(set(trials(asked, "noise", "instruct")) - single) == 3 * 5 * 3 * 3
    assert len(set(trials(asked, "ratios", "instruct")) - single) == 5 * 5 * 3
    assert {cell.column for cell in cells(asked, "ood", "instruct")} >= {"BS→Harmless", "CA→AHP"}
    for part in PARTS.values():
        assert all(a != b and {a, b} <= {*part.rows, WORDS, FROZEN} for a, b in part.rivals)
    names = [run.name for part in PARTS for run in trials(asked, part, "instruct")]
    assert len(set(names)) == len(stages.plan_study(asked).runs)


@pytest.mark.slow
def test_losses_and_shares_are_runs_of_hafrm_train(tmp_path: Path) -> None:
    from hafrm.cli import train
    from hafrm.cli.options import options_of
    from hafrm.training.config import TrainConfig

    asked = job(tmp_path)
    parser = train.parser()
    for run in (*trials(asked, "losses", "base"), *trials(asked, "priors", "base"), *trials(asked, "sizes", "base")):
        config = run.config(asked, model=asked.scale.backbone("base").shown)
        words = shlex.split(run.command(asked))
        assert options_of(TrainConfig, parser, parser.parse_args(words[2:])) == config
    simpo = Run(backbone="base", sets=("BS",), method="haf", loss="simpo")
    assert simpo.config(asked).loss.beta == 2


def test_a_rates_runs_have_folders_of_their_own_and_the_best_on_validation_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(tmp_path, sets=("BS", "AHP"), rates=(1e-4, 1e-3, 1e-2), parts=("table2", "losses"))
    assert len(list(stages.search(asked, "base"))) == 3 * 2 * 3
    assert stages.at_chosen_rates(asked, "base") is None
    marks = {"haf": (0.6, 0.7, 0.7), "baseline": (0.5, 0.5, 0.6), "dpo": (0.9, 0.1, 0.1)}
    found = {}
    for todo in stages.search(asked, "base"):
        rate = todo.job.scale.backbone("base").learning_rates[todo.run.method]
        place = asked.rates.index(rate)
        shift = 0.1 if todo.run.sets == ("BS",) else -0.1  # the mean over sets counts
        found[todo.folder] = marks[todo.run.method][place] + shift
    assert len(found) == 18
    record = marked(asked, found)
    at = stages.at_chosen_rates(asked, "base")
    assert at is not None
    assert at.scale.backbone("base").learning_rates == {"haf": 1e-3, "baseline": 1e-2, "dpo": 1e-4}
    folder = Run(backbone="base", sets=("BS",), method="dpo").folder(at)
    assert folder.name == "dpo-seed0-lr0.0001"
    assert folder in found  # the search's run of the chosen rate is the first seed's
    best = next(folder for folder in found if "dpo-seed0-lr0.0001" in str(folder))
    record.path.unlink()
    marked(asked, {folder: mark for folder, mark in found.items() if folder != best})
    journal_of(asked).write(str(best.relative_to(asked.root / "runs")), "failed", reason="diverged")
    choice = stages.choices(asked, "base")["dpo"]
    assert choice.failed == (1e-4,)
    assert choice.complete
    assert choice.rate == 1e-3


def test_sft_has_a_rate_of_its_own_and_some_sets_choose(tmp_path: Path) -> None:
    asked = job(tmp_path, rates=(1e-4, 1e-3), rate_sets=("BS",), parts=("table2", "sft"), seeds=(0,))
    found = {}
    for todo in stages.search(asked, "base"):
        assert todo.run.sets == ("BS",)
        found[todo.folder] = 0.6 + (todo.run.recipe == "haf-sft") * (todo.run.learning_rate(todo.job) == 1e-3) / 10
    assert len(found) == 2 * 4
    marked(asked, found)
    at = stages.at_chosen_rates(asked, "base")
    assert at is not None
    rates = {run.recipe: run.learning_rate(at) for run in trials(at, "sft", "base")}
    assert rates == {"haf": 1e-4, "haf-sft": 1e-3, "baseline": 1e-4}


def test_a_journal_keeps_all_and_survives_a_kill(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study" / "runs.jsonl")
    assert journal.slowness() == 1
    journal.write("a", "started")
    journal.write("a", "finished", seconds=6.0, foretold=2.0)
    journal.write("b", "started")
    with journal.path.open("a") as file:
        file.write('{"what": "b", "ev')
    assert [entry.event for entry in journal.entries()] == ["started", "finished", "started"]
    assert journal.slowness() == 3
    with journal.path.open("a") as file:
        file.write("\n")
    journal.write("b", "started")
    journal.write("b", "finished", seconds=1.0, foretold=2.0)  # resumed: says nothing about speed
    assert journal.slowness() == 3
    assert journal.last()["b"].event == "finished"


def test_a_bag_of_words_learns_words_and_not_noise() -> None:
    rng = np.random.default_rng(0)
    fillers = ["tree", "house", "river", "stone", "cloud", "bird"]
    pairs = [
        pair(f"q{i}", f"please {rng.choice(fillers)} {rng.choice(fillers)}", f"{rng.choice(fillers)} never", row=i)
        for i in range(80)
    ]
    words = fit_words(pairs[:60], pairs[60:])
    noise = max(abs(words.weights[word]) for word in fillers)
    assert words.weights["please"] > 2 * noise
    assert words.weights["never"] < -2 * noise
    good, bad, unknown = words.score([Conversation.of("x", text) for text in ("Please", "never", "zebra")])
    assert good > 0 > bad  # type: ignore[operator]
    assert unknown == 0


TINY = ["--scale", "world", "--steps", "2", "--sets", "Harmless", "BS", "--backbones", "instruct"]


def run_study(out: Path, *more: str) -> dict[str, Any]:
    assert main(["reproduce", "study", "--out", str(out), *TINY, *more]) == 0
    found: dict[str, Any] = json.loads((out / "world" / "study" / "results.json").read_text())
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("# x\n<!-- study: here -->\nold\n<!-- end of study -->\nend\n")
    return root


@pytest.mark.slow
def test_a_frozen_backbones_head_is_a_logistic_regression_on_the_stock_models_states(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    encoder = ConversationEncoder(load_tokenizer(str(folder)), 128)
    groups = list(encode_pairs(some_pairs(40), encoder, DataOptions(max_length=128)))
    scorer = fit_frozen(str(folder), encoder, groups[:30], groups[30:])
    stock = AutoModel.from_pretrained(folder)

    def state(tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return stock(torch.tensor([tokens])).last_hidden_state[0, -1].double().numpy()

    states = np.array([[state(group.prompt + response) for response in group.responses] for group in groups])
    weights = scorer.model.score.weight.detach().double().numpy()[0]
    scored = scorer.score([conversation for each in some_pairs(40) for conversation in each.conversations])
    assert np.reshape(scored, (40, 2)) == pytest.approx(states @ weights, rel=1e-3, abs=1e-4)
    x = states[:30, 0] - states[:30, 1]
    scale = x.std(axis=0) + 1e-6
    slope = (x / scale).T @ (1 / (1 + np.exp(x @ weights)))  # at the optimum: the penalty times the weights
    penalties = slope / (weights * scale)
    assert penalties == pytest.approx(np.full(len(weights), np.median(penalties)), rel=0.05)
    assert np.log10(np.median(penalties)) == pytest.approx(round(np.log10(np.median(penalties))), abs=0.01)


@pytest.mark.slow
def test_the_study_from_its_command_to_the_docs(
    tiny_world: Path,
    tmp_path: Path,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two seeds and two rates: the page matches the raw scores."""
    monkeypatch.setattr(training_run, "fit_combination", lambda margins: 1.0)  # two steps don't determine a weight
    words = ["--seeds", "0", "1", "--learning_rates", "1e-4", "1e-3", "--publish", str(checkout)]
    parts = ["--sets", "BS", "--parts", "table2", "heads"]
    found = run_study(tmp_path, *words, *parts)
    assert found["missing"] == ["nothing is missing"]
    assert found["failures"] == found["unfinished"] == []
    assert set(found["rates"]["instruct"]["haf"]["marks"]) == {"0.0001", "0.001"}
    cell = found["parts"]["table2"]["instruct"]["BS"]["haf"]
    assert len(cell["by_seed"]) == 2
    rate = found["rates"]["instruct"]["haf"]["rate"]
    hits = []
    for seed in (0, 1):
        folder = tmp_path / f"world/study/scores/instruct/BS/haf-seed{seed}-lr{rate:g}/BS"
        scored = read_scores(folder / "scores.jsonl")
        hits.append(np.mean([0.5 + 0.5 * np.sign(score.margin) for score in scored]))
    assert cell["by_seed"] == pytest.approx(hits)
    one = [each for each in found["comparisons"] if (each["part"], each["column"]) == ("table2", "BS")]
    gain = next(each for each in one if (each["a"], each["b"]) == ("haf", "dpo"))
    dpo = found["parts"]["table2"]["instruct"]["BS"]["dpo"]
    assert gain["difference"] == pytest.approx(cell["accuracy"] - dpo["accuracy"])
    assert set(found["parts"]["heads"]["instruct"]["BS"]) == {"reward head", "policy head", "both heads"}
    assert not list((tmp_path / "world" / "runs").rglob("checkpoint-*"))
    assert (checkout / "docs/results/study.md").read_text() == page_of(found)
    readme = (checkout / "README.md").read_text()
    assert "old" not in readme
    assert "| bag of words |" in readme
    assert with_block(readme, found) == readme
    page = (tmp_path / "world" / "study" / "table.md").read_text()
    for line in ("HAF (instruct)", "Learning rates", "In domain, instruct, HAF against Baseline: above on"):
        assert line in page
    started = found["counts"]["started"]
    capfd.readouterr()
    assert run_study(tmp_path, *words, *parts)["counts"]["started"] == started  # all is there: nothing runs again
    assert main(["reproduce", "study", "--out", str(tmp_path), *TINY, *words, *parts, "--dry_run"]) == 0
    assert "nothing is missing" in capfd.readouterr().out


@pytest.mark.slow
def test_what_is_kept_is_enough_for_all_tables_and_is_not_done_again(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A study is kept, recomputed without its models and data, and extended on another machine."""
    kept, data = tmp_path / "kept", small_files(tmp_path / "data")
    for path in data.iterdir():  # no test prompt is trained on
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["prompt"][0]["content"] += f" ({path.stem})"
            del row["group"]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["reproduce", "study", "--scale", "small", "--backbone", str(tiny_world), "--backbones", "base"]
    words += ["--data_folder", str(data), "--steps", "1", "--max_length", "256", "--sets", "BS", "Harmless"]
    words += ["--test_pairs", "9", "--validation_pairs", "5", "--parts", "table2", "transfer", "--keep", str(kept)]
    words += ["--learning_rates", "1e-4", "1e-3", "--rate_sets", "BS"]
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    assert not list((tmp_path / "o").rglob("*.safetensors"))
    found = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert {"study.json", "runs.jsonl", "record.jsonl", "results.json", "table.md", "index.html"} <= set(found)
    assert not any(str(tmp_path).encode() in text for text in found.values())
    result = json.loads(found["results.json"])
    assert set(result["parts"]["transfer"]["base"]) == {"BS→Harmless", "Harmless→BS"}
    cell = result["parts"]["table2"]["base"]["BS"]["haf"]
    assert cell["n"] + cell["unscored"] == 9

    shutil.rmtree(tmp_path / "o")
    data.rename(tmp_path / "elsewhere")
    assert main(["reproduce", "study", "--recompute", str(kept)]) == 0
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == found

    trained: list[str] = []
    whole = Run.make
    monkeypatch.setattr(Run, "make", lambda run, job: (trained.append(run.name), whole(run, job))[1])
    words[words.index(str(data))] = str(tmp_path / "elsewhere")
    assert main([*words, "--out", str(tmp_path / "p"), "--seeds", "0", "1"]) == 0
    assert len(trained) == 2 * 4
    assert all("seed1" in name for name in trained)
    assert main([*words, "--out", str(tmp_path / "p"), "--steps", "2"]) == 2
    assert "record.jsonl contains a run with other options: training.max_steps (was 1, now 2)" in capfd.readouterr().err


def test_a_record_outlives_options_and_notices_changes(tmp_path: Path) -> None:
    """Options that a later version adds or drops are ignored; those that both versions have must agree."""
    record = Record(tmp_path)
    before = {"training": {"max_steps": 3}, "loss": {"beta": 0.1, "dropped": 1}, "lora": {}}
    manifest = {"effective": {"bf16": True, "fp16": False, "dtype": "float32", "device": "cpu"}, "versions": {}}
    manifest |= {"eval_metrics": {"eval_rewards/accuracies": 0.5}, "started": "", "git_revision": None}
    record.add_run("a", before, manifest)
    assert record.changes("a", {"training": {"max_steps": 3}, "loss": {"beta": 0.1, "added": 2}, "new": True}) == ""
    assert record.changes("a", {"training": {"max_steps": 4}}) == "training.max_steps (was 3, now 4)"
    assert record.changes("b", {"training": {"max_steps": 4}}) == ""
    assert json.loads(record.path.read_text())["precision"] == "bf16"


def test_a_record_survives_a_kill_and_gives_back_its_scores(tmp_path: Path) -> None:
    scores = [
        PairScore("m", "d", f"/some/where:{row}", f"text{row % 2}", margin, None if margin is None else 0.25, row, 3)
        for row, margin in enumerate((1.23456789, None, -0.5, 0.25))
    ]
    record = Record(tmp_path)
    record.add_scores("a", "BS", scores, kept=scores[:3])
    with record.path.open("ab") as file:
        file.write(b'{"scores": "b", "mar')
    record.add_scores("c", "BS", scores)
    (found, left_out) = Record(tmp_path).scores("a") or ([], 0)
    assert left_out == 1
    assert [each.margin for each in found] == [0.98457, None, -0.75]  # five digits
    assert [each.group for each in found] == ["BS:0", "BS:1", "BS:0"]
    assert [(each.length_chosen, each.length_rejected) for each in found] == [(0, 3), (1, 3), (2, 3)]
    assert record.has_scores("c")
    assert not record.has_scores("b")
    assert b"where" not in record.path.read_bytes()
    assert b"text" not in record.path.read_bytes()
    with pytest.raises(ConfigError, match="other test pairs"):
        record.add_scores("d", "BS", scores[1:])


def test_a_studys_numbers_follow_from_its_record(tmp_path: Path) -> None:
    """Of nine test pairs, DPO can't read one, and the prompts of two were trained on: the references skip all three."""
    kept = tmp_path / "kept"
    asked = job(tmp_path / "o", backbones=("base",), sets=("BS", "AHP"), seeds=(0, 1), parts=("table2",), keep=kept)
    asked = replace(asked, rates=(1e-4, 1e-3))
    write_header(asked)
    for todo in stages.search(asked, "base"):
        marked(asked, {todo.folder: 0.6 + 100 * todo.run.learning_rate(todo.job)})
    (stage,) = (each for each in stages.stages(asked) if each.name == "table2")
    marked(asked, {todo.folder: 0.7 for todo in stage.todos if not todo.recorded})

    def scored(right: int, unread: int | None = None) -> list[PairScore]:
        margins = [None if row == unread else 1.0 if row < right else -1.0 for row in range(9)]
        return [
            PairScore("m", "d", f"d:{row}", f"g{row}", margin, None if margin is None else 0.0, 5, 4)
            for row, margin in enumerate(margins)
        ]

    record = record_of(asked)
    right = {"haf": (6, 4), "baseline": (3, 2), "dpo": (1, 2)}
    for todo in stage.todos:
        scores = scored(right[todo.run.method][todo.run.seed], 6 if todo.run.method == "dpo" else None)
        for scoring in todo.scorings:
            record.add_scores(todo.scores_name(scoring), *scoring.tested_on, scores, kept=scores[:7])
    for row, many in ((WORDS, 3), (FROZEN, 9)):
        name = references.reference_name(asked, row, "base", "BS")
        record.add_scores(name, "BS", scored(many), depends_on={"pairs": []})
    journal = journal_of(asked)
    journal.write("base/BS/haf-seed9", "failed", reason="diverged")
    for begun in ("base/BS/dpo-seed9", stage.todos[0].name):  # the second lacks only its last line
        journal.write(begun, "started")
    assert main(["reproduce", "study", "--recompute", str(kept)]) == 0
    found = json.loads((kept / "results.json").read_text())
    assert found["failures"] == [{"what": "base/BS/haf-seed9", "reason": "diverged"}]
    assert found["unfinished"] == ["base/BS/dpo-seed9"]
    row = found["parts"]["table2"]["base"]["BS"]
    assert {name: (cell["by_seed"], cell["n"], cell["unscored"]) for name, cell in row.items()} == {
        "haf": (pytest.approx([6 / 7, 4 / 7]), 7, 0),
        "baseline": (pytest.approx([3 / 7, 2 / 7]), 7, 0),
        "dpo": (pytest.approx([1 / 6, 2 / 6]), 6, 1),
        "words": ([0.5, 0.5], 6, 0),
        "frozen": ([1, 1], 6, 0),
    }
    assert list(found["parts"]["table2"]["base"]) == ["BS", "AHP"]  # in the paper's order
    leads = {(each["a"], each["b"]): each for each in found["comparisons"] if each["column"] == "BS"}
    assert leads["haf", "dpo"]["by_seed"] == pytest.approx({"0": 1 - 1 / 6, "1": 4 / 6 - 2 / 6})
    assert leads["haf", "words"]["difference"] == pytest.approx(5 / 6 - 1 / 2)
    assert found["seen"] == {"table2": {"BS": [2, 9], "AHP": [2, 9]}}
    assert found["rates"]["base"]["haf"] == {"marks": {"0.0001": 0.61, "0.001": 0.7}, "failed": [], "rate": 0.001}
    assert found["missing"] == ["nothing is missing"]
    page = (kept / "table.md").read_text()
    assert "\n| bag of words | 50.0 [" in page  # one model has no spread over seeds
    assert "BS 1 of 7" in page  # pairs left out, of those whose prompt was not trained on


def test_prompts_are_numbered_so_that_resampling_has_the_same_draws(tmp_path: Path) -> None:
    """Also beside scores whose prompts an older version numbered as they came."""
    groups = ["t", "b", "t", "a", "c", "d", "e", "f"]
    margins = [0.5, -1.0, 0.0, 2.0, -0.5, 1.0, 1.0, 3.0]
    scores = [
        PairScore("m", "d", f"d:{row}", group, margin, 0.0, 1, 1)
        for row, (group, margin) in enumerate(zip(groups, margins, strict=True))
    ]
    record = Record(tmp_path)
    record.add_scores("a", "BS", scores)
    (test, _) = map(json.loads, record.path.read_text().splitlines())
    assert test["prompts"] == [6, 1, 6, 0, 2, 3, 4, 5]
    assert bootstrap_interval(margins, test["prompts"]) == bootstrap_interval(margins, groups)

    record.path.write_text(json.dumps({**test, "prompts": [0, 1, 0, 2, 3, 4, 5, 6]}) + "\n")
    record.add_scores("b", "BS", scores)
    assert record.has_scores("b")
    with pytest.raises(ConfigError, match="other test pairs"):
        record.add_scores("c", "BS", [replace(scores[0], group="b"), *scores[1:]])


@pytest.mark.slow
def test_other_sets_and_mixtures(tiny_world: Path, tmp_path: Path) -> None:
    found = run_study(tmp_path, "--parts", "table2", "ood", "mixed")
    assert set(found["parts"]["ood"]["instruct"]) == {"BS→Harmless", "Harmless→BS"}
    assert set(found["parts"]["mixed"]["instruct"]) == {"Harmless", "BS"}
    assert len(list((tmp_path / "world" / "runs").rglob("manifest.json"))) == 3 * (2 + 1)
    table = [each for each in found["comparisons"] if each["part"] == "mixed" and each["b"] == "dpo"]
    by_column = {each["column"]: each for each in table}
    sets = [by_column[name]["difference"] for name in ("Harmless", "BS")]
    assert by_column["Avg"]["difference"] == pytest.approx(np.mean(sets))
    low, high = by_column["Avg"]["ci95"]
    assert low <= by_column["Avg"]["difference"] <= high
    widths = [by_column[name]["ci95"][1] - by_column[name]["ci95"][0] for name in ("Harmless", "BS")]
    assert high - low < max(widths)  # two sets are better evidence than one
    assert by_column["BS"]["p_holm"] >= by_column["BS"]["p"]


@pytest.mark.slow
def test_curves_and_losses(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed, one set, two shares, one other loss: no averages, and figures of the existing results."""
    monkeypatch.setitem(PARTS, "sizes", shares_part((2, 1)))
    monkeypatch.setitem(PARTS, "noise", noise_part((0, 50)))
    losses = PARTS["losses"]
    few = {row: options for row, options in losses.rows.items() if row in ("none", "dpo", "simpo")}
    monkeypatch.setitem(PARTS, "losses", replace(losses, rows=few))
    found = run_study(tmp_path, "--sets", "BS", "--parts", "losses", "sizes", "noise")
    assert set(found["parts"]["losses"]["instruct"]["BS"]) == {"none", "dpo", "simpo"}
    assert set(found["parts"]["sizes"]["instruct"]["BS"]) == {
        f"{method} 1/{share}" for method in ("haf", "baseline", "dpo") for share in (1, 2)
    }
    manifest = json.loads((tmp_path / "world/runs/instruct/BS/haf-1of2-seed0/manifest.json").read_text())
    assert manifest["data"]["train"]["sources"][0]["kept"] == 12
    for part, label in (("sizes", "percent of the training pairs"), ("noise", "percent of flipped labels")):
        svg = (tmp_path / "world" / "study" / f"{part}-instruct.svg").read_text()
        assert label in svg
        assert svg.count('class="series') == 3 + 3  # the curves and their legend
    assert "HAF, 50% flipped" in (tmp_path / "world" / "study" / "table.md").read_text()


@pytest.mark.slow
def test_what_fails_is_written_down_and_the_study_goes_on(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run.make

    def failing(run: Run, job: Job) -> Path:
        if run.method == "dpo":
            raise TrainingError("the loss is not finite\nlook here")
        return whole(run, job)

    monkeypatch.setattr(Run, "make", failing)
    found = run_study(tmp_path, "--parts", "table2")
    assert [each["reason"] for each in found["failures"]] == ["the loss is not finite"] * 2
    assert set(found["parts"]["table2"]["instruct"]["BS"]) == {"haf", "baseline", "words", "frozen"}
    page = (tmp_path / "world" / "study" / "table.md").read_text()
    assert "the loss is not finite" in page
    assert any("2 of which failed" in line for line in found["missing"])
    monkeypatch.setattr(Run, "make", whole)
    assert run_study(tmp_path, "--parts", "table2")["failures"] == found["failures"]  # not retried automatically
    assert run_study(tmp_path, "--parts", "table2", "--retry")["failures"] == []


@pytest.mark.slow
def test_the_time_ends_between_runs_and_the_study_goes_on(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    whole = Run.make

    def slow(run: Run, job: Job) -> Path:
        clock[0] += 1000.0
        return whole(run, job)

    monkeypatch.setattr(Run, "make", slow)
    monkeypatch.setattr(executor.time, "monotonic", lambda: clock[0])
    found = run_study(tmp_path, "--parts", "table2", "--hours", "0.5")
    assert "the time of 0.5 hours is up" in capfd.readouterr().err
    assert any(line.startswith("missing: 5 of 6 runs of table2") for line in found["missing"])  # stopped at 2000 s
    assert set(found["parts"]["table2"]["instruct"]) == {"Harmless"}
    assert run_study(tmp_path, "--parts", "table2")["missing"] == ["nothing is missing"]


@pytest.mark.slow
def test_a_killed_study_lists_what_was_begun(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "make", killed)
        assert main(["reproduce", "study", "--out", str(tmp_path), *TINY, "--parts", "table2"]) == 130
    asked = job(tmp_path, backbones=("instruct",), sets=("Harmless", "BS"), seeds=(0,))
    assert study.collect(asked)["unfinished"] == ["instruct/Harmless/haf-seed0"]
    assert run_study(tmp_path, "--parts", "table2")["unfinished"] == []


@pytest.mark.slow
def test_what_another_process_holds_is_left_to_it(tiny_world: Path, tmp_path: Path) -> None:
    asked = job(tmp_path, backbones=("instruct",), sets=("BS",), seeds=(0,), parts=("table2",))
    order: list[str] = []
    held = tmp_path / "world/study/locks/instruct@BS@haf-seed0.lock"
    held.parent.mkdir(parents=True)
    taken = threading.Event()

    def other() -> None:
        with FileLock(held):
            taken.set()
            time.sleep(2.0)

    process = threading.Thread(target=other)
    process.start()
    taken.wait()
    executor.execute_study(asked, stages.plan_study(asked), order.append)
    process.join()
    runs = [line.rsplit("/", 1)[1] for line in order if "instruct/BS/" in line and "scores" not in line]
    assert runs[:3] == ["baseline-seed0", "dpo-seed0", "haf-seed0"]
    assert order[-1] == "nothing is missing"


def hours_of(printed: str) -> float:
    found = re.search(r"all that is missing: about ([\d.e-]+) hours", printed)
    assert found is not None
    return float(found[1])


def test_small_foretells_its_hours_and_cuts_its_sets(
    tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = small_files(tmp_path / "data")
    words = ["--scale", "small", "--backbone", str(tiny_world), "--data_folder", str(data), "--steps", "1"]
    words += ["--sets", "BS", "--parts", "table2", "sizes", "--max_length", "256", "--pairs", "6"]
    assert main(["reproduce", "study", "--out", str(tmp_path), *words, "--dry_run"]) == 0
    printed = capfd.readouterr().out
    assert "base-lora" in printed
    assert "hours of one process" in printed
    assert re.search(r"\[missing\] base/BS/haf-seed0: [\d.]+ hours, [\d.]+ with all above", printed)
    two = [*words, "--learning_rates", "1e-3", "1e-2", "--dry_run"]
    assert main(["reproduce", "study", "--out", str(tmp_path), *two]) == 0
    choice = capfd.readouterr().out
    assert "missing: 6 of 6 runs of the choice of learning rates, base: about" in choice
    assert hours_of(choice) < 2 * hours_of(printed)  # the first seed's runs of a chosen rate are not trained again
    scale = small_scale(Overrides(pairs=6, steps=1), backbones=[str(tiny_world)], data_folder=str(data))

    def rows(**options: int) -> list[dict]:
        run = Run(backbone="base", sets=("BS",), method="baseline", **options)
        data = run.data(job(tmp_path, scale=scale))
        data.write()
        (name,) = data.names("train")
        return [json.loads(line) for line in Path(name).read_text().splitlines()]

    whole, half = rows(), rows(share=2)
    assert (len(whole), len(half)) == (6, 3)
    assert all(row in whole for row in half)  # a smaller part is a part of the larger one
    flipped = {}
    for percent in (20, 50):
        changed = rows(flipped=percent)
        flipped[percent] = {place for place in range(6) if changed[place] != whole[place]}
        for place in flipped[percent]:
            was, now = whole[place], changed[place]
            assert now == was | {"chosen": was["rejected"], "rejected": was["chosen"]}
    assert [len(each) for each in flipped.values()] == [1, 3]
    assert flipped[20] < flipped[50]


def test_costs_are_counts_of_products(tiny_world: Path, tmp_path: Path) -> None:
    """By hand: 16 pairs forward and twice backward, and 14 validation pairs at the end and for the best checkpoint."""
    data = small_files(tmp_path / "data")
    scale = small_scale(Overrides(steps=1), backbones=[str(tiny_world)], data_folder=str(data))
    asked = job(tmp_path, scale=scale, backbones=("base", "base-lora"), sets=("BS",))
    counted = costs.Costs(asked)
    body = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32) + 32  # two layers with two of four heads for keys
    head = 260 * 32
    tokens, responses = counted._set("BS").tokens, counted._set("BS").responses
    run = {name: Run(backbone="base", sets=("BS",), method=name, seed=1) for name in ("baseline", "haf")}
    pairs = 3 * 16 + 2 * 14
    expected = 2 * pairs * tokens * body / costs._SPEED + costs._OVERHEAD
    assert counted.run(run["baseline"]) == pytest.approx(expected)
    more = counted.run(run["haf"]) - counted.run(run["baseline"])
    assert more == pytest.approx(2 * pairs * responses * head / costs._SPEED)
    assert costs.Costs(asked, 3.0).run(run["haf"]) == pytest.approx(3 * counted.run(run["haf"]))
    assert counted.run(replace(run["haf"], backbone="base-lora")) < counted.run(run["haf"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["table9"]}, "table9 is none of table2"),
        ({"hours": 0}, "hours must be above 0"),
        ({"learning_rates": [0.0]}, "learning_rates must be above 0"),
        ({"learning_rates": [1e-4, 1e-3], "rate_seeds": 0}, "rate_seeds must be at least 1"),
        ({"learning_rates": [1e-4], "rate_seeds": 2}, "two learning_rates or more"),
        ({"learning_rates": [1e-4], "rate_sets": ["BS"]}, "two learning_rates or more"),
        ({"learning_rates": [1e-4, 1e-3], "sets": ["BS"], "rate_sets": ["CA"]}, "rate_sets: CA"),
        ({"seeds": [2**32]}, "seeds must be at least 0"),
        ({"name": "figure5", "ppo_steps": 0}, "ppo_steps must be at least 1"),
        ({"recompute": "kept", "seeds": [1]}, "seeds has no effect with recompute"),
    ],
)
def test_options_that_can_not_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReproduceConfig(**{"name": "study", **options})


def test_options_that_go_together() -> None:
    ReproduceConfig(name="study", seeds=[0, 1], learning_rates=[1e-4, 1e-3], rate_seeds=2, rate_sets=["BS"])
    ReproduceConfig(name="study", seeds=[2**32 - 1], learning_rate=1e-4)
    ReproduceConfig(name="study", recompute="kept", out="o", publish=".", page="study-of-rates")


def test_a_study_trains_in_the_given_order_and_tables_have_the_papers() -> None:
    sets = {name: ReproduceConfig(name=name, sets=["BS", "Helpful"]).job().sets for name in ("study", "table2")}
    assert sets == {"study": ("BS", "Helpful"), "table2": ("Helpful", "BS")}


def compared(difference: float, ends: list[float]) -> dict[str, Any]:
    """Results of one comparison over two sets, as `collect` gives them."""
    cell = {
        "accuracy": 0.7,
        "by_seed": [0.7],
        "spread": None,
        "ci95": [0.6, 0.8],
        "n": 9,
        "prompts": 9,
        "length_accuracy": 0.4,
        "seeds": [0],
        "unscored": 1,
    }
    said = {"part": "table2", "backbone": "b", "a": "haf", "b": "baseline", "p": 0.01, "by_seed": {"0": difference}}
    said |= {"difference": difference, "ci95": ends, "n": 9}
    return {
        "format": study.FORMAT,
        "scale": "small",
        "sets": ["BS"],
        "seeds": [0],
        "steps": 1,
        "batch": 16,
        "cap": None,
        "max_length": 512,
        "backbones": {"b": {"paper_name": None, "lora_rank": 0}},
        "rates": {"b": {"haf": {"marks": {"0.001": None}, "failed": [], "rate": 0.001}}},
        "rate_seeds": 1,
        "parts": {"table2": {"b": {"BS": {"haf": cell, "baseline": cell}}}},
        "comparisons": [
            said | {"column": "BS", "p_holm": 0.02},
            said | {"column": "Avg", "columns": list(numbers.SETS)},
        ],
        "seen": {},
        "failures": [],
        "unfinished": [],
        "missing": ["nothing is missing"],
        "counts": {"started": 2, "finished": 2, "failed": 0},
    }


@pytest.mark.parametrize(
    ("difference", "ends", "said", "agrees"),
    [
        (0.02, [0.01, 0.03], "is above 0; above in 1 of 1 seed", "this agrees; the interval excludes gains"),
        (0.05, [0.01, 0.09], "is above 0; above in 1 of 1 seed", "this agrees."),
        (-0.02, [-0.03, -0.01], "is below 0; above in 0 of 1 seed", "this contradicts it."),
        (0.01, [-0.01, 0.04], "distinguished from 0", "this neither agrees nor contradicts."),
        (0.01, [0.0, 0.04], "distinguished from 0", "this neither agrees nor contradicts."),
        (0.01, [-0.01, 0.03], "distinguished from 0", "contradicts; the interval excludes gains as large"),
    ],
)
def test_sentences_follow_the_numbers(difference: float, ends: list[float], said: str, agrees: str) -> None:
    (sentence,) = findings_of(compared(difference, ends)).statements
    assert said in sentence
    assert agrees in sentence
    assert "+4.6, +4.8, +3.4 points" in sentence  # HAF - baseline in Table 2: 74.12 - 69.50, 71.82 - 67.06, ...
    assert f"on {int(difference > 0)} of 1" in sentence


def test_a_mean_over_too_few_prompts_says_nothing_about_the_papers() -> None:
    found = compared(0.01, [0.005, 0.03])
    found["comparisons"][-1]["p"] = None
    (sentence,) = findings_of(found).statements
    assert "is above 0" not in sentence
    assert sentence.endswith("this neither agrees nor contradicts.")


def test_the_papers_gains_are_those_on_the_same_sets() -> None:
    """HAF - baseline on Helpful, Harmless and BS, by hand from Table 2."""
    found = compared(0.02, [0.01, 0.03])
    found["comparisons"][-1]["columns"] = ["Helpful", "Harmless", "BS"]
    assert "on these sets: +7.0, +2.6, +2.6 points" in findings_of(found).statements[0]


def test_an_end_near_0_shows_its_side() -> None:
    (sentence,) = findings_of(compared(-0.02, [-0.04, -0.0002])).statements
    assert "[−4.00, −0.02], which is below 0" in sentence


def test_cells_of_fewer_seeds_say_so_and_are_in_no_mean() -> None:
    found = compared(0.02, [0.01, 0.03])
    row = found["parts"]["table2"]["b"]["BS"]
    found["seeds"] = [0, 1]
    row["haf"] = row["haf"] | {"seeds": [0, 1], "by_seed": [0.8, 0.8], "accuracy": 0.8}
    written = findings_of(found)
    by_name = {line[0]: line[1:] for line in written.tables[0].rows}
    assert by_name["Baseline (b)"] == ("70.0 [60.0, 80.0] (1 of 2 seeds)", "–")
    assert by_name["HAF (b)"] == ("80.0 [60.0, 80.0]", Markup("<b>80.0</b>"))
    assert any("have fewer seeds than requested" in note for note in written.notes)
    assert "the mean over seeds 0, 1, where available" in written.figures["table2-b"]


def test_a_method_without_result_on_a_set_has_no_mean() -> None:
    found = compared(0.02, [0.01, 0.03])
    grid = found["parts"]["table2"]["b"]
    grid["AHP"] = {"haf": grid["BS"]["haf"]}
    by_name = {line[0]: line[1:] for line in findings_of(found).tables[0].rows}
    assert by_name["Baseline (b)"][1:] == ("–", "–")
    assert by_name["HAF (b)"][1:] == (Markup("<b>70.0 [60.0, 80.0]</b>"), Markup("<b>70.0</b>"))


def test_a_curve_is_of_the_seeds_that_all_its_points_have() -> None:
    """The last point has additional seeds, which are better ones."""
    found = compared(0.02, [0.01, 0.03])
    cell = found["parts"]["table2"]["b"]["BS"]["haf"]
    more = cell | {"seeds": [0, 1], "by_seed": [0.7, 0.9], "accuracy": 0.8}
    found["parts"] = {"ratios": {"b": {"BS": {"-0.2": cell, "0": cell, "0.5": more}}}}
    figure = findings_of(found).figures["ratios-b"]
    assert "the mean over BS and seed 0" in figure
    (drawn, _) = re.findall(r'd="([^"]*)" class="series positive"', figure)  # the curve, and the legend's line
    assert len(set(re.findall(r"[ML][\d.]+ ([\d.]+)", drawn))) == 1
    assert len(re.findall(r"[ML]([\d.]+)", drawn)) == 3  # the negative ratio, too


def test_shares_and_flips_are_drawn_at_their_percentages() -> None:
    """Accuracies rise by five points per row, by the share of the pairs or the flipped labels."""
    found = compared(0.02, [0.01, 0.03])
    cell = found["parts"]["table2"]["b"]["BS"]["haf"]
    rows = {
        "sizes": ["haf 1/4", "haf 1/2", "haf 1/1", "dpo 1/4"],
        "noise": ["haf 40%", "haf 10%", "haf 0%", "baseline 40%"],
    }
    found["parts"] = {
        part: {
            "b": {"BS": {row: cell | {"by_seed": [0.6 + 0.05 * place]} for place, row in enumerate(of_part)}}
        }
        for part, of_part in rows.items()
    }  # fmt: skip
    written = findings_of(found)
    names = [[row[0] for row in table.rows] for table in written.tables[:2]]
    assert names == [
        ["HAF, 1/4 (b)", "HAF, 1/2 (b)", "HAF, all pairs (b)", "DPO, 1/4 (b)"],
        ["HAF, 40% flipped (b)", "HAF, 10% flipped (b)", "HAF, 0% flipped (b)", "Baseline, 40% flipped (b)"],
    ]
    for part, (first, second) in {"sizes": (25, 50), "noise": (10, 30)}.items():
        lines = re.findall(r'd="([^"]*)" class="series positive"', written.figures[f"{part}-b"])
        points = [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", lines[0])]
        (x0, y0), (x1, y1), (x2, y2) = points
        assert (x2 - x1) / (x1 - x0) == pytest.approx(second / first, rel=0.01)
        assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)  # equal steps
        assert (y1 < y0) is (part == "sizes")  # upwards in a picture
        assert len(lines) == 2  # the curve, and the legend's line


def test_what_the_paper_says_is_held_to_the_sets_of_enough_prompts() -> None:
    """A lead that comes from a single set with two prompts does not agree with the paper."""
    found = compared(0.02, [0.01, 0.03])
    mean = found["comparisons"][-1]
    found["comparisons"].append(mean | {"column": study.ENOUGH, "difference": 0.001, "ci95": [-0.02, 0.06]})
    (sentence,) = findings_of(found).statements
    assert "on average by +2.0 points [+1.0, +3.0]" in sentence
    assert "of 6 prompts or more by +0.1 points [−2.0, +6.0], which can't be distinguished from 0" in sentence
    assert sentence.endswith("this neither agrees nor contradicts.")
    assert "on 1 of 1" in sentence  # the two means are not columns


def test_the_mean_of_enough_prompts_leaves_out_the_others() -> None:
    def scored(name: str, prompts: int, better: bool) -> list[PairScore]:
        margin = 1.0 if better else -1.0
        return [PairScore("m", name, f"{name}:{i}", f"{name}{i % prompts}", margin, 0.0, 5, 5, "") for i in range(40)]

    table = {"A": 40, "B": 40, "C": 2}
    scores = {
        name: {row: {0: scored(name, prompts, row == "haf" or name != "C")} for row in ("haf", "baseline")}
        for name, prompts in table.items()
    }
    found = {each["column"]: each for each in study.compare_rows("ood", "b", scores) if each["b"] == "baseline"}
    assert found["Avg"]["difference"] == pytest.approx(1 / 3)
    assert found[study.ENOUGH]["difference"] == 0
    assert list(found) == ["A", "B", "C", "Avg", study.ENOUGH]
    assert found["Avg"]["p"] is None
    assert found[study.ENOUGH]["p"] == 1
    del scores["C"]
    assert [each["column"] for each in study.compare_rows("ood", "b", scores) if each["b"] == "baseline"] == [
        "A",
        "B",
        "Avg",
    ]


def test_a_column_without_p_value_takes_no_part_in_the_correction() -> None:
    found = [{"part": "ood", "column": column, "p": p} for column, p in {"A": 0.02, "B": 0.5, "CA": None}.items()]
    study.correct(found)
    assert [each.get("p_holm") for each in found] == [0.04, 0.5, None]
    none = [{"part": "ood", "column": "CA", "p": None}]  # a part that only has sets with few prompts
    study.correct(none)
    assert "p_holm" not in none[0]


def test_two_rows_are_compared_on_the_pairs_that_both_scored() -> None:
    """One is right on everything it can read; the other also reads longer pairs and gets them wrong."""

    def scores(margins: Sequence[float | None]) -> list[PairScore]:
        return [
            PairScore("m", "d", f"d:{i}", f"g{i}", margin, None if margin is None else 0.0, 5, 5)
            for i, margin in enumerate(margins)
        ]

    reads_half = scores([1.0] * 10 + [None] * 10)
    reads_all = scores([1.0] * 10 + [-1.0] * 10)
    found = study.pair_rows(
        {"haf": {0: reads_half, 1: reads_half}, "words": {0: reads_all, 1: reads_all}}, "haf", "words"
    )
    assert found is not None
    told = found.compared()
    assert (told["n"], told["difference"], told["by_seed"]) == (10, 0, {"0": 0, "1": 0})
    cell = study.json_grid({"BS": {"haf": {0: reads_half}}})["BS"]["haf"]
    assert (cell["n"], cell["unscored"], cell["accuracy"]) == (10, 10, 1)


def test_what_is_left_out_is_counted() -> None:
    found = compared(0.02, [0.01, 0.03]) | {"seen": {"ood": {"BS→Harmless": [22, 308]}}}
    row = found["parts"]["table2"]["b"]["BS"]
    row |= {"words": row["haf"] | {"unscored": 0, "n": 8}, "frozen": row["haf"]}  # words: of pairs that all could score
    notes = findings_of(found).notes
    assert "Left out of all accuracies are test pairs longer than 512 tokens: BS 1 of 10." in notes
    assert any(note.endswith("in the training or validation pairs: BS→Harmless 22 of 308.") for note in notes)
    grid = found["parts"]["table2"]
    grid["c"] = {"BS": {"haf": grid["b"]["BS"]["haf"] | {"unscored": 4, "n": 6}}}
    notes = findings_of(found).notes
    assert "Left out of all accuracies are test pairs longer than 512 tokens: b: BS 1 of 10; c: BS 4 of 10." in notes


def test_prompts_that_were_trained_on_are_no_test(tmp_path: Path) -> None:
    """Two sets share a prompt: a model that was trained on it in one set is not tested on it in the other."""

    def file(name: str, prompts: Sequence[str]) -> str:
        rows = [{"prompt": prompt, "chosen": f"{prompt} yes", "rejected": "no"} for prompt in prompts]
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(tmp_path / name)

    sets = {
        name: SetFiles(**{split: file(f"{name}-{split}.jsonl", prompts) for split, prompts in of.items()})
        for name, of in {
            "Harmless": {"train": ["x", "y"], "validation": ["z"], "test": ["t", "u"]},
            "BS": {"train": ["t", "v"], "validation": ["u"], "test": ["w"]},
        }.items()
    }
    scale = replace(world_scale(Overrides()), sets=sets)
    pairs = load_pairs(sets["Harmless"].test, split="test").pairs
    scores = [PairScore("m", "d", pair.id, pair.group, 1.0, 0.0, 5, 5) for pair in pairs]
    assert unseen(scale, ("Harmless",), scores) == scores
    assert unseen(scale, ("BS",), scores) == []  # the one is in its training pairs, the other in its validation pairs
    another = replace(scores[0], group="another")
    assert unseen(scale, ("BS",), [another, scores[1]]) == [another]

    record = Record(tmp_path)
    record.add_scores("m", "Harmless", [another, scores[1]], kept=unseen(scale, ("BS",), [another, scores[1]]))
    (kept,), left_out = record.scores("m") or ([], None)
    assert (kept.margin, left_out) == (1.0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [["--steps", "3"], ["--max_length", "250"]])
def test_runs_of_other_options_are_not_shown_as_this_studys(
    changed: list[str], tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--sets", "BS", "--parts", "table2"]
    run_study(tmp_path, *words)
    before = (tmp_path / "world" / "study" / "results.json").read_bytes()
    assert main(["reproduce", "study", "--out", str(tmp_path), *TINY, *words, *changed]) == 2
    assert "contains a run with other options" in capfd.readouterr().err
    assert (tmp_path / "world" / "study" / "results.json").read_bytes() == before


@pytest.mark.parametrize(("rate", "said"), [(0.001, "the lowest"), (0.002, None), (0.003, "the highest"), (None, None)])
def test_a_rate_at_the_edge_of_those_tried_is_named(rate: float | None, said: str | None) -> None:
    told = compared(0.02, [0.01, 0.03])
    told["rates"]["b"]["haf"] |= {"marks": {"0.001": 0.6, "0.002": 0.7, "0.003": None}, "rate": rate}
    notes = [note for note in findings_of(told).notes if "At the edge" in note]
    assert len(notes) == (said is not None)
    assert all(f"HAF (b), {said}" in note for note in notes)


def test_more_seeds_may_choose_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first seed alone would choose the lower rate, by chance, as the other seeds show."""
    few = {"backbones": ("base",), "sets": ("BS",), "seeds": (0, 1, 2), "parts": ("table2",)}
    asked = job(tmp_path, rates=(1e-3, 1e-2), rate_seeds=2, **few)
    found = {}
    for todo in stages.search(asked, "base"):
        low = todo.job.scale.backbone("base").learning_rates[todo.run.method] == 1e-3
        found[todo.folder] = 0.6 if not low else 0.65 if todo.run.seed == 0 else 0.5
    assert len(found) == 2 * 3 * 2
    marked(asked, found)
    first = replace(asked, rate_seeds=1)
    for these, rate in ((first, 1e-3), (asked, 1e-2)):
        at = stages.at_chosen_rates(these, "base")
        assert at is not None
        assert set(at.scale.backbone("base").learning_rates.values()) == {rate}


@pytest.mark.parametrize(("seeds", "said"), [(1, "the first seed"), (2, "the first 2 seeds"), (3, "all seeds")])
def test_the_seeds_that_chose_the_rates_are_named(seeds: int, said: str) -> None:
    told = compared(0.02, [0.01, 0.03]) | {"rate_seeds": seeds, "seeds": [0, 1, 2]}
    found = findings_of(told)
    assert any(f"on every set with {said}, and keeps" in note for note in found.notes)
    assert (
        f"of each rate, {said}, mean over sets"
        in next(t for t in found.tables if t.title == "Learning rates").header[1]
    )


def test_rates_that_were_not_chosen_are_not_said_to_be() -> None:
    told = compared(0.02, [0.01, 0.03])
    (note,) = (note for note in findings_of(told).notes if "every method tries the same rates" in note)
    assert "failed" not in note
    told["rates"]["b"]["haf"]["failed"] = ["0.001"]
    assert any("at which a run failed is not chosen" in note for note in findings_of(told).notes)
    told["rates"]["b"]["haf"]["marks"] = {}
    found = findings_of(told)
    assert not any("every method tries" in note for note in found.notes)
    assert any("rates were not chosen" in note for note in found.notes)
    assert ("HAF (b)", "none was tried", "0.001") in next(t for t in found.tables if t.title == "Learning rates").rows


def test_columns_on_the_same_prompts_are_drawn_together() -> None:
    """The same column twice adds no information; a column with other prompts does."""

    def column(prompts: str) -> Paired:
        hits = {f"{prompts}{i}": float(i % 3 == 0) for i in range(60)}
        groups = {pair: pair for pair in hits}
        ours, theirs = (
            Measured((0.0,), {pair: value(hit) for pair, hit in hits.items()}, groups, 0.5)
            for value in (lambda hit: hit, lambda hit: 0.4)
        )
        return Paired(ours, theirs, (0,))

    def width(*columns: Paired) -> float:
        low, high = mean_compared(columns)["ci95"]
        return high - low

    one = width(column("a"))
    assert width(column("a"), column("a")) == pytest.approx(one)
    assert width(column("a"), column("b")) == pytest.approx(one / 2**0.5, rel=0.1)


def test_a_set_of_few_prompts_has_no_interval_and_its_pairs_are_drawn_for_the_mean() -> None:
    """One model is always ahead on a thousand pairs of two prompts, which says nothing about other prompts."""
    hits = {f"pair{i}": 1.0 for i in range(1000)}
    groups = {pair: "a" if pair[-1] in "01234" else "b" for pair in hits}
    ours = Measured((1.0,), hits, groups, 0.5)
    theirs = Measured((0.5,), {pair: float(i % 2) for i, pair in enumerate(hits)}, groups, 0.5)
    few = Paired(ours, theirs, (0,))
    assert ours.ci95 is None
    assert ours.as_dict()["prompts"] == 2
    found = few.compared()
    assert (found["difference"], found["ci95"], found["p"]) == (0.5, None, None)
    low, high = mean_compared([few, few])["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 1000) ** 0.5, rel=0.15)  # as for 1,000 independent pairs
    told = compared(0.02, [0.01, 0.03])
    told["parts"]["table2"]["b"]["BS"]["haf"]["prompts"] = 2
    assert any("fewer than 6 prompts (BS: 2)" in note for note in findings_of(told).notes)


def test_what_is_published_is_read_by_name(tmp_path: Path, checkout: Path) -> None:
    written = publish(compared(0.02, [0.01, 0.03]), checkout)
    assert {path.name for path in written} == {"results.json", "study.md", "table2-b.svg", "README.md"}
    readme = (checkout / "README.md").read_text()
    written = publish(compared(0.5, [0.4, 0.6]), checkout, "study-two-words")
    assert {str(path.relative_to(checkout)) for path in written} == {
        "docs/results/study-two-words/results.json",
        "docs/results/study-two-words/table2-b.svg",
        "docs/results/study-two-words.md",
    }
    text = (checkout / "docs/results/study-two-words.md").read_text()
    assert text.startswith("# The study: two words\n")
    assert "(study-two-words/table2-b.svg)" in text
    assert (checkout / "README.md").read_text() == readme  # only the main page changes the README
    with pytest.raises(ConfigError, match=r"no README\.md"):
        publish(compared(0.02, [0.01, 0.03]), tmp_path)
    (checkout / "README.md").write_text("# no place for a table")
    publish(compared(0.5, [0.4, 0.6]), checkout, "study-two-words")
    with pytest.raises(ConfigError, match=r"README\.md has no lines <!-- study"):
        publish(compared(0.02, [0.01, 0.03]), checkout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--page", "study-x"], "page has no effect without publish"),
        (["--page", "../README", "--publish", "."], "is neither study nor study-"),
        (["--page", "world", "--publish", "."], "is neither study nor study-"),
    ],
)
def test_a_page_that_nobody_could_find_is_refused(
    words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "study", "--out", str(tmp_path), *words, "--dry_run"]) != 0
    assert said in capfd.readouterr().err


@pytest.mark.slow
def test_options_that_can_not_work_take_no_rate_out_of_the_choice(tiny_world: Path, tmp_path: Path) -> None:
    """The backbone has 512 positions: the first command ends at its first run, which the second one trains."""
    words = ["--sets", "BS", "--parts", "table2", "--learning_rates", "1e-4", "1e-3"]
    too_long = [*TINY, *words, "--max_length", "600"]
    assert main(["reproduce", "study", "--out", str(tmp_path), *too_long]) == 2
    found = run_study(tmp_path, *words, "--max_length", "500")
    for choice in found["rates"]["instruct"].values():
        assert choice["failed"] == []
        assert None not in choice["marks"].values()
    assert found["missing"] == ["nothing is missing"]


@pytest.mark.slow
def test_options_are_compared_before_anything_is_done(
    tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The mixture comes last: it is refused even though the time would be up after the first run."""
    run_study(tmp_path, "--parts", "mixed")
    words = ["reproduce", "study", "--out", str(tmp_path), *TINY, "--parts", "table2", "mixed", "--steps", "3"]
    assert main([*words, "--hours", "0.0000001"]) == 2
    assert "training.max_steps (was 2, now 3)" in capfd.readouterr().err
    assert not (tmp_path / "world/runs/instruct/BS").exists()
    assert main([*words, "--dry_run"]) == 0
    printed = capfd.readouterr().out
    assert "[other options: training.max_steps (was 2, now 3)] instruct/Harmless+BS/haf-seed0" in printed
    assert "3 runs were made with other options" in printed
    assert "nothing is missing" not in printed


@pytest.mark.slow
def test_runs_at_rates_that_are_not_chosen_are_not_finished(
    tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--sets", "BS", "--parts", "table2"]
    run_study(tmp_path, *words)
    tuned = [*words, "--learning_rates", "1e-4", "1e-3", "--dry_run"]
    capfd.readouterr()
    assert main(["reproduce", "study", "--out", str(tmp_path), *TINY, *tuned]) == 0
    printed = capfd.readouterr().out
    assert "table2, instruct: 3 runs at rates that are still to be chosen" in printed
    assert "[finished]" not in printed
    assert "missing: 3 of 3 runs of table2" in printed


def test_runs_that_failed_take_no_time_unless_they_are_tried_again(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> None:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(Run, "make", failing)
    words = ["reproduce", "study", "--scale", "small", "--backbone", str(tiny_world), "--backbones", "base"]
    words += ["--data_folder", str(small_files(tmp_path / "data")), "--steps", "1", "--max_length", "256"]
    words += ["--sets", "BS", "--parts", "table2", "--out", str(tmp_path)]
    assert main(words) == 0
    capfd.readouterr()
    for more, hours in (([], False), (["--retry"], True)):
        assert main([*words, *more, "--dry_run"]) == 0
        printed = capfd.readouterr().out
        assert "[failed: the loss is not finite] base/BS/haf-seed0" in printed
        assert "all that is missing" in printed
        assert ("hours" in printed) is hours


def test_what_another_process_tried_in_vain_is_not_tried_again(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that failed since this process started is not retried; `retry` retries earlier failures."""
    asked = job(tmp_path, backbones=("instruct",), sets=("BS",), seeds=(0,))
    asked = replace(asked, parts=("table2",), retry=True)
    journal = journal_of(asked)
    for method in ("haf", "dpo"):
        journal.write(f"instruct/BS/{method}-seed0", "failed", reason="in an earlier command")
    tried: list[str] = []

    def failing(run: Run, job: Job) -> Path:
        tried.append(run.method)
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(Run, "make", failing)
    worker = executor.Worker(asked, lambda line: None)
    journal.write("instruct/BS/haf-seed0", "failed", reason="by the other one")
    worker.work()
    assert tried == ["baseline", "dpo"]


@pytest.mark.parametrize("keeps", [False, True], ids=["with weights", "results alone"])
def test_each_run_is_trained_once_and_leaves_what_was_asked_for(
    keeps: bool, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline is best at the low rate, the others at the high one; only the first seed tries both."""
    asked = job(tmp_path, backbones=("instruct",), sets=("BS",), seeds=(0, 1), parts=("table2",))
    asked = replace(asked, rates=(1e-4, 1e-3), keep=tmp_path / "kept" if keeps else None)
    made: list[str] = []

    def trained(run: Run, job: Job) -> Path:
        made.append(str(run.folder(job).relative_to(job.root / "runs/instruct/BS")))
        best = run.learning_rate(job) == (1e-4 if run.method == "baseline" else 1e-3)
        effective = {"bf16": False, "fp16": False, "dtype": "float32", "device": "cpu"}
        manifest = {"format": 1, "status": "finished", "config": {}, "data": {}, "started": "", "git_revision": None}
        manifest |= {"eval_metrics": {"eval_rewards/accuracies": 0.6 + best / 10}, "versions": {}}
        (run.folder(job) / "checkpoint-9").mkdir(parents=True)
        save_manifest(manifest | {"effective": effective}, run.folder(job))
        return run.folder(job)

    def scored(scoring: Scoring, job: Job) -> Path:
        rows = [PairScore("m", "d", f"d:{row}", f"g{row}", 1.0, 0.0, 5, 5) for row in range(3)]
        scoring.folder(job).mkdir(parents=True)
        (scoring.folder(job) / "scores.jsonl").write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
        return scoring.folder(job)

    monkeypatch.setattr(Run, "make", trained)
    monkeypatch.setattr(Run, "changed", lambda run, job, **_: "")
    monkeypatch.setattr(Scoring, "make", scored)
    for _ in range(2):  # the second command has nothing to do
        executor.Worker(asked, lambda line: None).work()
    tried = [f"{method}-seed0-lr{rate}" for rate in ("0.0001", "0.001") for method in ("haf", "baseline", "dpo")]
    chosen = {"haf": "0.001", "baseline": "0.0001", "dpo": "0.001"}
    assert sorted(made) == sorted([*tried, *(f"{method}-seed1-lr{rate}" for method, rate in chosen.items())])
    assert list(stages.missing(asked)) == ["nothing is missing"]
    left = sorted(path.parent.name for path in (asked.root / "runs").rglob("manifest.json"))
    assert left == ([] if keeps else sorted(made))
    assert not list((asked.root / "runs").rglob("checkpoint-*"))
    events = [entry.event for entry in journal_of(asked).entries()]
    assert (events.count("started"), events.count("finished")) == (9 + 6, 9 + 6)


@pytest.mark.slow
def test_a_kill_after_training_leaves_no_checkpoints(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    words = ["--sets", "BS", "--parts", "table2"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "shutil", SimpleNamespace(rmtree=killed))
        assert main(["reproduce", "study", "--out", str(tmp_path), *TINY, *words]) == 130
    assert list((tmp_path / "world/runs").rglob("checkpoint-*"))
    run_study(tmp_path, *words)
    assert not list((tmp_path / "world/runs").rglob("checkpoint-*"))


def test_a_half_line_takes_no_other_with_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.jsonl")
    journal.write("a", "started")
    before = journal.length
    with journal.path.open("ab") as file:
        file.write(b'{"what": "b", "event": "sta')
    journal.write("c", "failed", reason="row 3: \u2028 and \x85 are no ends of lines")
    journal.write("d", "finished")
    assert [entry.what for entry in journal.entries()] == ["a", "c", "d"]
    assert set(journal.last(since=before)) == {"c", "d"}


def repaired(folder: Path, word: str) -> None:
    """Add a word to the responses of a folder's files; prompts and row numbers stay the same."""
    for path in folder.glob("pku_safe-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["chosen"][0]["content"] += f" {word}"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_what_is_made_of_data_is_made_anew_where_they_changed(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The study is killed after the bag of words; files are then corrected, first with no runs, then with three."""
    data = small_files(tmp_path / "data")
    words = ["reproduce", "study", "--scale", "small", "--backbone", str(tiny_world), "--backbones", "base"]
    words += ["--data_folder", str(data), "--steps", "1", "--max_length", "256", "--pairs", "6", "--sets", "BS"]
    words += ["--parts", "table2", "--out", str(tmp_path / "o")]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "make", killed)
        assert main(words) == 130

    def lengths() -> list[int]:
        (scores, _) = Record(tmp_path / "o/small/study").scores("words/BS-of6-256tokens") or ([], 0)
        return [score.length_chosen for score in scores]

    before = lengths()
    repaired(data, "mended")
    capfd.readouterr()
    assert main(words) == 0
    assert (tmp_path / "o/small/cuts/BS-1of1-of6.jsonl").read_text().count("mended") == 6
    assert lengths() != before
    assert main(words) == 0
    assert capfd.readouterr().err.count("fitting words/BS") == 1
    repaired(data, "again")
    assert main([*words, "--dry_run"]) == 0
    assert "[other options: data (was" in capfd.readouterr().out
    assert main(words) == 2
    assert "contains a run with other options: data (was" in capfd.readouterr().err


@pytest.mark.slow
def test_a_studys_root_and_its_data_may_be_moved(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_files(tmp_path / "data")
    words = ["reproduce", "study", "--scale", "small", "--backbone", str(tiny_world), "--backbones", "base"]
    words += ["--steps", "1", "--max_length", "256", "--pairs", "6", "--sets", "BS", "--parts", "table2"]
    assert main([*words, "--data_folder", "data", "--out", "o"]) == 0
    (tmp_path / "data").rename(tmp_path / "sets")
    (tmp_path / "o").rename(tmp_path / "moved")
    capfd.readouterr()
    moved = [*words, "--data_folder", str(tmp_path / "sets"), "--out", str(tmp_path / "moved")]
    assert main([*moved, "--dry_run"]) == 0
    assert "nothing is missing" in capfd.readouterr().out
    assert main(moved) == 0
    journal = Journal(tmp_path / "moved/small/study/runs.jsonl")
    assert sum(entry.event == "started" for entry in journal.entries()) == 6  # three runs and their scores, once
