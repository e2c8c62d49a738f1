"""A row with tools, calls, reasoning or template arguments has the same reward from disk and over every protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from hafrm.contract import parse_pair
from hafrm.data import ReadOptions, read_rows
from hafrm.evaluation.bulk import score_chunk
from hafrm.models.remote import RemoteScorer
from hafrm.models.scorers import HybridScorer
from tests.serving.conftest import live, tiny_scorer
from tests.test_whole_rows import ROWS, TOOLS, tokenizer_of

COLUMNS = ("tools", "documents", "chat_template_kwargs")


@pytest.fixture(scope="module")
def scorer() -> HybridScorer:
    return tiny_scorer(tokenizer_of("qwen3"), limit=4000)


@pytest.fixture(scope="module")
def address(scorer: HybridScorer) -> Iterator[str]:
    with live(scorer) as found:
        yield found


@pytest.fixture
def from_disk(scorer: HybridScorer, tmp_path: Path) -> list[float]:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS.values())), encoding="utf-8")
    scored = score_chunk(scorer, list(read_rows(path)), options=ReadOptions())
    return [reward for row in scored for reward in row.rewards.values() if reward is not None]


def of_request(row: dict[str, Any]) -> dict[str, Any]:
    """The row's columns, as values or as JSON text."""
    return {name: row[name] for name in COLUMNS if name in row}


def test_disk_and_every_protocol_agree(address: str, from_disk: list[float]) -> None:
    assert len(from_disk) == 2 * len(ROWS)
    native, classified, listed, evaluated = [], [], [], []
    with httpx.Client(base_url=address) as client:
        for row in ROWS.values():
            for name in ("chosen", "rejected"):
                sent = {"prompt": row["prompt"], "response": row[name], **of_request(row)}
                answer = client.post("/v1/rewards", json={"conversations": [sent]}).raise_for_status().json()
                native.append(answer["rewards"][0]["reward"])
                sent = {"messages": [*row["prompt"], *row[name]], "use_activation": False, **of_request(row)}
                answer = client.post("/classify", json=sent).raise_for_status().json()
                classified.append(answer["data"][0]["probs"][0])
                for path, field, key, found in (
                    ("/get_reward", "query", "rewards", listed),
                    ("/v1/score/evaluation", "messages", "scores", evaluated),
                ):
                    asked = {field: [sent["messages"]], **of_request(row)}
                    found += client.post(path, json=asked).raise_for_status().json()[key]
    assert native == pytest.approx(from_disk, abs=1e-5)
    for found in (classified, listed, evaluated):
        assert found == pytest.approx(from_disk, abs=1e-5)


@pytest.mark.parametrize("path", ["", "/classify", "/pooling"])
def test_our_own_client_sends_whole_rows(path: str, address: str, from_disk: list[float]) -> None:
    pairs = [parse_pair(row, source="s", number=1) for row in ROWS.values()]
    with closing(RemoteScorer(address + path)) as remote:
        found = remote.score([each for pair in pairs for each in pair.conversations])
    assert found == pytest.approx(from_disk, abs=1e-5)


@pytest.mark.parametrize("change", [{"weight": 1}, {"audio": {"id": "x"}}, {"content": [{"type": "image"}]}], ids=str)
def test_a_turn_with_a_key_that_would_be_lost_is_refused(change: dict[str, Any], address: str) -> None:
    turn = {"role": "user", "content": "Hi"} | change
    sent = {"conversations": [{"prompt": [turn], "response": [{"role": "assistant", "content": "Yes."}]}]}
    answer = httpx.post(f"{address}/v1/rewards", json=sent)
    assert answer.status_code == 422
    assert str(next(iter(change))) in answer.text


def test_columns_that_rendered_texts_have_no_use_for_are_refused(address: str) -> None:
    for path, field in (("/classify", "input"), ("/get_reward", "query"), ("/v1/score/evaluation", "messages")):
        answer = httpx.post(address + path, json={field: ["some text"], "tools": [{"type": "function"}]})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "unsupported")


def test_null_counts_as_absent_whatever_the_key(address: str, from_disk: list[float]) -> None:
    nulls = {"refusal": None, "audio": None, "function_call": None, "tool_calls": None}
    row = ROWS["nulls of an Arrow table"]
    turns = [{**turn, **nulls} for turn in (*row["prompt"], *row["chosen"])]
    answer = httpx.post(f"{address}/classify", json={"messages": turns, "use_activation": False})
    place = 2 * list(ROWS).index("nulls of an Arrow table")
    assert answer.raise_for_status().json()["data"][0]["probs"] == pytest.approx([from_disk[place]], abs=1e-5)


HI = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes."}


def test_a_system_field_is_the_system_turn_or_refused(address: str) -> None:
    with httpx.Client(base_url=address) as client:

        def reward(**sent: Any) -> float:
            answer = client.post("/v1/rewards", json={"conversations": [{"response": [YES], **sent}]})
            return float(answer.raise_for_status().json()["rewards"][0]["reward"])

        turn = {"role": "system", "content": "Be kind."}
        assert reward(prompt=[HI], system="Be kind.") == pytest.approx(reward(prompt=[turn, HI]), abs=1e-5)
        assert reward(prompt=[HI]) != pytest.approx(reward(prompt=[turn, HI]), abs=1e-4)
        for name, value in (("system", "Be kind."), ("history", [["a", "b"]]), ("images", ["x"])):
            for path, field, sent in (("/classify", "messages", [HI, YES]), ("/get_reward", "query", [[HI, YES]])):
                answer = client.post(path, json={field: sent, name: value})
                assert answer.status_code == 422
                assert f"`{name}`" in answer.text
        assert client.post("/classify", json={"messages": [HI, YES], "system": None, "user": "me"}).is_success


def test_an_error_says_what_disk_says(address: str) -> None:
    answer = httpx.post(f"{address}/classify", json={"messages": [HI, YES], "tools": "zz"})
    assert answer.status_code == 400
    for part in ("wrong_type", "`tools`", "list of objects"):
        assert part in answer.json()["error"]["message"]
    sent = {"prompt": [HI], "response": [YES], "tools": "zz"}
    (found,) = httpx.post(f"{address}/v1/rewards", json={"conversations": [sent]}).json()["rewards"]
    assert "`tools`" in found["fault"]


@pytest.mark.parametrize(("path", "field", "many"), [("/classify", "messages", False), ("/get_reward", "query", True)])
def test_an_image_is_said_not_to_be_read(path: str, field: str, many: bool, address: str) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    answer = httpx.post(address + path, json={field: [[image, YES]] if many else [image, YES]})
    assert answer.status_code == 422
    assert "images" in answer.json()["error"]["message"]
    assert "image_url" in answer.json()["error"]["message"]


def test_rerank_takes_tools_as_json_text(address: str) -> None:
    found = [
        httpx.post(f"{address}/rerank", json={"query": "Rain?", "documents": ["Yes."], "tools": tools})
        for tools in (TOOLS, json.dumps(TOOLS))
    ]
    first, second = (answer.raise_for_status().json()["results"] for answer in found)
    assert first == second
