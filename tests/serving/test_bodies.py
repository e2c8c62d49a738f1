"""Bodies of any size and kind are read as `json` reads them, refused at their first fault, and hold no other client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from hafrm.serving.bodies import _Decoder
from hafrm.serving.protocols.llama_factory import ScoreRequest
from hafrm.serving.protocols.native import RewardsRequest
from hafrm.serving.protocols.openrlhf import GetRewardRequest
from hafrm.serving.protocols.vllm import PoolingRequest, RerankRequest
from tests.serving.conftest import live, tiny_scorer

MANY = 200_000
ITEMS = 16_000
TURN = {"role": "user", "content": "a"}
STRANGERS = {f"k{i}": i for i in range(MANY)}


def drawn(random: Random, levels: int) -> Any:
    """A JSON value of at most so many levels."""
    kind = random.randrange(9 if levels else 6)
    if kind < 6:
        return [random.random(), random.randint(-9, 10**25), 'é\n"\\\ud800', None, True, ""][kind]
    if kind == 6:
        return {f"k{i % 3}": drawn(random, levels - 1) for i in range(random.randrange(5))}
    return [drawn(random, levels - 1) for _ in range(random.randrange(5))]


def outcome(text: str, decoder: type[json.JSONDecoder] | None) -> Any:
    try:
        return repr(json.loads(text, cls=decoder))
    except json.JSONDecodeError as error:
        return error.msg, error.pos
    except RecursionError:
        return "deep"


def test_large_bodies_are_read_as_small_ones_are() -> None:
    random = Random(0)
    texts = [
        "",
        " ",
        "[",
        "{",
        "[1,]",
        '{"a"}',
        '{"a":}',
        "[1] 2",
        "NaN",
        '{"a": 1, "a": 2}',
        "[" * 10**5,
        '{"a":' * 10**5,
    ]
    for i in range(1500):
        whole = json.dumps(drawn(random, 6), ensure_ascii=i % 2 == 0, indent=(None, 1)[i % 3 == 0])
        place = random.randrange(len(whole))
        texts += [whole, whole[:place] + whole[place + 1 :], whole[:place]]
    for text in texts:
        assert outcome(text, _Decoder) == outcome(text, None), text[:200]


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
        (ScoreRequest, {"messages": [[[]] * ITEMS, *[{}] * ITEMS]}),
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
    """What a body is answered, and in how many seconds."""
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
