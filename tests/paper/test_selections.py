"""Figure 4 and Tables 4 and 11 in a tiny world, and their numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hafrm.errors import ConfigError, DataError
from hafrm.judging.options import JudgeOptions
from hafrm.paper import selections
from hafrm.paper.presets import paper_scale
from hafrm.paper.scales import Job, Overrides
from hafrm.paper.selections import Selections, agreements, draws_of, recalls, regions, win_rates
from hafrm.sampling.analysis import ScoredPrompt
from hafrm.sampling.best_of_n import BestOfN
from tests.paper.test_experiments import manifests, reproduce

GPT = JudgeOptions(kind="openai", model="gpt-4-turbo-2024-04-09")


def prompt(name: str, haf: int, baseline: int, dpo: int, gold: tuple[float, ...] = (4, 3, 2, 1)) -> ScoredPrompt:
    """A prompt with four responses, of which each method selects one; a second seed always selects the first."""
    chosen = {"h0": haf, "b0": baseline, "d0": dpo, "h1": 0, "b1": 0, "d1": 0}
    return ScoredPrompt(
        id=name,
        group=name,
        counts=(1,) * len(gold),
        lengths=(1, 2, 3, 4)[: len(gold)],
        rewards={run: tuple(float(i == place) for i in range(len(gold))) for run, place in chosen.items()},
        gold=gold,
        ranks=tuple(1 + sum(other > value for other in gold) for value in gold),
    )


CHOSEN = Selections(
    [prompt("a", 0, 0, 3), prompt("b", 1, 2, 3), prompt("c", 0, 0, 0, (1,))],
    {"haf": ("h0", "h1"), "baseline": ("b0", "b1"), "dpo": ("d0", "d1")},
)


def test_recalls_by_hand() -> None:
    found = recalls(CHOSEN, 1, "x")
    assert {who: cell.accuracies for who, cell in found.items()} == {
        "random": (0.25, 0.25),
        "the longest response": (0, 0),
        "haf": (0.5, 1),
        "baseline": (0.5, 1),
        "dpo": (0, 1),
    }
    assert recalls(CHOSEN, 2, "x")["haf"].accuracies == (1, 1)
    assert recalls(CHOSEN, 2, "x")["haf"].pair_hits == {"a": 1, "b": 1}  # "c" says nothing
    with pytest.raises(DataError, match="no prompt has more than 1"):
        recalls(Selections(CHOSEN.prompts[2:], CHOSEN.models), 1, "x")


def test_circles_and_regions_by_hand() -> None:
    assert {method: cell.accuracies for method, cell in win_rates(CHOSEN).items()} == {
        "haf": (1, 1),
        "baseline": (0.5, 1),
        "dpo": (0, 1),
    }
    assert regions(CHOSEN) == {
        frozenset({"haf", "baseline"}): 0.25,
        frozenset({"haf"}): 0.25,
        frozenset({"haf", "baseline", "dpo"}): 0.5,
    }
    assert agreements(CHOSEN) == {("haf", "baseline"): 0.75, ("haf", "dpo"): 0.5, ("baseline", "dpo"): 0.5}


def test_prompts_in_no_rate_are_counted_by_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of six prompts that were scored one has a single response, one no ranking, and two no comparison."""
    ranked = [prompt(name, 0, 0, 0) for name in "abcdef"]
    by_endpoint = [replace(each, gold=None, preferred={}) for each in ranked]
    kept = [by_endpoint[0], replace(by_endpoint[1], ranks=None)]
    kept += [replace(each, preferred=None) for each in by_endpoint[2:4]] + [replace(by_endpoint[4], counts=(4,))]
    kept.append(ranked[5])  # the judge's rewards compare its responses
    found = BestOfN({"left_out": {"no_response": 2}, "unscored": {"overlong": 3}}, kept)
    monkeypatch.setattr(selections, "sample", lambda config, wait: None)
    monkeypatch.setattr(selections, "best_of_n", lambda config, wait: found)
    monkeypatch.setattr(Job, "model", lambda self, backbone: "m")
    asked = Job(scale=paper_scale(Overrides()), backbones=("phi-2",), sets=("BS",), seeds=(0,), out=tmp_path, judge=GPT)
    assert selections.select(asked, "phi-2", "BS").left_out == {
        "no_response": 2,
        "overlong": 3,
        "with equal responses": 1,
        "without a ranking": 1,
        "without a comparison": 2,
    }


def test_the_paper_samples_four_from_phi_2() -> None:
    scale = paper_scale(Overrides())
    job = Job(scale=scale, backbones=("phi-2",), sets=("BS",), seeds=(0,), out=Path("o"), judge=GPT)
    assert (draws_of(job, "phi-2"), draws_of(job, "mistral-instruct")) == (4, 8)
    assert len(selections.plan(job, "figure4").runs) == 3
    sampled, chosen = selections.plan(job, "figure4").commands
    assert "--n 4" in sampled
    assert "phi-2.jinja" in sampled
    assert "--judge.kind openai --judge.model gpt-4-turbo-2024-04-09" in chosen
    with pytest.raises(ConfigError, match="figure9 is judged by a reward model"):
        selections.plan(job, "figure9")
    with pytest.raises(ConfigError, match="local can't rank"):
        selections.plan(replace(job, judge=JudgeOptions(kind="local", model="m")), "figure4")
    with pytest.raises(ConfigError, match="--judge"):
        selections.plan(Job(scale=scale, backbones=("phi-2",), sets=("BS",), seeds=(0,), out=Path("o")), "figure4")


@pytest.mark.slow
def test_all_three_share_samples_and_runs(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selections, "_PROMPTS", 4)
    options = selections.SampleOptions
    monkeypatch.setattr(selections, "SampleOptions", lambda max_new_tokens: options(max_new_tokens=6))
    words = ["--scale", "world", "--steps", "2", "--sets", "Helpful", "BS"]
    found = reproduce("figure4", tmp_path, *words)["best"]["instruct"]
    assert set(found) == {"Helpful", "BS"}
    for each in found.values():
        assert sum(region["share"] for region in each["regions"]) == pytest.approx(1)
    runs = manifests(tmp_path)
    assert len(runs) == 6
    assert (tmp_path / "world" / "figure4" / "figure4-instruct-Avg.svg").exists()
    samples = tmp_path / "world" / "samples" / "instruct" / "BS" / "samples.jsonl"
    written = samples.stat().st_ino
    recall = reproduce("table4", tmp_path, *words)["recall"]["instruct"]
    assert set(recall["top_2"]["BS"]) == {"random", "the longest response", "haf", "baseline", "dpo"}
    table = (tmp_path / "world" / "table4" / "table.md").read_text()
    assert "| recall, % | instruct, All | instruct, Chat |" in table
    assert "| Top-1 HAF | 33.77 | 37.19 | 18.19 | 21.12 |" in table
    relations = reproduce("table11", tmp_path, *words)["relations"]
    printed = {(each["tested_on"], each["over"]): each["paper"] for each in relations}
    assert printed["BS, top-1", "baseline"] == pytest.approx(0.0154)
    assert printed["All, top-1", "dpo"] is None
    figure8 = reproduce("figure8", tmp_path, *words)["best"]["instruct"]
    assert figure8 == found
    drawn = {path.name for path in (tmp_path / "world" / "figure8").glob("*.svg")}
    assert drawn == {"figure8-instruct-Helpful.svg", "figure8-instruct-BS.svg"}
    assert manifests(tmp_path) == runs
    assert [sum(json.loads(line)["counts"]) for line in samples.read_text().splitlines()] == [8] * 4
    assert samples.stat().st_ino == written  # a rewritten file counts as another one


def test_a_judge_has_no_effect_where_the_oracle_judges(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from hafrm.cli import main

    for words in (["figure4"], ["table2", "--scale", "paper"]):
        judge = ["--judge.kind", "reward", "--judge.model", "m"]
        assert main(["reproduce", *words, *judge, "--out", str(tmp_path)]) == 2
        assert "judge has no effect" in capfd.readouterr().err
