"""Keys, hosts, sizes, and bodies that were made to break a server: never a 500, never a traceback."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from hafrm.serving.config import is_loopback
from tests.serving.conftest import body, live, tiny_scorer
from tests.tiny import tiny_tokenizer

ONE = body(Conversation.of("How are you?", "Fine."))
PATHS = ["/v1/rewards", "/get_reward", "/v1/score/evaluation", "/classify", "/pooling", "/rerank"]
DEEP = 100_000
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no json": b"{broken",
    "not an object": b"[1, 2]",
    "null": b"null",
    "invalid utf-8": b'{"query": ["\xff\xfe"]}',
    "deep list": b"[" * DEEP + b"]" * DEEP,
    "deep field": b'{"query": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep labels": b'{"query": ["fine text"], "labels": ' + b"[" * 900 + b"]" * 900 + b"}",
    "huge integer": b'{"query": ["a"], "labels": [' + b"9" * 5000 + b'], "top_n": ' + b"9" * 400 + b"}",
    "huge float": b'{"query": "a", "documents": ["b"], "top_n": 1e999, "input": 1e999, "messages": [1e999]}',
    "NaN": b'{"query": NaN, "input": [NaN], "messages": NaN, "conversations": [NaN]}',
    "NaN labels": b'{"query": ["fine text"], "labels": [NaN, Infinity]}',
    "lone surrogate": b'{"query": ["\\ud800"], "input": "\\ud800", "messages": ["\\udfff"], "documents": ["\\ud800"]}',
    "surrogate as field": b'{"\\ud800": 1, "conversations": []}',
    "surrogate in a turn": json.dumps(ONE).replace("Fine.", "\\ud83d").encode(),
    "unknown role": json.dumps(ONE).replace("assistant", "root").encode(),
    "extra field": json.dumps(ONE | {"admin": True}).encode(),
    "numbers for text": b'{"conversations": [{"prompt": 1}], "query": [1], "input": [1], "messages": [1]}',
    "many": json.dumps({"query": ["a b"] * 2000, "input": ["a b"] * 2000, "messages": ["a b"] * 2000}).encode(),
    "nul and controls": b'{"query": ["\\u0000\\u0007 text"], "input": "\\u0000", "documents": ["\\u0000"]}',
    "special tokens": b'{"query": ["<s></s><pad><unk>"], "input": "<pad><pad>", "messages": ["</s></s>"]}',
    "repeated field": b'{"query": ["fine text"], "query": 3}',
    "10 MB": b'{"query": ["' + b"a" * 10_000_000 + b'"]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies(name: str, client: httpx.Client) -> None:
    for path in PATHS:
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
            answer = client.post(path, content=HOSTILE[name], headers={"Content-Type": kind} if kind else {})
            assert answer.status_code < 500, (path, kind, answer.text)
            assert "Traceback" not in answer.text
            assert len(answer.content) < 2000 or answer.status_code == 200
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"type", "message", "code", "id"}
    assert client.post("/v1/rewards", json=ONE).status_code == 200


TURNS = '"response": [{"role": "assistant", "content": "b"}]}]}'


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/get_reward", '{"query": ["fine text"], "query": ["other text"]}'),
        ("/get_reward", '{"query": ["fine text"], "model": "a", "model": "b"}'),
        ("/v1/rewards", '{"conversations": [{"prompt": [{"role": "user", "content": "a", "content": "b"}], ' + TURNS),
    ],
    ids=["query", "model", "turn"],
)
def test_a_field_that_is_sent_twice_is_named(path: str, sent: str, client: httpx.Client) -> None:
    """Only the last of two values would be scored, as rows on disk, where they are refused too."""
    answer = client.post(path, content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert re.search(r"key '(query|model|content)' twice", answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Content-Type": "text/plain"}, "application/json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "Content-Encoding"),
    ],
    ids=["text", "form", "gzip"],
)
def test_a_body_of_another_kind_is_told_which_header_is_wrong(
    headers: dict[str, str], named: str, client: httpx.Client
) -> None:
    content = json.dumps(ONE).encode()
    if "Content-Encoding" in headers:
        content = gzip.compress(content)
    answer = client.post("/v1/rewards", content=content, headers=headers)
    assert answer.status_code == 415
    assert client.post("/v1/rewards", json=ONE, headers={"Content-Encoding": "utf-8"}).status_code == 200
    assert named in answer.json()["error"]["message"]


def test_a_body_is_refused_by_its_size(client: httpx.Client) -> None:
    assert client.post("/get_reward", content=HOSTILE["10 MB"]).status_code == 413

    def chunks() -> Iterator[bytes]:  # no header announces their length
        for _ in range(100):
            yield b" " * 100_000

    assert client.post("/get_reward", content=chunks()).status_code == 413


def test_a_body_that_does_not_come_is_given_up(scorer: HybridScorer) -> None:
    with live(scorer, body_timeout=0.2, max_requests=1) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert httpx.post(f"{address}/v1/rewards", json=ONE).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [[], [b"POST /v1/rew"], [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /hea"]],
    ids=["silent", "half a head", "half a second head"],
)
def test_a_head_that_does_not_come_is_given_up(sent: list[bytes], scorer: HybridScorer) -> None:
    with live(scorer, body_timeout=0.3, connections=1) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            for number, piece in enumerate(sent):
                assert not number or slow.recv(1000).startswith(b"HTTP/1.1 200")
                slow.sendall(piece)
            assert httpx.get(f"{address}/health", timeout=20).status_code == 200  # once that slot is free


def test_a_head_that_comes_in_drops_is_given_up(scorer: HybridScorer) -> None:
    with live(scorer, body_timeout=0.5) as address:
        host, port = address.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as slow,
            pytest.raises((BrokenPipeError, ConnectionResetError)),
        ):
            for letter in b"POST /v1/rewards HTTP/1.1" * 100:
                slow.sendall(bytes([letter]))
                time.sleep(0.02)


def test_an_answer_that_is_not_read_is_given_up(scorer: HybridScorer) -> None:
    cutting = tiny_scorer(overlong="truncate")
    content = json.dumps({"query": "a", "documents": ["b " * 2**16] * 3}).encode()
    head = (
        f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    with live(cutting, body_timeout=0.5, connections=1, send_buffer=2**14) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
            deaf.sendall(f"{head}\r\n\r\n".encode() + content)
            assert httpx.get(f"{address}/health", timeout=60).status_code == 200


@pytest.mark.parametrize(
    "fault",
    ["1 // 0", "1 + 'a'", "'a' * 10**14", "range(10**9) | list", "[][1:2] | first | abs", "raise_exception('\x1b[2J')"],
)
def test_a_template_that_fails_on_a_text_refuses_that_text(fault: str) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.content == 'no' %}{{ " + fault + " }}{% endif %}{% endfor %}"
    )
    with live(tiny_scorer(tiny_tokenizer(template=template))) as address:
        data = body(Conversation.of("yes", "a"), Conversation.of("no", "a"), Conversation.of("yes", "b"))
        rewards = httpx.post(f"{address}/v1/rewards", json=data).raise_for_status().json()["rewards"]
        assert [item["unscored"] for item in rewards] == [None, "refused_by_template", None]
        answer = httpx.post(f"{address}/rerank", json={"query": "no", "documents": ["a"]})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "refused_by_template")
        assert "\x1b" not in answer.text


def test_conversations_a_request_are_bounded(scorer: HybridScorer) -> None:
    with live(scorer, max_conversations=2) as address:
        for count, status in ((2, 200), (3, 400)):
            data = body(*[Conversation.of("How are you?", "Fine.")] * count)
            assert httpx.post(f"{address}/v1/rewards", json=data).status_code == status


def test_a_key_is_asked_for_everything_that_tells_of_the_model(scorer: HybridScorer) -> None:
    with live(scorer, api_key="s3cret") as address:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer"},
        ):
            for path in PATHS:
                answer = httpx.post(f"{address}{path}", json=ONE, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert httpx.get(f"{address}/metrics", headers=headers).status_code == 401
            assert httpx.get(f"{address}/openapi.json", headers=headers).status_code == 401
        for path in ("/", "/health", "/ready"):
            assert httpx.get(f"{address}{path}").status_code == 200
        right = {"Authorization": "Bearer s3cret"}
        assert httpx.post(f"{address}/v1/rewards", json=ONE, headers=right).status_code == 200


def test_a_local_server_answers_to_local_names_alone(client: httpx.Client) -> None:
    """A foreign web page whose host name resolves to this machine can't read anything."""
    for name, status in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403)):
        assert client.post("/v1/rewards", json=ONE, headers={"Host": name}).status_code == status, name


@pytest.mark.parametrize(("host", "status"), [("127.0.0.2", 403), ("LOCALHOST", 403), ("0.0.0.0", 200)])
def test_every_loopback_address_is_local(host: str, status: int, scorer: HybridScorer) -> None:
    with live(scorer, host=host) as address:
        answer = httpx.post(f"{address}/v1/rewards", json=ONE, headers={"Host": "evil.example"})
        assert answer.status_code == status
        for name in ("127.0.0.2:80", "[::1]"):
            assert httpx.post(f"{address}/v1/rewards", json=ONE, headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)]
    + [("10.0.0.1", False), ("localhost.example", False), ("127.0.0.1.example", False)],
)
def test_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_what_uvicorn_answers_itself_is_plain_text(address: str) -> None:
    """Requests that never reach the app, as `SECURITY.md` says."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"text/plain" in answer


def test_state_and_metrics(client: httpx.Client) -> None:
    client.post("/v1/rewards", json=ONE).raise_for_status()
    client.get("/nothing/of/the/kind")
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    text = client.get("/metrics").text
    assert 'hafrm_requests_total{path="/v1/rewards",status="200"}' in text
    assert 'hafrm_requests_total{path="other",status="404"}' in text
    assert "nothing/of" not in text
    for name in ("hafrm_request_seconds", "hafrm_queue_requests", "hafrm_tokens", "hafrm_batch_conversations"):
        assert name in text
    assert {*PATHS, "/health", "/ready", "/metrics"} <= set(client.get("/openapi.json").json()["paths"])


def test_methods_and_paths_that_are_not_there(client: httpx.Client) -> None:
    for method, path in (("GET", "/v1/rewards"), ("DELETE", "/"), ("POST", "/"), ("PUT", "/rerank"), ("POST", "/docs")):
        answer: Any = client.request(method, path)
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["code"] == answer.status_code
    assert client.get("/v1/rewards").headers["allow"] == "POST"
    assert client.head("/health").status_code == 200  # as load balancers ask
