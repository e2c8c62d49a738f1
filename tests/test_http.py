"""Answers of hostile servers are bounded in size and time, and no redirect is followed: reward servers and judges."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hafrm import http
from hafrm.errors import ConfigError, ModelError
from hafrm.http import RetryRule
from hafrm.judging.cache import ReplyCache
from hafrm.judging.endpoint import EndpointJudge
from hafrm.judging.judges import Question, Unscored
from hafrm.judging.options import Budget, JudgeOptions
from hafrm.models.remote import RemoteScorer
from hafrm.pairs import Conversation, Message, Prompt

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
Behave = Callable[[socket.socket, threading.Event], None]


def endless_body(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(HEAD + b"\r\n")
    while not stop.is_set():
        peer.sendall(b" " * 65536)


def drip(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(HEAD + b"content-length: 100000\r\n\r\n")
    while not stop.wait(0.05):
        peer.sendall(b" ")


def dripping_headers(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(HEAD + b"x: ")
    while not stop.wait(0.05):
        peer.sendall(b"y")


def bomb(peer: socket.socket, stop: threading.Event) -> None:
    body = gzip.compress(b" " * (64 << 20))
    peer.sendall(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


class Socket:
    """A server that behaves as scripted and records what clients send."""

    def __init__(self, behave: Behave) -> None:
        self.behave, self.stop, self.requests = behave, threading.Event(), list[bytes]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            with peer:
                self.requests.append(peer.recv(65536))
                self.behave(peer, self.stop)
        except OSError:
            pass


@pytest.fixture
def serve() -> Iterator[Callable[[Behave], Socket]]:
    made: list[Socket] = []

    def start(behave: Behave) -> Socket:
        made.append(Socket(behave))
        return made[-1]

    yield start
    for each in made:
        each.stop.set()
        each.listener.close()


def judge(url: str, folder: Path) -> EndpointJudge:
    options = JudgeOptions(kind="openai", model="m", base_url=f"{url}/v1", timeout=0.2, retries=0)
    return EndpointJudge(options, ReplyCache(folder / "replies"), Budget())


QUESTION = Question(Prompt((Message("user", "Hi"),)), ((Message("assistant", "a"),), (Message("assistant", "b"),)))


@pytest.mark.parametrize("behave", [endless_body, drip, dripping_headers, bomb])
def test_answers_are_bounded(
    behave: Behave, serve: Callable[[Behave], Socket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(http, "LARGEST_ANSWER", 1 << 20)
    server = serve(behave)
    began = time.monotonic()
    scorer = RemoteScorer(server.url, retries=RetryRule(attempts=1, timeout=0.2))
    with closing(scorer), pytest.raises(ModelError):
        scorer.score([Conversation.of("Hi", "Hello")])
    with closing(judge(server.url, tmp_path)) as asked:
        (answer,) = asked.ask([QUESTION])
    slow = "drip" in behave.__name__
    assert answer.unscored in ((Unscored.TIMEOUT,) if slow else (Unscored.CONNECTION, Unscored.TIMEOUT))
    assert time.monotonic() - began < 20


def test_no_redirect_is_followed(
    serve: Callable[[Behave], Socket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    other = serve(endless_body)

    def redirect(peer: socket.socket, stop: threading.Event) -> None:
        target = f"{other.url}/v1/chat/completions".encode()
        peer.sendall(b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\nlocation: " + target + b"\r\n\r\n")

    server = serve(redirect)
    with closing(RemoteScorer(server.url)) as scorer, pytest.raises(ModelError, match="307"):
        scorer.score([Conversation.of("Hi", "Hello")])
    with closing(judge(server.url, tmp_path)) as asked, pytest.raises(ModelError, match=r"judge\.base_url"):
        asked.ask([QUESTION])
    assert server.requests
    assert not other.requests


def test_a_servers_word_is_shown_short_and_without_control_characters(
    serve: Callable[[Behave], Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    entry = {"reward": None, "tokens": 0, "truncated": False, "unscored": "\x1b[2J" + "x" * 100_000}

    def answer(peer: socket.socket, stop: threading.Event) -> None:
        body = json.dumps({"model": "m", "rewards": [entry]}).encode()
        peer.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)

    with (
        closing(RemoteScorer(serve(answer).url)) as scorer,
        pytest.raises(Exception, match="conversation") as caught,
    ):
        scorer.score([Conversation.of("Hi", "Hello")])
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_key_in_an_address_is_refused() -> None:
    with pytest.raises(ConfigError):
        RemoteScorer("http://localhost:1/#sk-secret")
    with pytest.raises(ConfigError) as caught:
        JudgeOptions(kind="openai", model="m", base_url="http://localhost:1/v1#sk-secret")
    assert "sk-secret" not in str(caught.value)


def test_retries_wait_longer_and_at_least_as_long_as_asked() -> None:
    rule, waits = RetryRule(attempts=6, first_wait=1.0, longest_wait=100.0), list[float]()
    outcomes = iter([0.0, 0.0, 7.0, 0.0, 0.0, 0.0])
    assert http.retry(lambda: next(outcomes), lambda asked: asked, rule, waits.append) == 0.0
    assert [low <= wait <= high for wait, (low, high) in zip(waits, RANGES, strict=True)] == [True] * 5


RANGES = [(0.5, 1.0), (1.0, 2.0), (7.0, 7.25), (4.0, 8.0), (8.0, 16.0)]


@pytest.mark.parametrize(("wanted", "sent"), [(None, 1), (100.0, 3), (100.1, 1)])
def test_a_final_outcome_and_a_wish_for_too_long_a_rest_end_retries(wanted: float | None, sent: int) -> None:
    requests = list[int]()
    rule = RetryRule(attempts=3, longest_wait=100.0)
    http.retry(lambda: requests.append(1), lambda _: wanted, rule, lambda seconds: None)
    assert len(requests) == sent


def test_own_waits_end_growing() -> None:
    assert all(15.0 <= RetryRule().wait(attempt, 0.0) <= 30.0 for attempt in range(7, 40))


def test_proxies_of_the_environment_are_not_asked(
    serve: Callable[[Behave], Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(peer: socket.socket, stop: threading.Event) -> None:
        peer.sendall(HEAD + b"content-length: 2\r\n\r\n[]")

    proxy, server = serve(endless_body), serve(answer)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with closing(http.Client(timeout=5, extra="serve", key="sk-secret-123")) as client:
        response = client.post(server.url, {"a": "\u00e9"})
        assert client.without_key("no sk-secret-123!") == "no [API key]!"
    assert (response.status, response.json(), response.trouble) == (200, [], "")
    assert not proxy.requests
    (request,) = server.requests
    assert b"Bearer sk-secret-123" in request
