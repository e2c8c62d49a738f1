"""The scorer for servers, against a real one on this machine: its requests, and how it handles responses."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main
from hafrm.errors import BadRowError, ConfigError, MissingExtraError, ModelError, RefusedError
from hafrm.evaluation.options import EvaluateConfig, ScoreConfig
from hafrm.evaluation.scoring import score_conversations
from hafrm.http import RetryRule, seconds_to_wait
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.remote import API_KEY, RemoteScorer
from hafrm.pairs import Conversation
from tests.tiny import some_pairs

CONVERSATIONS = [Conversation.of("How many?", "x" * length) for length in range(1, 12)]
QUICK = RetryRule(attempts=3, timeout=0.3, first_wait=0.01, longest_wait=2.0)
KEY = "a-key-that-nobody-may-see"

Answer = tuple[int, dict[str, str], bytes]


def rewards(request: dict[str, Any]) -> list[dict[str, Any]]:
    """A reward is the response's length."""
    found = [float(len(c["response"][-1]["content"])) for c in request["conversations"]]
    return [{"reward": reward, "tokens": 3, "truncated": False, "unscored": None} for reward in found]


def native(path: str, request: dict[str, Any]) -> Any:
    return {"model": "a-model", "rewards": rewards(request)}


def vllm(path: str, request: dict[str, Any]) -> Any:
    assert request["use_activation"] is False
    assert request.get("task") == ("classify" if path == "/pooling" else None)
    reward = float(len(request["messages"][-1]["content"]))
    entry = {"probs": [reward], "num_classes": 1} if path == "/classify" else {"data": [reward]}
    return {"model": "a-model", "object": "list", "data": [{"index": 0, **entry}]}


class Server:
    """A reward server whose answers a test sets: JSON, a status with headers and bytes, or a function."""

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, Any]], Any] = native
        self.first: list[Answer | Callable[[BaseHTTPRequestHandler], None]] = []
        """Answers given before the others."""
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            self.requests.append(request)
            self.keys.add(handler.headers["authorization"])
            special = self.first.pop(0) if self.first else None
        if callable(special):
            special(handler)
            return
        answer = special or self.answer(handler.path, request)
        if not isinstance(answer, tuple):
            answer = (200, {}, json.dumps(answer).encode())
        status, headers, content = answer
        handler.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(API_KEY, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def scorer(server: Server, path: str = "", **options: Any) -> RemoteScorer:
    return RemoteScorer(server.url + path, retries=QUICK, **options)


def lengths() -> list[float]:
    return [float(len(c.response[0].content)) for c in CONVERSATIONS]


@pytest.mark.parametrize("path", ["", "/", "/v1/rewards", "/prefix/v1/rewards"])
def test_hafrms_own_protocol(server: Server, path: str) -> None:
    assert scorer(server, path, batch_size=4).score(CONVERSATIONS) == lengths()
    sizes = sorted(len(request["conversations"]) for request in server.requests)
    assert sizes == [1, 3, 4, 4]  # the first is to know the model
    turns = server.requests[-1]["conversations"][0]
    assert turns["prompt"] == [{"role": "user", "content": "How many?"}]
    assert turns["response"][0]["role"] == "assistant"
    assert server.keys == {None}


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
def test_vllms_protocols(server: Server, path: str) -> None:
    server.answer = vllm
    found = scorer(server, path)
    assert found.score(CONVERSATIONS) == lengths()
    assert found.model_name() == "a-model"
    assert [m["role"] for m in server.requests[0]["messages"]] == ["user", "assistant"]


def test_no_more_requests_are_under_way_than_allowed(server: Server) -> None:
    busy, seen = [0], []

    def slow(path: str, request: dict[str, Any]) -> Any:
        """Count it only until the answer is sent: the client may send the next one before this thread continues."""
        with server.lock:
            busy[0] += 1
            seen.append(busy[0])
        time.sleep(0.03)
        with server.lock:
            busy[0] -= 1
        return native(path, request)

    server.answer = slow
    scorer(server, batch_size=1, concurrency=3).score(CONVERSATIONS)
    assert 1 < max(seen) <= 3


def test_conversations_without_a_reward_say_why(server: Server) -> None:
    reasons = {3: "overlong"}

    def partly(path: str, request: dict[str, Any]) -> Any:
        found = rewards(request)
        for entry in found:
            if reason := reasons.get(int(entry["reward"])):
                entry |= {"reward": None, "unscored": reason}
        return {"model": "a-model", "rewards": found}

    server.answer = partly
    assert scorer(server).score(CONVERSATIONS) == [1.0, 2.0, None, *lengths()[3:]]
    reasons[5] = "roles must alternate"
    with pytest.raises(RefusedError) as error:
        scorer(server).score(CONVERSATIONS)
    assert error.value.reasons == {4: "roles must alternate"}


def test_what_vllm_refuses_is_that_conversations_fault(server: Server) -> None:
    server.answer = lambda path, request: (
        (400, {}, b"too long") if len(request["messages"][-1]["content"]) == 7 else vllm(path, request)
    )
    with pytest.raises(RefusedError) as error:
        scorer(server, "/classify").score(CONVERSATIONS)
    assert list(error.value.reasons) == [6]
    assert "too long" in error.value.reasons[6]


def said(message: str, kind: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "code": 400}}).encode()


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
@pytest.mark.parametrize(
    "words",
    [
        said("Input 0 has no reward: overlong (300 tokens; the model's limit is 200).", "overlong"),
        said("This model's maximum context length is 200 tokens. However, you requested 300.", "BadRequestError"),
        said("The decoder prompt is too long. Make sure that `max_model_len` is no smaller.", "BadRequestError"),
    ],
    ids=["hafrm", "vLLM", "older vLLM"],
)
def test_what_is_over_the_servers_limit_is_nobodys_fault(server: Server, path: str, words: bytes) -> None:
    server.answer = lambda path, request: (
        (400, {}, words) if len(request["messages"][-1]["content"]) == 7 else vllm(path, request)
    )
    assert scorer(server, path).score(CONVERSATIONS) == [*lengths()[:6], None, *lengths()[7:]]


def test_what_a_server_refuses_is_asked_once_and_the_servers_words_stand(server: Server) -> None:
    """This includes skipping such rows; the remedy does not mention a tokenizer, because the server has it."""
    answers = {5: (400, {}, said("roles must alternate", "BadRequestError")), 7: (400, {}, said("long", "overlong"))}
    server.answer = lambda path, request: answers.get(len(request["messages"][-1]["content"])) or vllm(path, request)
    rows = [("rows.jsonl", number) for number in range(1, 12)]
    found = score_conversations(scorer(server, "/classify"), CONVERSATIONS, rows, on_bad_row="skip")
    expected: list[Any] = lengths()
    expected[4], expected[6] = "refused_by_template", "overlong"
    assert found == expected
    assert len(server.requests) == 1 + len(CONVERSATIONS)
    with pytest.raises(BadRowError, match=r"rows\.jsonl, row 5: .*roles must alternate") as error:
        score_conversations(scorer(server, "/classify"), CONVERSATIONS, rows, on_bad_row="error")
    assert "tokenizer" not in str(error.value)


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.6)


def half(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    handler.close_connection = True


BUSY: Answer = (503, {}, b"")
LATER: Answer = (429, {"Retry-After": "0.2"}, b"")
GARBLED: Answer = (200, {"Content-Encoding": "gzip"}, b"no archive")
BEHIND_A_PROXY: dict[str, Answer] = {str(status): (status, {}, b"<html>") for status in (408, 502, 504)}
TROUBLES = {"503": BUSY, **BEHIND_A_PROXY, "429": LATER, "hang": hang, "half": half, "garbled": GARBLED}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_passing_trouble_is_waited_out(server: Server, trouble: Any) -> None:
    server.first = [trouble, trouble]
    started = time.monotonic()
    assert scorer(server).score(CONVERSATIONS) == lengths()
    assert len(server.requests) == 4
    assert (time.monotonic() - started > 0.4) >= (trouble is LATER)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_lasting_trouble_ends_in_an_error(server: Server, trouble: Any) -> None:
    server.first = [trouble] * 20
    with pytest.raises(ModelError, match=r"no answer in 3 attempts .*server runs"):
        scorer(server).score(CONVERSATIONS)
    assert len(server.requests) == 3


@pytest.mark.parametrize("asked", ["3600", formatdate(time.time() + 7200, usegmt=True)], ids=["seconds", "date"])
def test_a_server_that_asks_for_an_hour_is_given_up(server: Server, asked: str) -> None:
    server.first = [(503, {"Retry-After": asked}, b"")]
    with pytest.raises(ModelError, match=r"wait for \d{4} seconds"):
        scorer(server).score(CONVERSATIONS)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("", None), ("1.5", 1.5), ("-3", 0.0), ("nan", None), ("inf", None), ("soon", None)]
    + [("Mon, 99 Jan 2024 00:00:00 GMT", None), ("Mon, 01 Jan 2024 00:00:00 GMT", 0.0)],
)
def test_how_long_a_header_says_to_wait(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header) == seconds


def test_nothing_listens(server: Server) -> None:
    with pytest.raises(ModelError, match="ConnectError"):
        RemoteScorer("http://127.0.0.1:9", retries=QUICK).score(CONVERSATIONS)


def with_rewards(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[str, dict[str, Any]], Any]:
    return lambda path, request: {"model": "a-model", "rewards": change(rewards(request))}


WRONG = {
    "one too few": with_rewards(lambda found: found[1:]),
    "one too many": with_rewards(lambda found: [*found, found[0]]),
    "no number": with_rewards(lambda found: [entry | {"reward": "1.0"} for entry in found]),
    "true": with_rewards(lambda found: [entry | {"reward": True} for entry in found]),
    "null without a reason": with_rewards(lambda found: [entry | {"reward": None} for entry in found]),
    "not a number": with_rewards(lambda found: [entry | {"reward": float("nan")} for entry in found]),
    "infinite": with_rewards(lambda found: [entry | {"reward": float("inf")} for entry in found]),
    "numbers alone": with_rewards(lambda found: [entry["reward"] for entry in found]),
    "no rewards": lambda path, request: {"model": "a-model"},
    "no model": lambda path, request: {"rewards": rewards(request)},
    "a list": lambda path, request: [],
    "over the largest float": with_rewards(lambda found: [entry | {"reward": 10**400} for entry in found]),
    "nested too deeply": lambda path, request: (200, {}, b"[" * 100_000),
    "no JSON": lambda path, request: (200, {}, b"<html>"),
    "no text": lambda path, request: (200, {}, b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_wrong_answers_are_named(server: Server, answer: Any) -> None:
    server.answer = answer
    with pytest.raises(ModelError, match=r"127.0.0.1.* protocol \(.+\)\. Give the address"):
        scorer(server).score(CONVERSATIONS)


def test_a_classifier_of_two_labels_is_no_reward_model(server: Server) -> None:
    server.answer = lambda path, request: {"model": "m", "data": [{"probs": [0.2, 0.8]}]}
    with pytest.raises(ModelError, match="one label"):
        scorer(server, "/classify").score(CONVERSATIONS)


@pytest.mark.parametrize(("path", "field"), [("/pooling", "data"), ("/classify", "probs")])
@pytest.mark.parametrize("tokens", [[[0.1]], [[0.1], [0.2]]], ids=["one token", "two tokens"])
def test_rewards_a_token_are_none_of_a_conversation(
    server: Server, path: str, field: str, tokens: list[list[float]]
) -> None:
    server.answer = lambda path, request: {"model": "m", "data": [{field: tokens}]}
    with pytest.raises(ModelError, match=f"`{field}` has one list per token.*ask at /classify"):
        scorer(server, path).score(CONVERSATIONS)


def test_a_model_that_changes_midway_is_noticed(server: Server) -> None:
    found = scorer(server)
    found.score(CONVERSATIONS)
    server.answer = lambda path, request: native(path, request) | {"model": "another"}
    with pytest.raises(ModelError, match="a-model and now as another"):
        found.score(CONVERSATIONS)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, API_KEY), (404, "no path for"), (500, "log says why"), (302, "status 302")]
)
def test_refusals_say_what_to_do(server: Server, status: int, remedy: str) -> None:
    server.answer = lambda path, request: (status, {"Location": "http://127.0.0.1:9/"}, b"the server's words")
    with pytest.raises(ModelError, match=f"{remedy}.*the server's words") as error:
        scorer(server).score(CONVERSATIONS)
    assert str(status) in str(error.value)
    assert len(server.requests) == 1


def test_the_key_is_sent_and_never_told(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    caplog.set_level("DEBUG")
    assert scorer(server).score(CONVERSATIONS) == lengths()
    assert server.keys == {f"Bearer {KEY}"}
    server.answer = lambda path, request: (401, {}, f"no {KEY}".encode())
    with pytest.raises(ModelError) as error:
        scorer(server).score(CONVERSATIONS)
    assert KEY not in str(error.value) + caplog.text


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://user:secret@127.0.0.1:1", "no user"),
        ("http://127.0.0.1:1/classify?key=secret", "no user"),
        ("http://127.0.0.1:1/classify;secret", "no user"),
        ("http://127.0.0.1\n:1/classify", "control characters"),
        ("http://127.0.0.1 :1/classify", "without spaces"),
        ("http://127.0.0.1:1/get_reward", "/pooling"),
        ("http://:80", "must be an address"),
        ("http://127.0.0.1:port", "must be an address"),
        ("http://user:secret@127.0.0.1:port", "must be an address"),
    ],
)
def test_addresses_that_cannot_be_asked(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        RemoteScorer(url)
    assert "secret" not in str(error.value)


def test_what_only_a_local_model_can_be_told_is_refused(server: Server) -> None:
    with pytest.raises(ModelError, match="--head"):
        load_scorer(server.url, head="policy")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score": ScoreOptions(max_length=9)}, "--score.max_length"),
        ({"score": ScoreOptions(device="cpu", dtype="float32")}, "--score.device and --score.dtype"),
        ({"trust_remote_code": True}, "--trust_remote_code"),
        ({"head": "policy"}, "--head"),
    ],
    ids=str,
)
def test_options_that_a_server_does_not_read_are_refused(options: dict[str, Any], said: str) -> None:
    """This works with other models or with servers alone; the batch size is that of a request."""
    server, scoring = "http://127.0.0.1:1", {"data": "d", "out": "o"}
    for refused in (
        lambda: ScoreConfig(model=server, **scoring, **options),
        lambda: EvaluateConfig(models=[server, f"{server}/classify"], data=["d"], out="o", **options),
    ):
        with pytest.raises(ConfigError, match=f"{said} has no effect"):
            refused()
    EvaluateConfig(models=[server, "m"], data=["d"], out="o", **options)


def test_no_refusal_repeats_a_password() -> None:
    with pytest.raises(ConfigError) as error:
        ScoreConfig(model="http://user:secret@127.0.0.1:1", data="d", head="policy")
    assert "secret" not in str(error.value)


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"hafrm\[serve\]"):
        RemoteScorer("http://127.0.0.1:1")


def test_a_server_is_evaluated_and_scores_files(server: Server, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    """With two servers, a repeated evaluation only requests the names; if a model's name changes, it scores again."""
    monkeypatch.setenv(API_KEY, KEY)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(9)))
    out = tmp_path / "out"
    command = ["evaluate", server.url, f"{server.url}/v1/rewards", "--data", str(rows), "--out", str(out)]
    assert main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["models"][server.url]["data"][str(rows)]["n"] == 9
    assert results["models"][server.url]["server"]["model"] == "a-model"
    assert "fingerprinted" in results["models"][server.url]["server"]["note"]
    assert len(results["comparisons"]) == 1
    server.requests.clear()
    assert main(command) == 0
    assert [len(request["conversations"]) for request in server.requests] == [1, 1]
    server.answer = lambda path, request: native(path, request) | {"model": "another"}
    assert main(command) == 0
    assert "the server changed" in capfd.readouterr().err
    assert main(["score", server.url, "--data", str(rows), "--out", str(tmp_path / "scored.jsonl")]) == 0
    first = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    assert first["reward_chosen"] == len(some_pairs(9)[0].chosen[0].content)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written)
