"""Plans: what each experiment needs, shared runs, and scales."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.cli import main, train
from hafrm.cli.options import options_of
from hafrm.data import load_pairs
from hafrm.errors import ConfigError
from hafrm.models.options import Method
from hafrm.paper import numbers, runs
from hafrm.paper.executor import described
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.plans import PARTS, Plan, single_sets
from hafrm.paper.presets import PAPER_MODELS, paper_scale, small_scale, world_scale
from hafrm.paper.probes import claims
from hafrm.paper.probes.inequality import Claim
from hafrm.paper.runs import Policy, Run
from hafrm.paper.scales import Job, Overrides, Scale, in_paper_order
from hafrm.training.config import TrainConfig
from hafrm.training.manifest import is_finished
from hafrm.training.run import train as real_train
from tests.paths import SHARED
from tests.tiny import some_pairs

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"


def job(scale: Scale | None = None, **values: object) -> Job:
    scale = scale or world_scale(Overrides())
    asked = {"backbones": (scale.backbone().name,), "sets": numbers.SETS, "seeds": (0,), "out": Path("o")}
    asked |= {"parts": tuple(PARTS)} | values
    return Job(scale=scale, **asked)  # type: ignore[arg-type]


def plan_of(name: str, **values: object) -> Plan:
    return EXPERIMENTS[name].plan(job(**values))  # type: ignore[arg-type]


def trained(scale: Scale, method: Method, sets: list[str], out: Path) -> Path:
    """The folder of a finished run on the scale's first backbone."""
    run = Run(backbone=scale.backbone().name, sets=in_paper_order(sets), method=method)
    return run.make(job(scale, out=out))


def test_table_2_trains_fifteen_runs_and_tests_each_at_home() -> None:
    plan = plan_of("table2")
    assert len(plan.runs) == len(set(plan.runs)) == 15
    assert all(run.sets == each.tested_on for each in plan.scorings for run in each.runs)
    assert len(plan_of("table2", seeds=(0, 1), backbones=("instruct", "base")).runs) == 60


def test_figure_3_adds_one_run_a_method_to_table_2() -> None:
    plan = plan_of("figure3")
    assert len(plan.runs) == 18
    assert set(plan_of("table2").runs) < set(plan.runs)
    assert {run.sets for run in plan.runs if len(run.sets) > 1} == {numbers.SETS}
    with pytest.raises(ConfigError, match="two or more"):
        plan_of("figure3", sets=("BS",))


def test_table_3_tests_within_the_category_and_needs_no_further_run() -> None:
    plan = plan_of("table3")
    assert set(plan.runs) == set(plan_of("table2").runs)
    tested = {each.runs[0].sets[0]: set(each.tested_on) for each in plan.scorings}
    assert tested == {
        "AHP": {"CA", "Helpful"},
        "CA": {"AHP", "Helpful"},
        "Helpful": {"AHP", "CA"},
        "BS": {"Harmless"},
        "Harmless": {"BS"},
    }


def test_figure_6_sweeps_the_ratio_and_shares_the_runs_at_0_and_a_fifth() -> None:
    plan = plan_of("figure6")
    shared = set(plan_of("table2").runs) & set(plan.runs)
    assert {run.method for run in shared} == {"baseline", "haf"}
    ratios = {run.config(job()).resolved_loss.policy_ratio for run in plan.runs}
    assert ratios == {-0.2, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0}


def test_names_of_runs_are_folders_of_their_own() -> None:
    asked = job(seeds=(0, 1))
    runs = [run for each in EXPERIMENTS.values() for run in each.plan(asked).runs]
    assert len({run.folder(asked) for run in runs}) == len(set(runs))


@pytest.mark.parametrize(
    "scale", [world_scale(Overrides()), paper_scale(Overrides(early_stopping=3))], ids=["world", "paper"]
)
def test_a_plans_commands_are_the_runs_themselves(scale: Scale) -> None:
    asked = job(scale, backbones=tuple(scale.backbones))
    parser = train.parser()
    mixture = Run(backbone=scale.backbone().name, sets=("Helpful", "BS"), method="dpo", seed=1)
    for run in (mixture, *EXPERIMENTS["figure6"].plan(asked).runs):
        config = run.config(asked, model=scale.backbone(run.backbone).shown)
        words = shlex.split(run.command(asked))
        assert options_of(TrainConfig, parser, parser.parse_args(words[2:])) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_configs_are_the_paper_scales(path: Path) -> None:
    scale = paper_scale(Overrides())
    parser = train.parser()
    words = ["--config", str(path), "--data", "hh-harmless", "--eval_data", "hh-harmless", "--out", "o"]
    shipped = options_of(TrainConfig, parser, parser.parse_args(words))
    run = Run(backbone=path.stem, sets=("Harmless",), method="haf")
    planned = replace(run.config(job(scale), model=PAPER_MODELS[path.stem][0]), out="o")
    template = planned.chat_template and str(Path(planned.chat_template).relative_to(CONFIGS.parents[1]))
    planned = replace(planned, chat_template=template)
    assert asdict(shipped) | {"training": {"seed": 0} | shipped.training} == asdict(planned)


def test_the_papers_learning_rates() -> None:
    rates = {
        (name, method): rate
        for name, backbone in paper_scale(Overrides()).backbones.items()
        for method, rate in backbone.learning_rates.items()
    }
    low = {name for name, rate in rates.items() if rate == 1e-5}
    assert low == {("phi-2", m) for m in ("haf", "baseline", "dpo")} | {("mistral-instruct", "baseline")}
    assert {rate for name, rate in rates.items() if name not in low} == {3e-5}
    assert set(paper_scale(Overrides()).backbones) == {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.slow
def test_a_dry_run_shows_every_run_and_makes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for scale, count in (("world", 18), ("paper", 18)):
        words = ["reproduce", "figure3", "--scale", scale, "--out", str(out), "--dry_run"]
        assert main(words) == 0
        printed = capfd.readouterr().out
        assert f"{count} training runs, of which 0 are finished" in printed
        assert printed.count("hafrm train --model") == count
        assert printed.count("[missing]") == count + 6
    assert "microsoft/phi-2" in printed
    assert not out.exists()


def test_small_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--backbone FOLDER and --data_folder"):
        small_scale(Overrides(), backbones=[], data_folder=None)
    with pytest.raises(ConfigError, match=r"qa_eval-train\.jsonl\.gz is missing"):
        small_scale(Overrides(), backbones=["m"], data_folder=str(tmp_path))
    for folder in ("", "/"):
        with pytest.raises(ConfigError, match="has no name to keep runs by"):
            small_scale(Overrides(), backbones=[folder], data_folder=str(tmp_path))


def test_a_backbones_name_is_its_folders_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = small_files(tmp_path / "data")
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine" / "deep")
    for folder, name in ((".", "deep"), ("..", "mine")):
        assert next(iter(small_scale(Overrides(), backbones=[folder], data_folder=str(data)).backbones)) == name
    words = ["--scale", "small", "--data_folder", str(data), "--dry_run"]
    for folder, told in (("..", False), ("no/such", True)):
        assert main(["reproduce", "table2", *words, "--backbone", folder]) == 0
        assert ("taken for a model of the hub" in capfd.readouterr().err) is told


def test_small_finds_the_real_sets() -> None:
    if not (SHARED / "data").exists():
        pytest.skip("needs the real preference data")
    scale = small_scale(Overrides(), backbones=["some/model"], data_folder=str(SHARED / "data"))
    config = single_sets(job(scale)).runs[0].config(job(scale))
    assert config.data == [str(SHARED / "data" / "qa_eval-train.jsonl.gz")]
    assert scale.backbone().name == "model"


def small_files(folder: Path) -> Path:
    folder.mkdir()
    for place, name in enumerate(("qa_eval", "hh_harmless", "arguments", "pku_safe", "alpaca_gpt4")):
        for split in ("train", "validation", "test"):
            rows = [pair.as_row() for pair in some_pairs(8 + 2 * place)]
            (folder / f"{name}-{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_a_mixture_of_files_is_even_and_written_once(tiny_world: Path, tmp_path: Path) -> None:
    overrides = Overrides(steps=1, max_length=256)
    scale = small_scale(overrides, backbones=[str(tiny_world)], data_folder=str(small_files(tmp_path / "data")))
    folder = trained(scale, "baseline", ["BS", "Helpful"], tmp_path / "out")
    assert folder == tmp_path / "out/small/runs/base/Helpful+BS/baseline-seed0"
    files = sorted((tmp_path / "out/small/mixtures/Helpful+BS").glob("*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in files] == [8, 8, 8, 8]
    few = small_scale(replace(overrides, pairs=3), backbones=[str(tiny_world)], data_folder=str(tmp_path / "data"))
    run = Run(backbone="base", sets=("Helpful", "BS"), method="baseline")
    asked = job(few, out=tmp_path / "out")
    run.data(asked).write()
    config = run.config(asked)
    assert [len(Path(path).read_text().splitlines()) for path in (*config.data, *config.eval_data)] == [3, 3, 8, 8]
    assert is_finished(folder)
    written = (folder / "manifest.json").read_bytes()
    assert trained(scale, "baseline", ["Helpful", "BS"], tmp_path / "out") == folder
    assert (folder / "manifest.json").read_bytes() == written


def test_a_run_of_other_options_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    trained(world_scale(Overrides(steps=1)), "baseline", ["BS"], tmp_path)
    with pytest.raises(ConfigError, match=r"training.max_steps \(was 1, now 2\). Choose another --out"):
        trained(world_scale(Overrides(steps=2)), "baseline", ["BS"], tmp_path)
    with pytest.raises(ConfigError, match="no phi-2"):
        world_scale(Overrides(steps=1)).backbone("phi-2")
    with pytest.raises(ConfigError, match="Sums is none of Helpful"):
        in_paper_order(["Sums"])


def test_plans_add_up_without_doubles() -> None:
    plan = plan_of("table2")
    assert plan + plan == plan
    (line,) = described(job(), Plan())
    assert "nothing to train" in line


def test_backbones_stand_beside_the_papers() -> None:
    names = {each.paper_name for each in (*world_scale(Overrides()).backbones.values(),)}
    assert names <= set(numbers.BACKBONES)
    assert {each.paper_name for each in paper_scale(Overrides()).backbones.values()} == set(numbers.BACKBONES)


def test_the_names_here_are_those_that_the_command_lists(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table12"]) == 2
    error = capfd.readouterr().err
    assert all(re.search(rf"\b{name} \(", error) for name in EXPERIMENTS)


def test_a_dry_run_says_which_runs_the_command_would_refuse(
    tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained(world_scale(Overrides(steps=1)), "baseline", ["BS"], tmp_path)
    words = ["reproduce", "table2", "--scale", "world", "--sets", "BS", "--backbones", "instruct", "--dry_run"]
    for steps, state in (("1", "finished"), ("2", "other options: training.max_steps (was 1, now 2)")):
        assert main([*words, "--out", str(tmp_path), "--steps", steps]) == 0
        assert f"[{state}] instruct/BS/baseline-seed0" in capfd.readouterr().out


def test_files_may_move_but_other_models_and_data_make_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name identifies a model; before it is made, as in a dry run, any of the backbone's will do."""
    asked = job(world_scale(Overrides()), out=tmp_path)
    run = Run(backbone="instruct", sets=("BS",), method="haf")
    policy = Policy(backbone="instruct", sets=("BS",), rewarded_by="haf", seed=0)
    names = {part: {"sources": [{"name": "", "sha256": "", "kept": 0}]} for part in ("train", "eval")}
    manifest = {"format": 1, "status": "finished", "data": names, "config": asdict(run.config(asked, model="/a/m-1"))}
    atomic.write_json(run.folder(asked) / "manifest.json", manifest)
    config = asdict(policy.config(asked, model="/a/m-1"))
    atomic.write_json(policy.folder(asked) / "manifest.json", manifest | {"config": config})
    monkeypatch.setattr(Job, "model", lambda self, backbone: "/b/m-1")
    assert run.changed(asked) == ""
    monkeypatch.setattr(Job, "model", lambda self, backbone: "/b/m-2")
    for each in (run, policy):
        assert each.changed(asked) == "model (was /a/m-1, now /b/m-2)"
        assert each.changed(asked, shown=True) == ""
    monkeypatch.setattr(Job, "model", lambda self, backbone: "/a/m-1")
    data = {"config": manifest["config"] | {"data": ["world/helpful"]}}
    atomic.write_json(run.folder(asked) / "manifest.json", manifest | data)
    assert run.changed(asked) == "data (was world/helpful, now world/safe)"
    atomic.write_json(run.folder(asked) / "manifest.json", manifest | {"data": {}} | data)
    assert run.changed(asked) == "data (was ['world/helpful'], now ['world/safe'])"


def test_a_cap_holds_for_the_worlds_mixture() -> None:
    run = Run(backbone="instruct", sets=("Helpful", "BS"), method="haf")
    for cap, data in ((5, ["world/helpful[:5]", "world/safe[:5]"]), (900, ["world/helpful[:800]", "world/safe[:800]"])):
        config = run.config(job(world_scale(Overrides(pairs=cap))))
        assert config.data == data
        assert config.eval_data == ["world/helpful[:80]", "world/safe[:80]"]


def test_a_policy_finds_the_pairs_of_a_capped_set(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reward model, which would have written them, is trained before it."""
    read: list[int] = []
    monkeypatch.setattr(runs, "rlhf", lambda config: read.append(len(load_pairs(config.data).pairs)))
    policy = Policy(backbone="instruct", sets=("BS",), rewarded_by=None, seed=0)
    policy.make(job(world_scale(Overrides(pairs=5)), out=tmp_path))
    assert read == [5]


def test_the_claims_training_pairs_are_the_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run_claims(mates: object, data: list[str], *_: object, **__: object) -> Claim:
        asked.append(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(claims, "run_claims", run_claims)
    capped = job(world_scale(Overrides(pairs=5)), sets=("BS",))
    with pytest.raises(KeyboardInterrupt):
        claims.find(capped)
    (run, *_) = claims.plan(capped).runs
    assert asked == [run.config(capped).data] == [["o/world/cuts/BS-1of1-of5.jsonl"]]


def test_a_run_that_another_command_trains_is_waited_for(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process holds the lock, nothing is trained; once it is released, the run is checked again."""
    scale = world_scale(Overrides(steps=1))
    run = Run(backbone="instruct", sets=("BS",), method="baseline")
    asked = job(scale, out=tmp_path)
    config = run.config(asked, model=str(tiny_world))
    calls: list[str] = []

    def trains(config: TrainConfig, **_: object) -> None:
        calls.append(config.out)
        time.sleep(0.5)
        monkeypatch.setattr(runs, "is_finished", lambda folder: True)

    monkeypatch.setattr(runs, "train", trains)
    commands = [threading.Thread(target=run.make, args=(asked,)) for _ in range(2)]
    for each in commands:
        each.start()
        time.sleep(0.1)
    with pytest.raises(ConfigError, match="Another command"):
        real_train(config)
    for each in commands:
        each.join()
    assert calls == [config.out]
