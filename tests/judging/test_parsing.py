"""Replies are read by a grammar; whatever is outside of it is unscored, with its reason."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.judging.judges import Unscored
from hafrm.judging.parsing import parse_reply


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ("Output (a)", (1, 2)),
        ("Output (b)", (2, 1)),
        (" output (A).\n", (1, 2)),
        ("OUTPUT ( b ) .", (2, 1)),
    ],
)
def test_choices(reply: str, ranks: tuple[int, int]) -> None:
    assert parse_reply(reply, 2).ranks == ranks


@pytest.mark.parametrize(
    "reply",
    [
        "Output (c)",
        "Output (a) or Output (b)",
        "Output (a)\nOutput (b)",
        "I prefer Output (a)",
        "Output (a)!",
        "a",
        "(a)",
        "Output a",
        "Output (a)..",
        "Оutput (a)",  # a Cyrillic O
        "**Output (a)**",
    ],
)
def test_anything_else_is_no_choice(reply: str) -> None:
    assert parse_reply(reply, 2).unscored is Unscored.NO_CHOICE


@pytest.mark.parametrize("responses", [2, 4])
@pytest.mark.parametrize("reply", ["", " \n\t"])
def test_empty_replies(reply: str, responses: int) -> None:
    assert parse_reply(reply, responses).unscored is Unscored.EMPTY_REPLY


def ranking(*ranks: object, names: tuple[str, ...] = ("model_1", "model_2", "model_3", "model_4")) -> str:
    return json.dumps([{"model": name, "rank": rank} for name, rank in zip(names, ranks, strict=True)])


@pytest.mark.parametrize("ranks", list(permutations((1, 2, 3, 4))), ids=str)
def test_every_permutation_is_read(ranks: tuple[int, ...]) -> None:
    text = ranking(*ranks)
    assert parse_reply(text, 4).ranks == ranks
    assert parse_reply(f"```json\n{text}\n```", 4).ranks == ranks
    shuffled = json.dumps(json.loads(text)[::-1])
    assert parse_reply(shuffled, 4).ranks == ranks


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("model_1 is best", Unscored.NOT_JSON),
        ("[" * 100_000, Unscored.NOT_JSON),
        ("__import__('os').abort()", Unscored.NOT_JSON),
        (ranking(1, 2, 3, 4) + " as asked", Unscored.NOT_JSON),
        (ranking(1, 2, 3, 4).replace('"', "'"), Unscored.NOT_JSON),
        (f"```\n{ranking(1, 2, 3, 4)}\n```\n```\n{ranking(4, 3, 2, 1)}\n```", Unscored.NOT_JSON),
        ("{}", Unscored.NOT_A_RANKING),
        ("null", Unscored.NOT_A_RANKING),
        ("[1, 2, 3, 4]", Unscored.NOT_A_RANKING),
        (ranking(1, 2, 3, "4"), Unscored.NOT_A_RANKING),
        (ranking(True, 2, 3, 4), Unscored.NOT_A_RANKING),
        (ranking(1.0, 2, 3, 4), Unscored.NOT_A_RANKING),
        (ranking(1, 2, 3, 4).replace('"rank": 1', '"rank": 4, "rank": 1'), Unscored.NOT_A_RANKING),
        ('[{"model": "model_1", "rank": 1, "why": "short"}]', Unscored.NOT_A_RANKING),
        ("[]", Unscored.WRONG_MODELS),
        (ranking(1, 2, 3, 4, names=("model_1", "model_2", "model_3", "model_5")), Unscored.WRONG_MODELS),
        (ranking(1, 2, 3, 4, names=("model_1", "model_2", "model_3", "model_3")), Unscored.WRONG_MODELS),
        (ranking(1, 1, 3, 4), Unscored.NOT_A_PERMUTATION),
        (ranking(0, 1, 2, 3), Unscored.NOT_A_PERMUTATION),
        (ranking(1, 2, 3, 10**30), Unscored.NOT_A_PERMUTATION),
    ],
)
def test_anything_else_is_no_ranking(reply: str, reason: Unscored) -> None:
    assert parse_reply(reply, 4).unscored is reason


@given(reply=st.text(max_size=60), responses=st.integers(2, 8))
def test_no_text_breaks_the_parser(reply: str, responses: int) -> None:
    answer = parse_reply(reply, responses, prompt_tokens=3, completion_tokens=4)
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 4)
