"""Figure 5 from its command to its files in a tiny world, and its hand-worked sums."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from hafrm.cli import main
from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeOptions
from hafrm.paper import pessimism, policies, runs, selections
from hafrm.paper.duels import Duel, duel_hits
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.policies import Judged, averaged, learnt, points_of
from hafrm.paper.presets import paper_scale, world_scale
from hafrm.paper.runs import Policy
from hafrm.paper.scales import Overrides
from hafrm.rlhf.checkpoints import Answers
from hafrm.rlhf.options import KlOptions, RlhfConfig, SamplingOptions
from hafrm.sampling.options import SampleOptions
from hafrm.training.manifest import is_finished
from tests.judging.server import longer_wins, serving
from tests.models.test_reward_models import classifier
from tests.paper.recorded import require_intervals_of_the_record
from tests.paper.test_plans import job, small_files

TINY = ["--scale", "world", "--steps", "2", "--sets", "Harmless", "AHP"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, few prompts and short answers; prompts are more tokens here, as each byte is one."""
    shorter = {
        "steps": 2,
        "checkpoints": 2,
        "batch_size": 4,
        "max_prompt_tokens": 400,
        "sampling": SamplingOptions(max_new_tokens=6),
    }
    monkeypatch.setattr(runs, "WORLD_PPO", {**runs.WORLD_PPO, **shorter})
    monkeypatch.setattr(policies, "PROMPTS", 6)


@pytest.mark.slow
def test_figure_5_from_its_command_to_its_files(
    tiny_world: Path, short: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "figure5", "--out", str(tmp_path), *TINY]
    assert main([*words, "--dry_run"]) == 0
    planned = capfd.readouterr().out
    assert "4 training runs, of which 0 are finished" in planned
    assert "4 policies" in planned
    assert planned.count("hafrm rlhf") == 4
    assert main(words) == 0
    root = tmp_path / "world"
    for category, name in (("Safety", "Harmless"), ("Chat", "AHP")):
        duel = json.loads((root / "figure5" / "results.json").read_text())["duels"]["instruct"][category]
        assert list(duel["win_rate"]) == ["0", "1", "2"]
        start = duel["win_rate"]["0"]
        assert start["value"] == 0.5  # the same model draws with the same random numbers
        assert all(cell["ci95"][0] <= cell["value"] <= cell["ci95"][1] for cell in duel["win_rate"].values())
        for rival in ("haf", "baseline"):
            assert duel["policies"][rival]["0"]["kl"] == pytest.approx(0, abs=1e-4)
            assert duel["policies"][rival]["2"]["kl"] != pytest.approx(0, abs=1e-6)
            assert is_finished(root / "policies" / "instruct" / name / f"{rival}-seed0")
    table = (root / "figure5" / "table.md").read_text()
    assert "| Safety, HAF |" in table
    assert "| step | HAF wins, % |" in table
    for name in ("figure5-instruct", "figure5-gold-instruct", "figure5-over-optimisation-instruct"):
        assert (root / "figure5" / f"{name}.svg").read_text().startswith("<svg")
    answers = sorted((root / "answers").rglob("*.json"))
    before = [path.stat().st_mtime_ns for path in answers]
    assert len(answers) == 4
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in answers] == before


def test_the_planned_command_makes_the_same_run(tmp_path: Path) -> None:
    """The command, parsed back, gives the policy's options, including all that the world changes."""
    from hafrm.cli import rlhf
    from hafrm.cli.options import options_of

    policy = Policy(backbone="instruct", sets=("BS", "Harmless"), rewarded_by="haf", seed=2)
    asked = job(world_scale(Overrides()), out=tmp_path)
    config = policy.config(asked, model=asked.scale.backbone("instruct").shown)
    parser = rlhf.parser()
    words = shlex.split(policy.command(asked))
    assert options_of(RlhfConfig, parser, parser.parse_args(words[2:])) == config


def test_the_paper_scale_has_the_papers_settings(tmp_path: Path) -> None:
    policy = Policy(backbone="mistral-instruct", sets=("BS", "Harmless"), rewarded_by="haf", seed=0)
    config = policy.config(job(paper_scale(Overrides()), out=tmp_path), model="m")
    assert (config.batch_size, config.learning_rate, config.steps * config.batch_size) == (16, 2e-5, 100_000)
    assert (config.sampling.max_new_tokens, config.sampling.top_p, config.lora.rank) == (256, 0.9, 64)
    assert config.kl == KlOptions()


def test_win_rates_and_gains_by_hand() -> None:
    """Three prompts, two seeds: HAF wins one, ties one, and of the third wins in one seed of two."""

    def judged(gold: list[float]) -> Judged:
        return Judged(Answers(0, ["x"] * 3, [1.0, 2.0, 3.0], [4, 5, 6]), gold, [0.0] * 3)

    ours, theirs = [[2.0, 1.0, 3.0], [2.0, 1.0, 0.0]], [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]
    hits = [duel_hits(judged(a), judged(b)) for a, b in zip(ours, theirs, strict=True)]
    assert averaged(hits) == (1.0, 0.5, 0.5)
    first, last = points_of([[judged(before), judged(after)] for before, after in zip(theirs, ours, strict=True)])
    assert (first.kl, first.length, last.gold_by_seed) == (2.0, 5.0, (2.0, 1.0))
    duel = Duel({"haf": (first, last), "baseline": (first, first)}, {0: (1.0, 0.5, 0.5)}, {0: (2, 0)})
    assert duel.win_rates[0][0] == pytest.approx(2 / 3)
    gain = learnt((first, last))
    assert gain["gain"] == pytest.approx((1 + 0 - 0.5) / 3)
    assert gain["by_seed"] == pytest.approx((2 / 3, -1 / 3))
    assert gain["ci95"] is None  # there are only three prompts


def test_ppo_alone_from_its_command_to_its_files(tiny_world: Path, short: None, tmp_path: Path) -> None:
    words = ["reproduce", "ppo", "--out", str(tmp_path), "--seeds", "0", "1", "--sets", "Helpful"]
    assert main(words) == 0
    results = json.loads((tmp_path / "world" / "ppo" / "results.json").read_text())
    found = results["learnt"]["instruct"]
    assert len(found["by_seed"]) == 2
    assert found["ci95"][0] <= found["gain"] <= found["ci95"][1]
    assert list(results["steps"]["instruct"]) == ["0", "1", "2"]
    assert (tmp_path / "world" / "policies" / "instruct" / "Helpful" / "oracle-seed1" / "metrics.jsonl").exists()
    require_intervals_of_the_record(tmp_path / "world" / "ppo")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openai", "reward"])
def test_figure_5_on_files_with_a_judge(
    kind: str, short: None, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is an endpoint that prefers the longer answer and once says nothing, or a reward model."""
    apart = {"learning_rate": 0.1}  # equal answers tie without a question to the endpoint
    monkeypatch.setattr(runs, "SMALL_PPO", {**runs.WORLD_PPO, **apart})
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    words = ["reproduce", "figure5", "--scale", "small", "--backbone", str(tiny_world), "--backbones", "base"]
    words += ["--data_folder", str(small_files(tmp_path / "data")), "--sets", "AHP", "--steps", "1"]
    words += ["--max_length", "256", "--out", str(tmp_path / "o")]

    def reply(user: str) -> str:
        return "I can't say." if "question 2 " in user else longer_wins(user)

    with serving(reply) as endpoint:
        judge = ["--judge.kind", kind, "--judge.model", "m" if kind == "openai" else str(classifier(tmp_path / "rm"))]
        if kind == "openai":
            judge += ["--judge.base_url", endpoint.url, "--judge.cache", str(tmp_path / "replies.sqlite")]
        assert main([*words, *judge]) == 0
        asked = sum(endpoint.asked.values())
        assert main([*words, *judge]) == 0  # everything exists already
        assert sum(endpoint.asked.values()) == asked
        assert bool(asked) is (kind == "openai")
    found = json.loads((tmp_path / "o/small/figure5/results.json").read_text())["duels"]["base"]["Chat"]
    assert found["win_rate"]["0"]["value"] == 0.5
    assert found["win_rate"]["0"]["undecided"] == 6
    missing = [cell["no_verdict"] for cell in found["win_rate"].values()]
    assert missing == ([0, 1, 1] if kind == "openai" else [0, 0, 0])
    assert all(cell["undecided"] >= cell["no_verdict"] for cell in found["win_rate"].values())
    table = (tmp_path / "o/small/figure5/table.md").read_text()
    assert ("1 without a verdict" in table) is (kind == "openai")
    drawn = {path.name for path in (tmp_path / "o/small/figure5").glob("*.svg")}
    assert ("figure5-gold-base.svg" in drawn) is (kind == "reward")
    assert "figure5-base.svg" in drawn


def test_figure_5_and_ppo_outside_the_world_need_a_judge(tmp_path: Path) -> None:
    scale = paper_scale(Overrides())
    for name, kinds in (("figure5", ("openai", "local", "reward")), ("ppo", ("reward",))):
        for kind in (None, "openai", "local", "reward", "oracle"):
            judge = kind and JudgeOptions(kind=kind, model="m")  # type: ignore[arg-type]
            asked = job(scale, judge=judge, ppo_steps=7)
            if kind in kinds:
                plan = EXPERIMENTS[name].plan(asked)
                assert plan.policies[0].config(asked, model="m").steps == 7
                assert (plan.policies[0].config(asked, model="m").reward == "m") is (name == "ppo")
            else:
                with pytest.raises(ConfigError, match="true reward is unknown"):
                    EXPERIMENTS[name].plan(asked)


@pytest.mark.slow
def test_lower_bounds_from_their_command_to_their_files(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At n = 1 all ways have the mean of the draws; at the largest n, the true reward of what each selected."""
    for name, value in (("_PROMPTS", 6), ("_DRAWS", 4), ("_SHOWN", (1, 4))):
        monkeypatch.setattr(pessimism, name, value)
    monkeypatch.setattr(selections, "SampleOptions", lambda **_: SampleOptions(max_new_tokens=6))
    words = ["reproduce", "pessimism", "--out", str(tmp_path), "--steps", "2", "--sets", "Helpful"]
    assert main(words) == 0
    root = tmp_path / "world"
    results = json.loads((root / "pessimism" / "results.json").read_text())
    assert [len(curve) for curve in results["gold"].values()] == [4] * 4
    assert len({round(curve[0], 9) for curve in results["gold"].values()}) == 1
    for name, folder in (("one head", "best-of-4-0"), ("mean - 2 standard errors", "best-of-4-heads-2")):
        found = json.loads((root / folder / "instruct" / "Helpful" / "results.json").read_text())
        (curve,) = [each for way, each in found["curve"]["gold"].items() if way != "the best"]
        assert results["gold"][name] == pytest.approx([point["value"] for point in curve])
    gap = results["gold"]["mean - 1 standard error"][-1] - results["gold"]["one head"][-1]
    assert results["differences"]["mean - 1 standard error - one head"]["mean"] == pytest.approx(gap)
    require_intervals_of_the_record(root / "pessimism")


@pytest.mark.slow
def test_bounds_from_their_command_to_their_files(tiny_world: Path, short: None, tmp_path: Path) -> None:
    """Answers before training are the same, and rewards are lower by the subtracted standard errors."""
    words = ["reproduce", "bounds", "--out", str(tmp_path), "--steps", "2", "--sets", "Helpful"]
    assert main(words) == 0
    root = tmp_path / "world"
    start = {way: each["0"] for way, each in json.loads((root / "bounds/results.json").read_text())["steps"].items()}
    assert len({each["gold"] for each in start.values()}) == 1
    mean, two, ten = (start[way]["proxy"] for way in list(start)[1:])
    assert ten < two < mean
    assert mean - ten == pytest.approx(5 * (mean - two), rel=1e-3)
    require_intervals_of_the_record(root / "bounds")
    runs_of = root / "policies" / "instruct" / "Helpful"
    configs = [json.loads((path / "manifest.json").read_text())["config"] for path in runs_of.glob("haf*")]
    assert sorted((Path(each["reward"]).name, each["score"]["pessimism"]) for each in configs) == [
        ("haf-heads-seed0", 0.0),
        ("haf-heads-seed0", 2.0),
        ("haf-heads-seed0", 10.0),
        ("haf-seed0", 0.0),
    ]


@pytest.mark.slow
def test_dense_rewards_from_their_command_to_their_files(tiny_world: Path, short: None, tmp_path: Path) -> None:
    """Five ways to be rewarded by the same run, whose first checkpoints are the same model."""
    words = ["reproduce", "dense", "--out", str(tmp_path), "--steps", "2", "--sets", "Helpful"]
    assert main(words) == 0
    root = tmp_path / "world"
    results = json.loads((root / "dense" / "results.json").read_text())
    ways = results["steps"]
    assert len(ways) == 5
    assert len({way["0"]["gold"] for way in ways.values()}) == 1
    runs_of = root / "policies" / "instruct" / "Helpful"
    heads = {path.name: json.loads((path / "manifest.json").read_text())["config"] for path in runs_of.glob("haf*")}
    assert {(each["head"], each["dense"]) for each in heads.values()} == {
        ("reward", "none"),
        *((head, dense) for head in ("policy", "combined") for dense in ("none", "token")),
    }
    for name, found in results["differences"].items():
        one, other = name.split(" - ")
        after = [
            sum(way[step]["gold"] for step in way if step != "0") / (len(way) - 1) for way in (ways[one], ways[other])
        ]
        assert found["mean"] == pytest.approx(after[0] - after[1])
    require_intervals_of_the_record(root / "dense")
