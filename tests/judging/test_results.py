"""Results computed from verdicts equal hand-worked values."""

from __future__ import annotations

from typing import Any

import pytest

from hafrm.judging.judges import Unscored
from hafrm.judging.verdicts import Verdict, summarise


def verdict(number: int, ranks: list[int | None] | None, **values: Any) -> Verdict:
    count = len(ranks) if ranks else 2
    plain = {
        "group": str(number),
        "models": [f"m{i}" for i in range(count)],
        "labelled": False,
        "lengths": [1] * count,
        "flipped": None,
        "unscored": None,
        "reply": None,
        "requests": 2,
        "responses_shown": 4,
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "key": str(number),
    }
    return Verdict(id=f"rows:{number}", ranks=ranks, **(plain | values))


def test_pairs() -> None:
    results = summarise(
        [
            verdict(1, [1, 2], flipped=False, labelled=True, lengths=[5, 3]),
            verdict(2, [1, 2], flipped=False, labelled=True, lengths=[3, 5]),
            verdict(3, [2, 1], flipped=False, labelled=True, lengths=[4, 4]),
            verdict(4, [1, 1], flipped=True, labelled=True, lengths=[3, 5]),
            verdict(5, None, unscored="no_choice", reply="Both."),
            verdict(6, None, unscored="timeout", requests=1),
        ],
        rows=8,
    )
    assert (results["rows"], results["judged"], results["not_asked"]) == (8, 4, 2)
    assert results["unscored"] == {"no_choice": 1, "timeout": 1}
    assert results["unscored_replies"] == {"no_choice": "Both."}
    first, second = results["responses"]["m0"], results["responses"]["m1"]
    assert (first["win_rate"], first["wins"], first["ties"], first["losses"], first["n"]) == (0.625, 2, 1, 1, 4)
    assert (second["win_rate"], second["wins"], second["ties"], second["losses"]) == (0.375, 1, 1, 2)
    assert first["ci95"] is None  # there are only four prompts
    assert results["flip_rate"]["value"] == 0.25
    agreement = results["agreement"]
    assert (agreement["value"], agreement["ties"], agreement["length_agreement"]) == (0.625, 1, 0.375)
    assert (results["requests"], results["responses_shown"], results["prompt_tokens"]) == (11, 24, 60)


def test_six_prompts_have_an_interval() -> None:
    verdicts = [verdict(i, [1, 2] if i % 2 else [2, 1], flipped=False) for i in range(1, 7)]
    first = summarise(verdicts, rows=6)["responses"]["m0"]
    low, high = first["ci95"]
    assert low < first["win_rate"] == 0.5 < high


def test_rankings() -> None:
    """Results of the best two of eight, and of a ranking with a tie, whose ranks are shared."""
    names = {"models": ["a", "b", "c", "d"]}
    results = summarise(
        [verdict(1, [2, 1, 4, 3], **names), verdict(2, [1, 3, 1, 4], **names), verdict(3, [None, 1, 2, None], **names)],
        rows=3,
    )
    first = {name: cell["first"]["value"] for name, cell in results["responses"].items()}
    best_two = {name: cell["best_two"]["value"] for name, cell in results["responses"].items()}
    assert first == pytest.approx({"a": 0.5 / 3, "b": 2 / 3, "c": 0.5 / 3, "d": 0})
    assert best_two == pytest.approx({"a": 2 / 3, "b": 2 / 3, "c": 2 / 3, "d": 0})
    assert results["agreement"] is None
    assert results["flip_rate"] is None


def test_nothing_judged_is_no_rate() -> None:
    results = summarise([verdict(1, None, unscored="empty_reply")], rows=1)
    assert results["responses"] == {}
    assert results["agreement"] is None


def test_every_reason_is_explained() -> None:
    assert all(reason.explanation for reason in Unscored)
    assert len({reason.explanation for reason in Unscored}) == len(Unscored)
