"""Bodies of any size are refused at their first fault, and read in time proportional to their size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from hafrm.serving.protocols import EvaluationRequest, GetRewardRequest, RewardsRequest
from hafrm.serving.tei import PredictRequest
from hafrm.serving.vllm import PoolingRequest, RerankRequest, ScoreRequest
from tests.serving.conftest import live, tiny_scorer

MANY = 200_000
ITEMS = 16_000
TURN = {"role": "user", "content": "a"}
STRANGERS = {f"k{i}": i for i in range(MANY)}


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        (RewardsRequest, {"conversations": [1] * ITEMS}),
        (RewardsRequest, {"conversations": [{"prompt": [1] * ITEMS, "response": [2] * ITEMS}] * 100}),
        (RewardsRequest, {"conversations": [{"prompt": [STRANGERS], "response": []}]}),
        (RewardsRequest, {"conversations": [{"prompt": [TURN], "response": [TURN]} | STRANGERS]}),
        (RewardsRequest, {"conversations": []} | STRANGERS),
        (RewardsRequest, {"conversations": [{"prompt": [TURN | {"tool_calls": [1] * ITEMS}], "response": []}]}),
        (RewardsRequest, {"conversations": [{"prompt": [TURN], "response": [TURN], "tools": [1] * ITEMS}]}),
        (RewardsRequest, {"conversations": [{"prompt": [TURN | {"content": [STRANGERS] * 9}], "response": [TURN]}]}),
        (GetRewardRequest, {"query": [[1, "a"] * ITEMS]}),
        (GetRewardRequest, {"query": [[{}] * ITEMS] * 9}),
        (GetRewardRequest, {"query": [{}] * ITEMS, "documents": ["a", 1] * ITEMS, "tools": [None] * ITEMS}),
        (PredictRequest, {"inputs": [[1] * ITEMS, *[None] * ITEMS]}),
        (ScoreRequest, {"queries": [1] * ITEMS, "documents": [{}] * ITEMS}),
        (EvaluationRequest, {"messages": [[[]] * ITEMS, *[{}] * ITEMS]}),
        (PoolingRequest, {"input": [[None] * ITEMS] * 9, "messages": [STRANGERS] * 9}),
        (PoolingRequest, {"messages": [TURN | {"content": [1] * ITEMS}] * 9}),
        (RerankRequest, {"query": [1] * ITEMS, "documents": [1] * ITEMS, "tools": [1] * ITEMS}),
    ],
)
def test_a_wrong_body_has_few_faults_however_long_it_is(model: type[BaseModel], sent: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(sent)
    assert len(refused.value.errors(include_input=False)) < 30


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with live(tiny_scorer()) as address:
        yield address


def timed(address: str, path: str, sent: Any) -> tuple[httpx.Response, float]:
    """Return the answer to a body, and the seconds that it took."""
    start = time.perf_counter()
    return httpx.post(address + path, json=sent, timeout=60), time.perf_counter() - start


@pytest.mark.parametrize(
    "query",
    ["<pad>" * 300_000 + "a b", "a" + "</s>" * 300_000, "a" + " </s>\n" * 200_000, [7, 8] + [2] * 300_000],
    ids=["pads", "ends", "spaced ends", "ids"],
)
def test_repeated_marks_take_no_time_of_their_square(query: Any, served: str) -> None:
    answer, seconds = timed(served, "/get_reward", {"query": [query]})
    assert answer.status_code == 200, answer.text
    assert seconds < 20


def test_equal_turns_take_no_time_of_their_square(served: str) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(4001)]
    sent = {"conversations": [{"prompt": turns, "response": [{"role": "assistant", "content": "b"}]}]}
    answer, seconds = timed(served, "/v1/rewards", sent)
    assert answer.json()["rewards"][0]["unscored"] == "overlong"
    assert seconds < 15
