"""Every number is in the right cell, in tables of distinct invented measurements and in the paper's tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hafrm.errors import DataError
from hafrm.evaluation.options import EvaluateConfig
from hafrm.pairs import Prompt
from hafrm.paper import accuracy, duels, numbers, policies, selections
from hafrm.paper.duels import Duel
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.measures import Grid, Measured
from hafrm.paper.plans import RATIOS, ratio_options
from hafrm.paper.policies import Judged
from hafrm.paper.policies import Point as PolicyPoint
from hafrm.paper.presets import paper_scale
from hafrm.paper.probes import agreement, consistency, perplexity
from hafrm.paper.probes.agreement import Agreement
from hafrm.paper.probes.consistency import Consistency, Point, Share
from hafrm.paper.probes.perplexity import PerplexityVariance
from hafrm.paper.runs import Policy, Run
from hafrm.paper.scales import METHODS, Job, Overrides
from hafrm.paper.selections import Selections
from hafrm.report.findings import Table
from hafrm.rlhf.checkpoints import Answers
from hafrm.sampling.candidates import Candidates
from hafrm.stats import Correlation, Interval, linear_fit
from tests.paper.test_plans import job
from tests.paper.test_selections import GPT, prompt

LABELS = {"dpo": "DPO", "baseline": "Baseline", "haf": "HAF"}


def plain(table: Table) -> dict[str, list[str]]:
    """The texts of a table's cells by the name of the row, without marks of the best."""
    return {
        str(name): [re.sub(r"</?[bu]>", "", str(cell)) for cell in cells]
        for name, *cells in (row for row in table.rows)
    }


def share(trained: tuple[str, ...], tested: str, method: str) -> float:
    """Return an accuracy that only this cell has: a whole number of 100 pairs."""
    places = [numbers.SETS.index(name) for name in (*trained[:1], tested)]
    return (20 + 7 * places[0] + places[1] ** 2 + 17 * METHODS.index(method) - 9 * (len(trained) > 1)) / 100  # type: ignore[arg-type]


def grid(job: Job, trained: tuple[str, ...], tested: tuple[str, ...], *, backbone: str) -> Grid:
    def cell(name: str, method: str) -> Measured:
        value = share(trained, name, method)
        pairs = [str(number) for number in range(100)]
        hits = {pair: float(number < round(100 * value)) for number, pair in enumerate(pairs)}
        return Measured((value,), hits, dict(zip(pairs, pairs, strict=True)), 0.3 + 0.01 * numbers.SETS.index(name))

    return {name: {method: cell(name, method) for method in METHODS} for name in tested}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    monkeypatch.setattr(accuracy, "measure", grid)
    return job(paper_scale(Overrides()), out=tmp_path, judge=GPT)


def values(row: list[str]) -> list[float]:
    return [float(cell.split()[0].replace("−", "-")) for cell in row]


def test_table_2(asked: Job) -> None:
    findings = EXPERIMENTS["table2"].find(asked)
    ours, papers = map(plain, findings.tables)
    assert findings.tables[0].header[1:] == (*numbers.SETS, "Avg")
    for method, label in LABELS.items():
        expected = [100 * share((name,), name, method) for name in numbers.SETS]
        assert values(ours[f"{label} (phi-2)"]) == pytest.approx([*expected, fmean(expected)], abs=0.05)
    assert values(ours["the longer response"]) == [30, 31, 32, 33, 34, 32]
    rows = [f"{LABELS[row.method]} ({row.backbone})" for row in numbers.TABLE_2]
    assert [name for name in papers if not name.startswith("95%")] == rows
    for row in numbers.TABLE_2:
        expected = [*(row.accuracy[name] for name in numbers.SETS), row.average]
        assert values(papers[f"{LABELS[row.method]} ({row.backbone})"]) == expected
    leads = {(each.tested_on, each.over): (each.difference, each.paper) for each in findings.relations}
    assert leads["CA", "dpo"] == (pytest.approx(-0.34), pytest.approx(0.122))  # 79.00 - 66.80
    assert leads["Avg", "baseline"] == (pytest.approx(-0.17), pytest.approx(0.0462))


def test_the_papers_reach_is_of_a_thousand_pairs(asked: Job) -> None:
    """1.96 sqrt(p (1 - p) / 1000) of the methods' mean: .7013 for Phi-2 on Helpful, .8267 on BS."""
    papers = plain(EXPERIMENTS["table2"].find(asked).tables[1])
    assert papers["95%, 1,000 pairs (Phi-2)"] == ["±2.8", "±2.9", "±2.7", "±2.3", "±3.1", "–"]


def test_figure_3_is_mixed_minus_single(asked: Job) -> None:
    mixed, changes = map(plain, EXPERIMENTS["figure3"].find(asked).tables)
    for method, label in LABELS.items():
        expected = [100 * share(numbers.SETS, name, method) for name in numbers.SETS]
        assert values(mixed[f"{label} (phi-2)"]) == pytest.approx([*expected, fmean(expected)], abs=0.05)
        single = [100 * share((name,), name, method) for name in numbers.SETS]
        differences = [after - before for after, before in zip(expected, single, strict=True)]
        assert values(changes[f"{label} (phi-2)"]) == pytest.approx(differences, abs=0.05)


def signed(text: str) -> float:
    return float(text.rstrip("↑↓")) * (-1 if text.endswith("↓") else 1)


def read_transfer(cell: str) -> tuple[float, ...]:
    found = re.fullmatch(r"([\d.]+) <sup>\((.+)\)</sup><sub>\((.+)\)</sub>", cell)
    assert found is not None
    return tuple(map(signed, found.groups()))


def test_table_3_averages_over_the_test_sets_of_a_category(asked: Job) -> None:
    tested = {
        "AHP": ("CA", "Helpful"),
        "CA": ("AHP", "Helpful"),
        "Helpful": ("AHP", "CA"),
        "BS": ("Harmless",),
        "Harmless": ("BS",),
    }
    findings = EXPERIMENTS["table3"].find(asked)
    ours, papers = findings.tables
    columns = {
        name: {method: fmean(100 * share((name,), each, method) for each in others) for method in METHODS}
        for name, others in tested.items()
    }
    columns["Avg"] = {method: fmean(column[method] for column in columns.values()) for method in METHODS}
    expected = [(c["haf"], c["haf"] - c["baseline"], c["haf"] - c["dpo"]) for c in columns.values()]
    assert [re.sub("<.*", "", str(name)) for name in ours.header[1:]] == list(columns)
    found = list(map(read_transfer, plain(ours)["phi-2, internal"]))
    assert found == [pytest.approx(each, abs=0.006) for each in expected]
    leads = {(each.trained_on, each.tested_on, each.over): (each.difference, each.paper) for each in findings.relations}
    lead = (columns["AHP"]["haf"] - columns["AHP"]["dpo"]) / 100
    assert leads["AHP", "CA+Helpful", "dpo"] == (pytest.approx(lead), pytest.approx(0.237))
    assert leads["each set", "Avg", "baseline"][1] == pytest.approx(0.0157)
    for row in numbers.TABLE_3:
        printed = [(each.haf, each.above_baseline, each.above_dpo) for each in (*row.cells.values(), row.average)]
        cells = list(map(read_transfer, plain(papers)[f"{row.backbone}, {row.source}"]))
        assert cells == [pytest.approx(each) for each in printed]


def test_table_3_reads_rewardbenchs_section_of_the_sets_category(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second seed is 10 points better than the first; weighted scores are 1 point lower."""
    asked = replace(asked, seeds=(0, 1), rewardbench="rb", sets=("CA", "BS"))

    def share_of(model: str) -> float:
        (name, method, seed) = re.findall(r"/(CA|BS)/(\w+)-seed(\d)$", model)[0]
        return share((name,), name, method) + int(seed) / 10

    def evaluated(config: EvaluateConfig) -> Any:
        section = "Chat" if "/CA/" in config.models[0] else "Safety"
        scores = {
            model: {kind: {section: {"value": share_of(model) - lower}} for kind, lower in KINDS.items()}
            for model in config.models
        }
        return SimpleNamespace(suites={"rewardbench@rb": {"models": scores}})

    KINDS = {"pooled": 0, "sections": 0.01}
    monkeypatch.setattr(accuracy, "evaluate", evaluated)
    findings = EXPERIMENTS["table3"].find(asked)
    for how, lower in (("external", 0), ("external_weighted", 0.01)):
        assert findings.results[how]["phi-2"] == {
            name: {method: pytest.approx(share((name,), name, method) + 0.05 - lower) for method in METHODS}
            for name in ("CA", "BS")
        }
    ours = plain(findings.tables[0])
    shares = {name: {method: 100 * share((name,), name, method) for method in METHODS} for name in ("CA", "BS")}
    for label, lower in (("external", 0), ("external, weighted as RewardBench does", 1)):
        cells = list(map(read_transfer, ours[f"phi-2, {label}"]))
        for found, of in zip(cells, shares.values(), strict=False):
            gains = of["haf"] - of["baseline"], of["haf"] - of["dpo"]
            assert found == pytest.approx((of["haf"] + 5 - lower, *gains), abs=0.006)
        assert cells[-1] == pytest.approx([fmean(column) for column in zip(*cells[:-1], strict=True)], abs=0.006)
    KINDS.pop("sections")
    with pytest.raises(DataError, match="rb contains no pair of RewardBench's section Chat"):
        EXPERIMENTS["table3"].find(asked)


RIGHT = {"haf": 5, "baseline": 3, "dpo": 1}
"""Prompts of ten that a method gets right on the first set; on others `more`."""


def more(name: str) -> int:
    """Return 0 to 4, such that the mean over Chat differs from that over all sets."""
    return numbers.SETS.index(name) ** 2 // 4


def chosen(job: Job, backbone: str, name: str) -> Selections:
    prompts = [
        prompt(str(number), *(int(number >= RIGHT[method] + more(name)) for method in ("haf", "baseline", "dpo")))
        for number in range(10)
    ]
    return Selections(prompts, {"haf": ("h0",), "baseline": ("b0",), "dpo": ("d0",)}, {"overlong": 4 + more(name)})


@pytest.fixture
def selected(asked: Job, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Each method takes the judge's best response or the second best, so a second place is always in the best two."""
    monkeypatch.setattr(selections, "select", chosen)
    return asked


def right(method: str, names: tuple[str, ...]) -> float:
    return 10 * fmean(RIGHT[method] + more(name) for name in names)


def test_table_4(selected: Job) -> None:
    ours, papers = map(plain, EXPERIMENTS["table4"].find(selected).tables)
    chat = ("Helpful", "CA", "AHP")
    for method, label in LABELS.items():
        assert values(ours[f"Top-1 {label}"]) == pytest.approx(
            [right(method, numbers.SETS), right(method, chat)], abs=0.06
        )
        assert values(ours[f"Top-2 {label}"]) == [100, 100]
    assert [name.removeprefix("Top-1 ") for name in ours][:5] == ["Random", "The longest", "Baseline", "DPO", "HAF"]
    assert values(ours["Top-1 Random"]) == [25, 25]
    assert values(ours["Top-2 Random"]) == [50, 50]
    for row in numbers.TABLE_4:
        label = LABELS.get(row.method, "Random")
        place = 0 if row.backbone == "Phi-2" else 2
        assert values(papers[f"Top-{row.k} {label}"])[place : place + 2] == [row.all_sets, row.chat]


def test_table_11(selected: Job) -> None:
    findings = EXPERIMENTS["table11"].find(selected)
    ours, papers = map(plain, findings.tables)
    assert findings.tables[0].header[1:4] == ("Helpful, top-1", "Helpful, top-2", "Harmless, top-1")
    for method, label in LABELS.items():
        expected = [value for name in numbers.SETS for value in (right(method, (name,)), 100)]
        assert values(ours[f"phi-2 {label}"]) == pytest.approx(expected)
    for (backbone, method), row in numbers.TABLE_11.items():
        expected = [value for name in numbers.RECALL_SETS for value in (row[name].top_1, row[name].top_2)]
        assert values(papers[f"{backbone} {LABELS[method]}"]) == expected
    leads = {(each.tested_on, each.over): (each.difference, each.paper) for each in findings.relations}
    assert leads["BS, top-1", "baseline"] == (pytest.approx(0.2), pytest.approx(-0.0036))  # 32.49 - 32.85
    assert leads["AHP, top-2", "dpo"] == (pytest.approx(0), pytest.approx(0.0689))  # 52.51 - 45.62
    assert leads["All, top-1", "dpo"] == (pytest.approx(0.4), pytest.approx(0.1083))  # 33.77 - 22.94
    assert leads["Chat, top-1", "baseline"] == (pytest.approx(0.2), pytest.approx(0.0822))  # 37.19 - 28.97


def test_figure_8_counts_a_choice_that_is_as_good_as_the_best(selected: Job) -> None:
    """HAF is right whenever another method is; the baseline also ties when all three are wrong, and so on."""
    findings = EXPERIMENTS["figure8"].find(selected)
    wins, agreement = map(plain, findings.tables)
    assert any("CA (phi-2)" in note and "5 overlong" in note for note in findings.notes)
    expected: Mapping[str, list[float]] = {method: [100 - 10 * (RIGHT["haf"] - RIGHT[method])] * 5 for method in RIGHT}
    for method, label in LABELS.items():
        assert values(wins[f"{label} (phi-2)"]) == [*expected[method], expected[method][0]]
    for a, b in (("haf", "baseline"), ("haf", "dpo"), ("baseline", "dpo")):
        same = 100 - 10 * (RIGHT[a] - RIGHT[b])
        assert values(agreement[f"{LABELS[a]} and {LABELS[b]} (phi-2)"]) == [same] * 6


VARIANCES = {
    name: PerplexityVariance(
        model="m", data=name, n=9, unscored={"overlong": place} if place else {}, mean_win=0, mean_lose=0,
        var_win=1 + place * place, var_lose=20 + place, var_difference=40 - place,
    )
    for place, name in enumerate(numbers.SETS)
}  # fmt: skip


def test_tables_6_and_7(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO's gains rise with the variance of the worse responses and fall with that of the difference."""
    monkeypatch.setattr(perplexity, "run_perplexity", lambda model, data, out, score: [*VARIANCES.values()])
    monkeypatch.setattr(Job, "model", lambda self, backbone: "m")
    findings = EXPERIMENTS["table6"].find(asked)
    ours, papers = map(plain, findings.tables)
    assert values(ours["phi-2, pp win"]) == [1, 2, 5, 10, 17]
    assert values(ours["phi-2, pp lose"]) == [20, 21, 22, 23, 24]
    assert any("BS" in note and "3 overlong" in note for note in findings.notes)
    for backbone, table in numbers.TABLE_6.items():
        for side in ("win", "lose"):
            assert values(papers[f"{backbone}, pp {side}"]) == [getattr(table[name], side) for name in numbers.SETS]
    gains = dict(zip(numbers.SETS, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))  # as var_lose, so their correlation is 1

    def measured(job: Job, backbone: str) -> Grid:
        def cell(value: float) -> Measured:
            return Measured((value,), {}, {}, 0.5)

        return {
            name: {"haf": cell(0.0), "baseline": cell(0.2), "dpo": cell(0.2 + gain)} for name, gain in gains.items()
        }

    monkeypatch.setattr(perplexity, "own_grid", measured)
    ours, papers = map(plain, EXPERIMENTS["table7"].find(asked).tables)
    win = 0.9589  # correlation of 1, 2, 5, 10, 17 with 1 to 5: 40 / sqrt(174 * 10)
    assert values(ours["phi-2, corr"]) == pytest.approx([win, 1, -1], abs=1e-4)
    assert values(papers["corr"]) == [-0.8166, -0.9492, -0.9064]
    assert values(papers["p"]) == [0.0916, 0.0136, 0.0339]


def test_figure_5s_columns(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def point(step: int, first: float) -> PolicyPoint:
        return PolicyPoint(step, (first,) * 8, (first + 1,) * 8, kl=first + 2, length=first + 3, gold_by_seed=(first,))

    duel = Duel(
        {"haf": (point(0, 10), point(5, 20)), "baseline": (point(0, 30), point(5, 40))},
        {0: (0.5,) * 8, 5: (1.0,) * 6 + (0.5, 0.0)},
        {0: (8, 0), 5: (1, 1)},
    )
    monkeypatch.setattr(duels, "_duel", lambda *_: duel)
    safety, chat = EXPERIMENTS["figure5"].find(asked).tables
    assert (safety.title, chat.title) == ("Safety, phi-2: 8 prompts", "Chat, phi-2: 8 prompts")
    assert [name.removesuffix(", HAF").removesuffix(", baseline") for name in map(str, safety.header[3:])] == [
        *("reward",) * 2, *("KL",) * 2, *("tokens",) * 2,
    ]  # fmt: skip
    rows = plain(safety)
    assert rows["0"][1] == "8"
    assert rows["5"][0].startswith("81.2 [")
    assert rows["5"][1] == "1, 1 without a verdict"
    assert rows["5"][2:] == ["21.00", "41.00", "22.0", "42.0", "23.0", "43.0"]


def test_figure_5_counts_the_answers_that_the_judge_prefers(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge prefers the longer answer, and gives no verdict on one; the policies start with the same answers."""
    texts = {
        ("haf", 0): ["aaa", "b", "c"],
        ("haf", 1): ["aaa", "bb", "?"],
        ("baseline", 0): ["a", "b", "ccc"],
        ("baseline", 1): ["a", "b", "c"],
    }

    def judged(job: Job, policy: Policy, prompts: Mapping[Prompt, str]) -> list[Judged]:
        steps = {0: ["s"] * 3, 5: texts[str(policy.rewarded_by), policy.seed]}
        return [
            Judged(Answers(step, answers, [float(step)] * 3, [step] * 3), [0.5] * 3, [policy.seed + step] * 3)
            for step, answers in steps.items()
        ]

    folders = []

    class Judge:
        def __init__(self, *, folder: Path, **_: Any) -> None:
            self.folder = folder
            folders.append(folder)

        def compare(self, rows: Sequence[Candidates], chosen: Mapping[str, set[int]]) -> tuple[dict[str, Any], Any]:
            lengths = {row.id: [len(text) for text in row.texts] for row in rows if "?" not in row.texts}
            return {key: {(0, 1): 0.5 if a == b else float(a > b)} for key, (a, b) in lengths.items()}, {}

    prompts = {Prompt.of(f"question {number}"): "d" for number in range(3)}
    monkeypatch.setattr(policies, "held_out_prompts", lambda *_: prompts)
    monkeypatch.setattr(policies, "judged_answers", judged)
    monkeypatch.setattr(duels, "JudgeRuns", Judge)
    findings = EXPERIMENTS["figure5"].find(replace(asked, seeds=(0, 1), sets=("AHP",)))
    duel = findings.results["duels"]["phi-2"]["Chat"]
    assert duel["win_rate"] == {
        "0": {"value": 0.5, "ci95": None, "undecided": 6, "no_verdict": 0},
        "5": {"value": pytest.approx((1 + 0.75 + 0.25) / 3), "ci95": None, "undecided": 2, "no_verdict": 1},
    }
    after = {rival: duel["policies"][rival]["5"] for rival in ("haf", "baseline")}
    assert after["haf"]["gold_by_seed"] == pytest.approx([(1 + 0.5 + 0) / 3, (1 + 1 + 0.5) / 3])
    assert after["baseline"]["gold_by_seed"] == pytest.approx([(0 + 0.5 + 1) / 3, (0 + 0 + 0.5) / 3])
    assert (after["haf"]["proxy"], after["haf"]["kl"], after["haf"]["length"]) == (5.5, 5, 5)
    assert len(set(folders)) == 2 * 2  # verdicts of each seed and step
    assert list(findings.figures) == ["figure5-phi-2"]  # this judge gives no rewards to draw


def log_curves(folder: Path, accuracies: Sequence[float], margins: Sequence[float], losses: Sequence[float]) -> None:
    """Write the metrics of a run that is evaluated every ten steps."""
    names = ("eval_rewards/accuracies", "eval_rewards/margins", "eval_loss/reward")
    rows: list[dict[str, float]] = [{"step": 1, "loss": 0.7}]
    for place, point in enumerate(zip(accuracies, margins, losses, strict=True), 1):
        rows.append({"step": 10 * place} | dict(zip(names, point, strict=True)))
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_figure_6_and_the_claims_about_it(asked: Job) -> None:
    """Phi-2 agrees with all that the paper says; the other backbone has the same curves at every ratio.

    The seeds differ by 2 points, and at ratio 2 the second one stops early.
    """
    asked = replace(asked, backbones=("phi-2", "mistral-instruct"), seeds=(0, 1))
    same = ((0.6, 0.7, 0.65), (0.65, 0.5, 0.55))
    own: Mapping[float, tuple[tuple[float, ...], tuple[float, ...]]] = {
        -0.2: ((0.5, 0.6, 0.6), same[1]),
        0.1: ((0.6, 0.72, 0.7), same[1]),
        0.2: (same[0], (0.5, 0.45, 0.7)),
    }
    for backbone in asked.backbones:
        for ratio in RATIOS:
            accuracies, losses = own.get(ratio, same) if backbone == "phi-2" else same
            for seed, more in enumerate((-0.01, 0.01)):
                run = Run(backbone=backbone, sets=("Helpful",), seed=seed, **ratio_options(ratio))
                last = 2 if (ratio, seed) == (2, 1) else 3
                curves = ([value + more for value in accuracies], (0.1, 0.2, 0.3 + ratio), losses)
                log_curves(run.folder(asked), *(curve[:last] for curve in curves))
    findings = EXPERIMENTS["figure6"].find(asked)
    rows, claims, _, others = map(plain, findings.tables)
    assert rows["0"] == ["70.0", "20", "65.0", "0.300", "0.550", "0.500"]
    assert rows["0.2"] == ["70.0", "20", "65.0", "0.500", "0.700", "0.450"]
    assert rows["2"] == ["70.0", "20", "70.0", "0.200", "0.500", "0.500"]
    assert list(claims.values()) == [
        ["yes", "72.0 against 70.0"],
        ["yes", "step 10 against 20"],
        ["yes", "0.250 against 0.050"],
        ["yes", "60.0 against 70.0"],
    ]
    assert [cells[0] for cells in others.values()] == ["no"] * 4
    assert findings.results["curves"]["phi-2"]["0.1"]["accuracy"] == [
        (10, pytest.approx(0.6)), (20, pytest.approx(0.72)), (30, pytest.approx(0.7)),
    ]  # fmt: skip
    assert set(findings.figures) == {"figure6-phi-2", "figure6-mistral-instruct"}
    log = Run(backbone="phi-2", sets=("Helpful",), method="baseline").folder(asked) / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 0.7}\n')
    with pytest.raises(DataError, match="contains no evaluation"):
        EXPERIMENTS["figure6"].find(asked)


def test_figure_7s_columns(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second set has too few prompts for an interval."""

    def measured(reward: str, dpo: str, data: str, out: Path) -> Agreement:
        name = out.name
        assert [Path(model).name for model in (reward, dpo)] == ["baseline-seed0", "dpo-seed0"]
        assert data == asked.scale.sets[name].test
        x = np.arange(4.0)
        return Agreement(
            data=data, reward_model=reward, dpo_model=dpo, pairs=90, groups=8, left_out=7,
            interval=Interval(-0.125, 0.5) if name == "BS" else None, pearson=Correlation(0.25, 0.4),
            spearman=Correlation(0.75, 0.3), fit=linear_fit(x, x), same_sign=0.625, x=x, y=x,
        )  # fmt: skip

    monkeypatch.setattr(agreement, "run_agreement", measured)
    findings = EXPERIMENTS["figure7"].find(replace(asked, sets=("BS", "AHP")))
    assert [row[1:] for row in findings.tables[0].rows] == [
        ("BS", "90", "7", "0.25 [-0.12, 0.50]", "0.75", "62.5"),
        ("AHP", "90", "7", "0.25 –", "0.75", "62.5"),
    ]
    assert "r = 0.25 [-0.12, 0.50], Spearman 0.75" in findings.figures["figure7-phi-2-BS"]
    assert set(findings.figures) == {"figure7-phi-2-BS", "figure7-phi-2-AHP"}


def test_figure_2s_columns(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(haf: str, dpo: str, data: str, oracle: str, out: Path, **_: Any) -> Consistency:
        assert [Path(model).name for model in (haf, dpo, oracle)] == [
            "haf-seed0-checkpoints", "dpo-seed0-checkpoints", "baseline-seed0",
        ]  # fmt: skip
        points = [
            Point(matching=by, haf_step=1, dpo_step=1, gap=0.0, x=1.0, y=2.0, prompts=9)
            for by in ("reward", "reward", "acc")
        ]  # fmt: skip
        shares = {"reward": Share(0.25, None), "acc": Share(0.75, None)}
        return Consistency(
            points=points, share_above=Share(0.5, Interval(0.4, 0.625)), share_above_scaled=Share(0.3, None),
            by_matching=shares, too_long=3 if out.name == "phi-2" else 0,
        )  # fmt: skip

    monkeypatch.setattr(consistency, "run_consistency", measured)
    findings = EXPERIMENTS["figure2"].find(replace(asked, sets=("BS",), backbones=("phi-2", "mistral-instruct")))
    assert [row[1:] for row in findings.tables[0].rows[:3]] == [
        ("all", "3", "50.0 [40.0, 62.5]", "30.0"),
        ("reward", "2", "25.0", "–"),
        ("acc", "1", "75.0", "–"),
    ]
    figure = findings.figures["figure2-phi-2"]
    assert "50% of 3 points are above" in figure
    assert [figure.count(f'class="s{place}"') for place in (0, 1)] == [2 + 1, 1 + 1]  # the points, and the key
    (note,) = (note for note in findings.notes if "Prompts (phi-2)" in note)
    assert "3 too" in note
    assert "mistral" not in note
