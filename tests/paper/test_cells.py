"""Every number is in the right cell, in tables of distinct invented measurements and in the paper's tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pytest

from hafrm.paper import accuracy, duels, numbers, selections
from hafrm.paper.duels import Duel
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.measures import Grid, Measured
from hafrm.paper.policies import Point
from hafrm.paper.presets import paper_scale
from hafrm.paper.probes import perplexity
from hafrm.paper.probes.perplexity import PerplexityVariance
from hafrm.paper.scales import METHODS, Job, Overrides
from hafrm.paper.selections import Selections
from hafrm.report.findings import Table
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
    ours, papers = EXPERIMENTS["table3"].find(asked).tables
    columns = {
        name: {method: fmean(100 * share((name,), each, method) for each in others) for method in METHODS}
        for name, others in tested.items()
    }
    columns["Avg"] = {method: fmean(column[method] for column in columns.values()) for method in METHODS}
    expected = [(c["haf"], c["haf"] - c["baseline"], c["haf"] - c["dpo"]) for c in columns.values()]
    assert [re.sub("<.*", "", str(name)) for name in ours.header[1:]] == list(columns)
    found = list(map(read_transfer, plain(ours)["phi-2, internal"]))
    assert found == [pytest.approx(each, abs=0.006) for each in expected]
    for row in numbers.TABLE_3:
        printed = [(each.haf, each.above_baseline, each.above_dpo) for each in (*row.cells.values(), row.average)]
        cells = list(map(read_transfer, plain(papers)[f"{row.backbone}, {row.source}"]))
        assert cells == [pytest.approx(each) for each in printed]


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
    win = 0.9589  # of 1, 2, 5, 10, 17 with 1, 2, 3, 4, 5: 40 / sqrt(174 * 10)
    assert values(ours["phi-2, corr"]) == pytest.approx([win, 1, -1], abs=1e-4)
    assert values(papers["corr"]) == [-0.8166, -0.9492, -0.9064]
    assert values(papers["p"]) == [0.0916, 0.0136, 0.0339]


def test_figure_5s_columns(asked: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def point(step: int, first: float) -> Point:
        return Point(step, (first,) * 8, (first + 1,) * 8, kl=first + 2, length=first + 3, gold_by_seed=(first,))

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
