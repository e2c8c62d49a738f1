"""Agreement, wins, circles and recall, compared with hand-worked values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from hafrm.sampling.analysis import LONGEST, RANDOM, ScoredPrompt, best_shares, summarise


def prompt(
    name: str, gold: Sequence[float] | None, counts: Sequence[int] = (), **rewards: Sequence[float]
) -> ScoredPrompt:
    size = len(next(iter(rewards.values())))
    ranks = gold and tuple(1 + sum(other > value for other in gold) for value in gold)
    return ScoredPrompt(
        id=name,
        group=name,
        counts=tuple(counts) or (1,) * size,
        lengths=tuple(range(size, 0, -1)),
        rewards={model: tuple(values) for model, values in rewards.items()},
        gold=gold and tuple(gold),
        ranks=ranks or None,
    )


FOUR = [
    prompt("one", [4, 3, 2, 1], a=[9, 0, 0, 0], b=[9, 0, 0, 0], c=[0, 0, 0, 9]),
    prompt("two", [4, 3, 2, 1], a=[0, 9, 0, 0], b=[0, 0, 9, 0], c=[0, 0, 9, 0]),
    prompt("three", [4, 4, 2, 1], a=[9, 0, 0, 0], b=[0, 9, 0, 0], c=[0, 0, 9, 0]),
    prompt("alike", [1], a=[1], b=[2], c=[3]),
]


def test_rates_by_hand() -> None:
    found = summarise(FOUR, ["a", "b", "c"])
    json.dumps(found, allow_nan=False)
    assert (found["prompts"], found["alike"], found["draws"]) == (4, 1, 13)
    a, c = found["models"]["a"], found["models"]["c"]
    # "three" ties its best two, so either is among the best one by half
    assert a["top_1"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert a["top_2"]["value"] == 1
    assert c["top_2"]["value"] == 0
    assert a["gold"]["value"] == pytest.approx((4 + 3 + 4) / 3)
    # against one draw: 3 wins and itself; 2 wins, itself, 1 loss; 2 wins, itself, its tie
    assert a["against_random"]["value"] == pytest.approx((3.5 + 2.5 + 3) / 4 / 3)
    assert found["baselines"][RANDOM]["top_1"]["value"] == pytest.approx(0.25)
    assert found["baselines"][RANDOM]["top_2"]["value"] == pytest.approx(0.5)
    assert found["baselines"][LONGEST]["top_1"]["value"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["baselines"]["the best"]["gold"]["value"] == 4
    assert found["agreement"]["all"]["value"] == 0
    assert [each["value"] for each in found["agreement"]["pairs"]] == pytest.approx([1 / 3, 0, 1 / 3])
    first = found["wins"][0]
    assert (first["wins"], first["ties"], first["losses"], first["same"]) == (1, 2, 0, 1)
    assert first["win_rate"]["value"] == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_circles_overlap_where_scorers_choose_the_same() -> None:
    """One: a and b together; two: a alone; three: a and b tie with two responses, half each."""
    best = summarise(FOUR, ["a", "b", "c"])["best"]
    regions = {tuple(each["models"]): each["share"] for each in best["regions"]}
    assert regions == pytest.approx({("a", "b"): 1 / 3, ("a",): 1.5 / 3, ("b",): 0.5 / 3})
    circles = {model: rate["value"] for model, rate in best["circles"].items()}
    assert circles == pytest.approx({"a": 2.5 / 3, "b": 1.5 / 3, "c": 0})


def test_curves_are_means_over_all_prompts_and_as_long_as_the_shortest() -> None:
    curve = summarise([FOUR[0], prompt("x", [0, 1], (3, 1), a=[0, 1])], ["a"])["curve"]
    assert curve["n"] == [1, 2, 3, 4]
    assert [p["value"] for p in curve["gold"]["a"]] == pytest.approx(
        [(2.5 + 0.25) / 2, (2 / 4 * 4 + 2 / 4 * 2 + 0.5) / 2, (3 / 4 * 4 + 1 / 4 * 2 + 0.75) / 2, (4 + 1) / 2]
    )
    assert summarise([FOUR[3]], ["a"])["curve"]["n"] == [1]


def test_a_recall_of_two_needs_three_responses() -> None:
    found = summarise([prompt("x", [0, 1], a=[0, 1])], ["a"])["models"]["a"]
    assert found["top_1"]["value"] == 1
    assert found["top_2"] is None


def test_a_random_draw_is_one_of_all_draws() -> None:
    """Three of four draws are the worse response: the better one beats those and ties with itself."""
    found = summarise([prompt("x", [0, 1], (3, 1), a=[0, 1])], ["a"])
    assert found["baselines"][RANDOM]["gold"]["value"] == 0.25
    assert found["models"]["a"]["against_random"]["value"] == pytest.approx((3 + 0.5) / 4)
    assert found["baselines"][RANDOM]["top_1"]["value"] == 0.5  # one of two distinct responses


def test_no_judge_leaves_agreement() -> None:
    found = summarise([prompt("x", None, a=[0, 1], b=[1, 0]), prompt("y", None, a=[1, 0], b=[1, 0])], ["a", "b"])
    assert found["agreement"]["all"]["value"] == 0.5
    assert found["models"]["a"] == {"top_1": None, "top_2": None, "gold": None, "against_random": None}
    assert found["wins"][0]["win_rate"] is None
    assert found["best"]["regions"] == []
    assert found["curve"]["gold"] == {}


def heard(**values: Any) -> ScoredPrompt:
    given: dict[str, Any] = {"id": "x", "group": "x", "counts": (1, 1, 1), "lengths": (1, 1, 1)}
    return ScoredPrompt(**(given | {"rewards": {"a": (9, 0, 0), "b": (0, 9, 0), "c": (0, 0, 9)}} | values))


def test_a_judge_that_compares_settles_the_circles() -> None:
    """Each beats one other, so all have equal shares; with a second win one takes everything."""
    round_robin = heard(preferred={(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0})
    assert best_shares([round_robin], "abc") == {"x": {("a",): 1 / 3, ("b",): 1 / 3, ("c",): 1 / 3}}
    last = heard(preferred={(0, 1): 1.0, (1, 2): 0.0, (0, 2): 0.0}, ranks=(math.inf, 2, 1))
    assert best_shares([last], "abc") == {"x": {("c",): 1.0}}
    assert last.preference(2, 0) == 1
    assert summarise([last], ["a", "b", "c"])["models"]["b"]["top_2"]["value"] == 1
    assert best_shares([heard()], "abc") == {}
