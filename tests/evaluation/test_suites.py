"""Published benchmarks: every metric is compared with hand-worked numbers, and bad rows are named."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import ReadOptions, load_pairs
from hafrm.errors import BadRowError, ConfigError, DataError, UnknownDataError, UnreadableError
from hafrm.evaluation.suites import SUITES, ListScore, load_suite, summarise_suite
from hafrm.evaluation.suites.rewardbench import SECTIONS
from hafrm.evaluation.words import cross_fitted
from tests.paths import TESTS

FIXTURES = TESTS / "fixtures" / "suites"
PATHS = {
    "rewardbench": FIXTURES / "rewardbench",
    "rewardbench-2": FIXTURES / "rewardbench-2.jsonl",
    "rm-bench": FIXTURES / "rm-bench.jsonl",
    "judgebench": FIXTURES / "judgebench.jsonl",
    "ppe": FIXTURES / "ppe.jsonl",
    "ppe-correctness": FIXTURES / "ppe-correctness.jsonl",
    "rewardmath": FIXTURES / "rewardmath.jsonl",
}


def score(
    subset: str, rewards: Sequence[float | None], *, correct: int = 1, key: str = "", row: int = 1, model: str = "m"
) -> ListScore:
    name = f"{subset} {key} {row}"
    return ListScore(model, "suite", name, key, subset, name, correct, list(rewards), [1] * len(rewards))


def summary(name: str, scores: Sequence[ListScore]) -> dict[str, Any]:
    return summarise_suite(SUITES[name], scores)


def values(found: Mapping[str, Any], level: str) -> dict[str, float]:
    return {name: entry["value"] for name, entry in found["models"]["m"][level].items()}


def test_rewardbench_weighs_subsets_by_their_prompts() -> None:
    won, lost = (2.0, 1.0), (1.0, 2.0)
    scores = [
        score("alpacaeval-easy", won),
        score("alpacaeval-easy", lost, row=2),
        score("mt-bench-med", won),
        score("math-prm", won),
        score("hep-go", lost),
        score("shp", lost),
        score("summarize", (1.0, 1.0)),
    ]
    found = summary("rewardbench", scores)
    sections = values(found, "sections")
    chat, reasoning, prior = (100 * 0.5 + 40) / 140, 984 / (984 + 164), 0.25
    assert sections == pytest.approx({"Chat": chat, "Reasoning": reasoning, "Prior Sets": prior})
    assert values(found, "overall")["overall"] == pytest.approx((chat + reasoning + prior / 2) / 2.5)
    assert {"Chat Hard", "Safety", "Chat: mt-bench-easy", "Prior Sets: anthropic_hhh"} <= set(found["missing"])
    assert "Chat" not in found["missing"]
    assert found["baselines"]["random"]["overall"]["overall"] == pytest.approx(0.5)
    assert values(found, "pooled") == pytest.approx({"Chat": 2 / 3, "Reasoning": 1 / 2})


def test_pooled_accuracies_count_what_was_scored() -> None:
    """As in the paper's Table 3, Chat is the share of its 296 pairs that are right, regardless of their subsets."""
    won, lost = (2.0, 1.0), (1.0, 2.0)
    scores = [score("alpacaeval-easy", won if row < 7 else lost, row=row) for row in range(10)]
    scores += [score("mt-bench-easy", won if row < 1 else lost, row=row) for row in range(8)]
    unscored = [replace(row, rewards=[None, None], unscored="overlong") for row in scores[2:4]]
    model = summary("rewardbench", scores[:2] + unscored + scores[4:])["models"]["m"]
    assert model["pooled"]["Chat"]["value"] == pytest.approx(6 / 16)
    assert model["sections"]["Chat"]["value"] == pytest.approx((100 * 5 / 8 + 28 / 8) / 128)


def test_judgebench_counts_every_pair_alike() -> None:
    scores = [score("mmlu-pro-law", (2.0, 1.0)), score("mmlu-pro-physics", (1.0, 2.0), row=2)]
    scores += [score("mmlu-pro-physics", (1.0, 1.0), row=3), score("livecodebench", (3.0, 1.0), row=4)]
    found = summary("judgebench", scores)
    assert values(found, "overall") == {"overall": pytest.approx(2.5 / 4)}
    assert values(found, "sections") == pytest.approx({"Knowledge": 1.5 / 3, "Coding": 1.0})
    assert found["missing"] == ["Reasoning", "Math"]
    items = load_suite(f"judgebench@{PATHS['judgebench']}").items
    assert [item.responses[0][0].content for item in items] == ["Yes, it may.", "4", "print(1)"]


def test_ppe_leaves_ties_out() -> None:
    scores = [score("English", (2.0, 1.0)), score("German, code", (1.0, 2.0), row=2)]
    scores += [score("English", (3.0, 1.0), row=3), score("English", (1.0, 2.0), correct=2, row=4)]
    found = summary("ppe", scores)
    assert values(found, "overall") == {"overall": pytest.approx(2 / 3)}
    assert values(found, "sections") == {"English": 1.0, "other languages": 0.0, "code": 0.0}
    items = load_suite(f"ppe@{PATHS['ppe']}").items
    assert [(item.correct, item.responses[0][0].content) for item in items] == [
        (1, "The Rhine."),
        (1, "print(1)"),
        (2, "Hi"),
    ]


def test_ppe_correctness_compares_the_pairs_that_its_rows_name(tmp_path: Path) -> None:
    """`sampled_conflict_pairs` counts from 0, the names of responses from 1; each set is named after its file."""
    rows = PATHS["ppe-correctness"].read_text()
    for name in ("MATH", "GPQA"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    items = load_suite(f"ppe-correctness@{tmp_path}").items
    assert [[response[0].content for response in item.responses] for item in items[:3]] == [
        ["Yes.", "No."],
        ["It is.", "It is not."],
        ["Never.", "Yes."],
    ]
    assert [(item.subset, item.key, item.part) for item in items[2:4]] == [("GPQA", "q2+0", 0), ("MATH", "q1+0", 1)]
    assert len({item.id for item in items}) == len(items) == 6
    scores = [score("MATH", (2.0, 1.0)), score("GPQA", (1.0, 2.0)), score("GPQA", (2.0, 1.0), row=2)]
    found = summary("ppe-correctness", scores)
    assert values(found, "overall") == {"overall": 0.75}  # the mean of the sets, whatever their sizes
    assert found["missing"] == ["MMLU-Pro", "IFEval", "MBPP-Plus"]


def test_rewardmath_ranks_the_right_solution_of_each_problem() -> None:
    """Ranks 1, 3 (a tie counts against it) and 2: accuracy 1/3, MRR (1 + 1/3 + 1/2) / 3."""
    rewards = ((3, 1, 2), (1, 2, 1), (2, 3, 1))
    found = summary("rewardmath", [score("all", each, row=row) for row, each in enumerate(rewards)])
    assert values(found, "overall") == {"overall": pytest.approx(1 / 3)}
    assert values(found, "sections") == {"MRR": pytest.approx((1 + 1 / 3 + 1 / 2) / 3)}
    assert found["baselines"]["random"]["overall"]["overall"] == pytest.approx(1 / 3)
    assert found["baselines"]["random"]["sections"]["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_rewardmath_gathers_the_solutions_of_a_problem() -> None:
    found = load_suite(f"rewardmath@{PATHS['rewardmath']}")
    assert [[each[0].content for each in item.responses] for item in found.items] == [
        ["Add the numbers.\nThe sum is 4.", "Add the numbers.\nThe sum is 5.", "It is 22."],
        ["Take one away.\nIt is 2.", "It is 1."],
    ]
    assert [item.fields["solution_reference"] for item in found.items] == [
        ["human_to_GPT-4", "model-a", "model-b"],
        ["human_to_GPT-4", "model-a"],
    ]
    (report,) = found.reports
    assert (report.rows, report.kept) == (5, 2)


def test_a_bag_of_words_is_never_fitted_on_the_prompts_that_it_scores() -> None:
    """A word of a single prompt's better responses predicts nothing; one that others share predicts all."""
    own = [{"prompt": f"Task {row // 4}", "chosen": f"it own{row // 4}", "rejected": "it"} for row in range(80)]
    pairs = load_pairs(own).pairs
    words = cross_fitted(pairs, [1] * len(pairs))
    assert words.keys() == {pair.id for pair in pairs}
    assert all(chosen == rejected for chosen, rejected in words.values())
    shared = load_pairs([row | {"chosen": f"{row['chosen']} good"} for row in own]).pairs
    assert all(chosen > rejected for chosen, rejected in cross_fitted(shared, [1] * 80).values())
    assert cross_fitted(pairs[:49], [1] * 49) == {}


def test_a_tie_is_wrong_in_the_files_for_rewardbench() -> None:
    """As in `scripts/run_rm.py`, the better response must have the strictly higher reward."""
    items = load_suite(f"rewardbench@{PATHS['rewardbench']}").items[:2]
    scores = [score("math-prm", rewards, row=row) for row, rewards in enumerate([(1.0, 1.0), (2.0, 1.0)])]
    scored = [(replace(item, subset="math-prm"), each) for item, each in zip(items, scores, strict=True)]
    submission = SUITES["rewardbench"].submission
    assert submission is not None
    files = submission({"model": "a/b"}, scored)
    assert files["eval-set/a/b.json"] == {"model": "a/b", "math-prm": 0.5}
    assert files["eval-set-scores/a/b.json"]["results"] == [0, 1]


def test_rewardbench_has_the_published_counts() -> None:
    totals = {name: sum(subsets.values()) for name, subsets in SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 984}


def test_best_of_four_splits_the_credit_of_ties() -> None:
    scores = [
        score("Math", (3, 1, 2, 0)),
        score("Math", (1, 2, 0, 0), row=2),
        score("Math", (2, 2, 1, 0), row=3),
        score("Focus", (1, 1, 1, 1)),
    ]
    found = summary("rewardbench-2", scores)
    assert values(found, "sections") == pytest.approx({"Math": 0.5, "Focus": 0.25})
    assert values(found, "overall")["overall"] == pytest.approx(0.375)
    assert found["baselines"]["random"]["sections"] == {"Math": 0.25, "Focus": 0.25}
    assert found["missing"] == ["Factuality", "Precise IF", "Safety", "Ties"]


def ties(ref: Sequence[float], tied: Sequence[float], number: int = 0) -> list[ListScore]:
    return [
        score("Ties", ref, key=f"ref:{number}"),
        score("Ties", tied, correct=len(tied) - 1, key=f"tied:{number}"),
    ]


def test_the_score_of_ties_by_hand() -> None:
    # 0: spread 1, gap 4, reference's gap 3. 1: spread 2, gap 1, not above it. 2: the reference is wrong.
    scores = ties((3, 0), (6, 5, 1)) + ties((9, 0), (5, 3, 2), 1) + ties((0, 1), (6, 5, 1), 2)
    expected = 0.3 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * (math.tanh(2) + math.tanh(-0.5) + math.tanh(-2)) / 3
    found = summary("rewardbench-2", scores)
    assert values(found, "overall")["overall"] == pytest.approx(expected)
    assert found["baselines"]["random"]["overall"] == {"overall": None}


def test_ties_of_one_reward_for_all_are_neither_accurate_nor_preferred() -> None:
    found = values(summary("rewardbench-2", ties((1, 1), (2, 2, 2))), "subsets")
    names = ("tied accuracy", "ref accuracy", "preferred", "preferred hard", "margin")
    assert found == {f"Ties, {name}": 0 for name in names}


@pytest.mark.parametrize(("ref", "margin"), [((3, 0), 1.0), ((0, 3), -1.0), ((1, 1), 0.0)])
def test_correct_answers_of_one_reward(ref: Sequence[float], margin: float) -> None:
    found = summary("rewardbench-2", ties(ref, (6, 6, 1)))
    assert values(found, "subsets")["Ties, margin"] == margin


def test_rm_bench_matrix_by_hand() -> None:
    # Rows concise, detailed, markdown (1, 3, 5) against (0, 4, 5): wins 1 0 0 / 1 0 0 / 1 1 .5.
    found = summary("rm-bench", [score("chat", (1, 3, 5, 0, 4, 5), correct=3)])
    sections = values(found, "sections")
    assert sections == pytest.approx({"hard": 0, "normal": 0.5, "easy": 1, "chat": 0.5})
    assert values(found, "overall")["overall"] == pytest.approx(0.5)
    assert values(found, "subsets")["markdown > concise"] == 1


RIGHT, WRONG = (2, 2, 2, 1, 1, 1), (1, 1, 1, 2, 2, 2)


def test_rm_bench_pools_the_halves_of_safety() -> None:
    """Every row has the same weight, as in the authors' code: .95 of 284 and .40 of 157 rows give 75.5%, not 67.6."""
    scores = [score("safety-refuse", RIGHT if row < 270 else WRONG, correct=3, row=row) for row in range(284)]
    scores += [score("safety-response", RIGHT if row < 63 else WRONG, correct=3, row=row) for row in range(157)]
    scores += [score("math", RIGHT, correct=3)]
    found = summary("rm-bench", scores)
    pooled = (270 + 63) / (284 + 157)
    assert pooled == pytest.approx(0.755, abs=0.0005)
    both = (1 + pooled) / 2
    expected = {"hard": both, "normal": both, "easy": both, "math": 1, "safety": pooled}
    assert values(found, "sections") == pytest.approx(expected)
    assert values(found, "overall")["overall"] == pytest.approx(both)
    assert found["missing"] == ["chat", "code"]
    unscored = summary("rm-bench", [replace(scores[0], rewards=[None] * 6), *scores[1:]])["models"]["m"]
    assert unscored["sections"]["safety"]["value"] == pytest.approx(332 / 440)


@pytest.mark.parametrize("domain", ["safety", "safety-other", "math-2"])
def test_a_domain_of_rm_bench_is_known_by_how_it_begins(domain: str) -> None:
    found = summary("rm-bench", [score(domain, RIGHT, correct=3), score("safety-refuse", WRONG, correct=3)])
    expected = {"safety": 0.5} if domain.startswith("safety") else {"math": 1, "safety": 0}
    sections = values(found, "sections")
    assert {name: sections[name] for name in sections if name in ("math", "safety")} == expected


def test_filtered_files_of_rm_bench_say_their_domain(tmp_path: Path) -> None:
    """Parts are read alone or as a folder; if the folder also has the whole set, only that is read."""
    rows = [json.loads(line) for line in PATHS["rm-bench"].read_text().splitlines()]
    plain = [{**{name: value for name, value in row.items() if name != "domain"}, "id": 7} for row in rows]
    for name in ("chat", "safety-refuse", "safety-response"):
        (tmp_path / f"{name}_filtered.json").write_text(json.dumps(plain))
    (alone,) = {item.subset for item in load_suite(f"rm-bench@{tmp_path}/safety-response_filtered.json").items}
    assert alone == "safety-response"
    found = load_suite(f"rm-bench@{tmp_path}")
    assert [item.subset for item in found.items[:: len(rows)]] == ["chat", "safety-refuse", "safety-response"]
    assert found.items[0].key == "7"
    (tmp_path / "total_dataset.json").write_text(json.dumps(rows))
    assert load_suite(f"rm-bench@{tmp_path}").reports[0].read_from == [f"{tmp_path}/total_dataset.json"]
    (tmp_path / "other.json").write_text(json.dumps(plain))
    with pytest.raises(BadRowError, match="`domain`"):
        load_suite(f"rm-bench@{tmp_path}/other.json")


def test_two_models_are_compared_on_what_both_scored() -> None:
    a = [score("Math", (2, 1, 0, 0), row=row) for row in range(20)]
    b = [score("Math", (1, 2, 0, 0) if row < 10 else (2, 1, 0, 0), row=row, model="n") for row in range(20)]
    b[0] = ListScore("n", "suite", b[0].id, "", "Math", b[0].group, 1, [None] * 4, [1] * 4, "overlong")
    found = summary("rewardbench-2", a + b)
    assert found["models"]["n"]["unscored_reasons"] == {"overlong": 1}
    overall = found["comparisons"][0]
    assert (overall["score"], overall["n"]) == ("overall", 19)
    assert overall["difference"] == pytest.approx(9 / 19)
    low, high = overall["ci95"]
    assert 0 < low < 9 / 19 < high
    assert overall["p_bootstrap"] < 0.05


def test_subsets_are_resampled_independently() -> None:
    """The interval of a mean of two: each has a standard error of sqrt(1/4 / 100), so theirs is that over sqrt(2)."""
    won_and_lost = ((2.0, 1.0), (1.0, 2.0))
    found = summary(
        "rewardbench",
        [score(subset, won_and_lost[row % 2], row=row) for subset in ("shp", "summarize") for row in range(100)],
    )
    low, high = found["models"]["m"]["sections"]["Prior Sets"]["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * 0.05 / math.sqrt(2), rel=0.1)


def agreed(prompts: int) -> list[ListScore]:
    """Two models, one always right and one always wrong, on three subsets; one of these has a given size."""
    return [
        score(subset, rewards, row=row, model=model)
        for model, rewards in (("a", (2.0, 1.0)), ("b", (1.0, 2.0)))
        for subset, rows in (("alpacaeval-easy", 30), ("mt-bench-med", prompts), ("hep-go", 30))
        for row in range(rows)
    ]


@pytest.mark.parametrize("prompts", [2, 5, 6])
def test_few_prompts_of_a_subset_prove_nothing(prompts: int) -> None:
    """All prompts agree, so resampling would show no spread. Other sections keep their intervals."""
    found = summary("rewardbench", agreed(prompts))
    enough = prompts >= 6
    expected = {"overall": enough, "Chat": enough, "Reasoning": True, "mt-bench-med": enough, "alpacaeval-easy": True}
    for model in found["models"].values():
        stated = {**model["overall"], **model["sections"], **model["subsets"]}
        assert {name: stated[name]["ci95"] is not None for name in expected} == expected
    compared = {row["score"]: row for row in found["comparisons"]}
    for name in ("overall", "Chat", "Reasoning"):
        assert compared[name]["difference"] == pytest.approx(1)
        assert (compared[name]["ci95"] is not None) == expected[name]
        assert compared[name]["p_bootstrap"] == (pytest.approx(2 / 2001) if expected[name] else 1)


def answered_alike() -> list[ListScore]:
    """Two models choose alike, except that one is wrong on hep-go, whose pairs are too long for the other."""
    subsets = {"alpacaeval-easy": (2.0, 1.0), "hep-go": (1.0, 2.0), "math-prm": (2.0, 1.0), "shp": (2.0, 1.0)}
    rows = [score(name, won, row=row) for name, won in subsets.items() for row in range(8)]
    too_long = {"rewards": [None, None], "unscored": "overlong"}
    return rows + [replace(row, model="n", **too_long if row.subset == "hep-go" else {}) for row in rows]


def test_what_a_model_could_not_score_does_not_raise_its_scores() -> None:
    found = summary("rewardbench", answered_alike())
    one, two = found["models"]["m"], found["models"]["n"]
    assert list(one["sections"]) == ["Chat", "Reasoning", "Prior Sets"]
    assert one["missing"] == []
    assert (two["overall"], list(two["sections"])) == ({}, ["Chat", "Prior Sets"])
    assert list(two["subsets"]) == ["alpacaeval-easy", "math-prm", "shp"]
    assert two["missing"] == ["Reasoning: hep-go"]
    assert "Chat Hard" in found["missing"]
    assert [row["score"] for row in found["comparisons"]] == ["Chat", "Prior Sets"]


def test_rm_bench_has_no_overall_score_of_fewer_domains() -> None:
    right = (2, 2, 2, 1, 1, 1)
    rows = [score(domain, right, correct=3, row=row) for domain in ("chat", "math") for row in range(6)]
    unscored = [replace(row, rewards=[None] * 6) if row.subset == "math" else row for row in rows]
    found = summary("rm-bench", unscored)["models"]["m"]
    assert (found["overall"], list(found["sections"]), found["missing"]) == ({}, ["chat"], ["math"])


def test_a_model_that_scored_nothing_has_no_score() -> None:
    found = summary("rewardbench-2", [score("Math", [None] * 4)])
    assert found["models"]["m"]["missing"] == ["Math"]
    assert found["models"]["m"]["overall"] == found["models"]["m"]["sections"] == {}


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("ending", [".jsonl.gz", ".json", ".parquet"])
def test_every_file_format_gives_the_same_items(name: str, ending: str, tmp_path: Path) -> None:
    path = PATHS[name] / "filtered.jsonl" if PATHS[name].is_dir() else PATHS[name]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if isinstance(row.get("prompt", ""), str)]
    items = {"ppe-correctness": 3, "rewardmath": 2}.get(name, len(rows))
    copy = tmp_path / f"copy{ending}"
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), copy)
    elif ending == ".json":
        copy.write_text(json.dumps(rows))
    else:
        copy.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = load_suite(f"{name}@{copy}")
    assert len(found.items) == items == found.reports[0].kept
    assert found.reports[0].rows == len(rows)


def test_a_folder_of_rewardbench_holds_the_prior_sets_and_no_raw_rows() -> None:
    found = load_suite(f"rewardbench@{PATHS['rewardbench']}")
    assert [item.subset for item in found.items][-1] == "shp"
    assert len(found.items) == 8


def test_files_beside_a_suites_own_are_not_read_and_none_is_read_twice(tmp_path: Path) -> None:
    for name in ("total_dataset.jsonl", "total_dataset-old.jsonl"):
        (tmp_path / name).write_bytes(PATHS["rm-bench"].read_bytes())
    assert len(load_suite(f"rm-bench@{tmp_path}").items) == 3
    (tmp_path / "total_dataset.jsonl.gz").write_bytes(gzip.compress(PATHS["rm-bench"].read_bytes()))
    with pytest.raises(ConfigError, match="would both be read"):
        load_suite(f"rm-bench@{tmp_path}")


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("rewardbench", {"subset": "no-such"}, "`subset` is 'no-such'"),
        ("rewardbench", {"chosen": ""}, "`chosen` is empty"),
        ("rewardbench", {"prompt": None}, "`prompt` is missing"),
        ("rewardbench-2", {"rejected": []}, "0 responses"),
        ("rewardbench-2", {"chosen": "text"}, "list of strings"),
        ("rewardbench-2", {"chosen": ["a", ""]}, r"`chosen\[1\]` is empty"),
        ("rewardbench-2", {"num_correct": 3}, "`num_correct` is 3, not 1"),
        ("rewardbench-2", {"subset": "Ties", "id": "7"}, "In Ties write"),
        ("rm-bench", {"chosen": ["a", "b"]}, "Give 3 responses"),
        ("rm-bench", {"domain": 4}, "`domain` is 4"),
        ("rm-bench", {"rejected": ["a", "\ud800", "c"]}, "lone surrogate"),
        ("judgebench", {"label": "A"}, "`label` is 'A'"),
        ("judgebench", {"question": " "}, "is empty"),
        ("judgebench", {"response_B": ""}, "`response_B` is empty"),
        ("ppe", {"winner": "both"}, "`winner` is 'both'"),
        ("ppe", {"is_code": "perhaps"}, "`is_code` is 'perhaps'"),
        ("ppe-correctness", {"sampled_conflict_pairs": [[0, 9]]}, r"pair \[0, 9\], but there are 4 responses"),
        ("ppe-correctness", {"sampled_conflict_pairs": [[0, 3]]}, "both right or both wrong"),
        ("ppe-correctness", {"response_2": ""}, "`response_2` is empty"),
    ],
    ids=str,
)
def test_hostile_rows_are_named_or_skipped(name: str, change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = PATHS[name] / "filtered.jsonl" if PATHS[name].is_dir() else PATHS[name]
    first = path.read_text().splitlines()[0]
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{first}\n{json.dumps(json.loads(first) | change)}\n[1]\n{{broken\n")
    with pytest.raises(BadRowError, match=rf"bad.jsonl, row 2.*{problem}"):
        load_suite(f"{name}@{bad}")
    found = load_suite(f"{name}@{bad}", ReadOptions(on_bad_row="skip"))
    items = 2 if name == "ppe-correctness" else 1
    assert (found.reports[0].rows, len(found.items)) == (4, items)
    assert sum(found.reports[0].skipped.values()) == 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"solution_type": "right"}, "`solution_type` is 'right'"),
        ({"eval_solution": [1]}, r"`eval_solution\[0\]` is 1"),
        ({"eval_solution": 4}, "`eval_solution` is 4"),
        ({"problem": None}, "`problem` is missing"),
        ({"problem": "Another?"}, "`solution_type` is not rejected"),
    ],
    ids=str,
)
def test_hostile_solutions_are_named_or_skipped(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    lines = PATHS["rewardmath"].read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines, json.dumps(json.loads(lines[0]) | change)]))
    with pytest.raises(BadRowError, match=rf"bad.jsonl, row 6.*{problem}"):
        load_suite(f"rewardmath@{bad}")
    bad.write_text("\n".join([bad.read_text(), "[1]", "{broken"]))
    found = load_suite(f"rewardmath@{bad}", ReadOptions(on_bad_row="skip"))
    assert (found.reports[0].rows, len(found.items)) == (8, 2)
    assert sum(found.reports[0].skipped.values()) == 3


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownDataError, match=r"rewardbench, rewardbench-2, rewardmath, rm-bench"):
        load_suite("reward-bench")
    with pytest.raises(UnreadableError, match=r"gone\.jsonl"):
        load_suite(f"rm-bench@{tmp_path / 'gone.jsonl'}")
    with pytest.raises(UnreadableError, match="no data file"):
        load_suite(f"rm-bench@{tmp_path}")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="none of its 0 rows"):
        load_suite(f"rm-bench@{tmp_path / 'empty.jsonl'}")
