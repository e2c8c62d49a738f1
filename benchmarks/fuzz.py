"""Hostile requests to the reward server: no answer may be a server error, contain a traceback, or be missing.

    python -m benchmarks.fuzz tiny --requests 10000 --seed 0 --out FILE

Half of the requests are drawn by schemathesis from the server's own OpenAPI document, right ones and wrong ones; the
other half are made here: wrong types, deep nesting, huge numbers, NaN, lone surrogates, wrong content types and
encodings, half bodies, unknown paths and methods, malformed HTTP. The server runs in a separate process, and must give
the same reward at the end as at the beginning. Equal seeds give equal requests in the second half; those of the first
half follow hypothesis' own seed. Needs `pip install schemathesis`, which is not among the development tools because
pytest would load its plugin into each process.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.measure import environment, print_table, save
from benchmarks.serving import serve_command, server
from benchmarks.workload import model_folder

PATIENCE = 60.0  # seconds for one answer
CONVERSATION = {
    "prompt": [{"role": "user", "content": "How are you?"}],
    "response": [{"role": "assistant", "content": "Fine, thank you."}],
}
VALID: dict[str, dict[str, Any]] = {
    "/v1/rewards": {"conversations": [CONVERSATION, CONVERSATION]},
    "/get_reward": {"query": ["one text", "another"], "prompts": ["one"], "labels": [None]},
    "/v1/score/evaluation": {"model": "m", "messages": ["one text", "another"]},
    "/classify": {"model": "m", "input": ["one text", "another"], "use_activation": False},
    "/pooling": {"messages": [*CONVERSATION["prompt"], *CONVERSATION["response"]], "use_activation": True},
    "/rerank": {"query": "How are you?", "documents": ["Fine.", "No."], "top_n": 1},
}
"""A valid request for each path, from which hostile ones are made."""

KINDS = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "application/json; charset=utf-16",
    "application/json; charset=\xff",
    "application/vnd.api+json",
    "application/octet-stream",
    "application/xml",
    "APPLICATION/JSON",
    "json",
    "",
    "/",
    "application/json, text/plain",
)
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "post")
LITERALS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "-0", "9" * 400, "9" * 6000, "0x10", "1_0")
TEXTS = ("\ud800", "\udfff x", "\x00", "\x07\x1b[31m", "", " ", "a" * 50_000, "</s><s><pad>", "\u202e", "é" * 999, "😀")


@dataclass(frozen=True)
class Request:
    """A request as bytes, since client libraries would refuse to send some of them."""

    kind: str
    """What is hostile about it."""
    method: str
    raw: bytes
    half: bool = False
    """Whether no answer is required: the client stops in the middle, or the server disconnects before reading all."""


@dataclass
class Findings:
    """What came back."""

    requests: Counter[str] = field(default_factory=Counter)
    """Number of requests by what was hostile about them."""
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, sent: str, status: int | None, body: str) -> None:
        """Record one answer; None if there was none."""
        self.requests[kind] += 1
        self.statuses[str(status) if status else "none"] += 1
        if status is None or status >= 500 or "Traceback" in body or 'File "' in body:
            self.failures.append({"kind": kind, "sent": sent[:2000], "status": status, "body": body[:2000]})


def main() -> None:
    """Fuzz, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `hafrm serve` takes, or a size of benchmarks.workload.SHAPES")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    findings, start = Findings(), time.perf_counter()
    command = ("--body_timeout", "1")  # seconds until an incomplete body is refused
    with model_folder(options.model) as model, server(serve_command(model, *command)) as (address, _):
        before = _reward(address)
        drawn = from_document(address, options.requests // 2, options.seed, findings)
        for request in hostile_requests(options.requests - drawn, options.seed):
            findings.add(request.kind, repr(request.raw[:2000]), *send(address, request))
        same = _reward(address) == before
    print_table("answers", ["status", "requests"], [[k, str(n)] for k, n in sorted(findings.statuses.items())])
    for failure in findings.failures[:20]:
        print(json.dumps(failure))
    result = {
        "environment": environment(),
        "model": options.model,
        "seed": options.seed,
        "elapsed": time.perf_counter() - start,
        "sent": findings.requests.total(),
        "requests": dict(findings.requests),
        "statuses": dict(sorted(findings.statuses.items())),
        "failures": findings.failures,
        "reward_unchanged": same,
    }
    save(options.out, result)
    if findings.failures or not same:
        raise SystemExit(f"{len(findings.failures)} failures; the reward {'is unchanged' if same else 'changed'}")


def _reward(address: str) -> Any:
    return httpx.post(f"{address}/v1/rewards", json=VALID["/v1/rewards"], timeout=PATIENCE).raise_for_status().json()


def from_document(address: str, requests: int, seed: int, findings: Findings) -> int:
    """Send requests that schemathesis draws from the server's OpenAPI document; return how many it drew."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    modes = list(schemathesis.GenerationMode)
    each = -(-requests // (len(VALID) * len(modes)))
    quick = settings(
        max_examples=each,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    before = findings.requests.total()
    for path in VALID:
        for mode in modes:
            draw = schema[path]["POST"].as_strategy(generation_mode=mode)
            seeded(seed)(quick(given(case=draw)(_sender(f"drawn, {mode.value}", findings))))()
    return findings.requests.total() - before


def _sender(kind: str, findings: Findings) -> Callable[[Any], None]:
    def sent(case: Any) -> None:
        status, body = None, ""
        with suppress(OSError):
            answer = case.call(timeout=PATIENCE)
            status, body = answer.status_code, answer.text
        findings.add(kind, f"{case.method} {case.path} {case.body!r}", status, body)

    return sent


def hostile_requests(count: int, seed: int) -> Iterator[Request]:
    """Yield hostile requests, always the same ones for a seed."""
    drawn = random.Random(seed)
    makers = list(MAKERS.items())
    for number in range(count):
        kind, make = makers[number % len(makers)]
        yield make(kind, drawn)


def send(address: str, request: Request) -> tuple[int | None, str]:
    """Send a request's bytes; return the answer's status and body, or None if a required answer is missing."""
    place = urlsplit(address)
    try:
        with socket.create_connection((str(place.hostname), place.port or 80), timeout=PATIENCE) as connection:
            with suppress(ConnectionError):  # refused before everything was sent: the answer can still be read
                connection.sendall(request.raw)
            if request.half:
                return 499, ""
            answer = HTTPResponse(connection, method=request.method)
            answer.begin()
            return answer.status, answer.read().decode("utf-8", "replace")
    except (HTTPException, OSError):
        return None, ""


def _http(
    kind: str,
    body: bytes,
    *,
    path: str = "/v1/rewards",
    method: str = "POST",
    content_type: str | None = "application/json",
    more: tuple[str, ...] = (),
    length: int | None = None,
    half: bool = False,
) -> Request:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *more]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    head = "\r\n".join(lines).encode("latin-1", "replace")
    return Request(kind, method, head + b"\r\n\r\n" + body, half)


def _valid(drawn: random.Random) -> tuple[str, dict[str, Any]]:
    path = drawn.choice(list(VALID))
    return path, json.loads(json.dumps(VALID[path]))


def _replaced(value: Any, new: Any, drawn: random.Random) -> Any:
    """Copy a JSON value with one random node replaced."""
    if not isinstance(value, dict | list) or not value or drawn.random() < 0.2:
        return new
    key = drawn.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value[key] = _replaced(value[key], new, drawn)
    return value


def _mutated(kind: str, drawn: random.Random, literal: str) -> Request:
    """Make a valid request with one node replaced by a literal, which need not be JSON."""
    path, body = _valid(drawn)
    mark = "\u0001here"
    text = json.dumps(_replaced(body, mark, drawn)).replace(json.dumps(mark), literal)
    return _http(kind, text.encode("utf-8", "surrogatepass"), path=path)


def _wrong_types(kind: str, drawn: random.Random) -> Request:
    junk = [None, True, 0, -1, 1.5, "", "text", [], {}, [[]], [None], {"role": "user"}, {"a": {"b": []}}, [1, "a"]]
    return _mutated(kind, drawn, json.dumps(drawn.choice(junk)))


def _deep(kind: str, drawn: random.Random) -> Request:
    depth = drawn.choice((10, 100, 900, 1000, 5000, 100_000))
    opening, closing = drawn.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ("[", ""), ("", "]")))
    return _mutated(kind, drawn, opening * depth + "1" + closing * depth)


def _numbers(kind: str, drawn: random.Random) -> Request:
    return _mutated(kind, drawn, drawn.choice(LITERALS))


def _texts(kind: str, drawn: random.Random) -> Request:
    text = drawn.choice(TEXTS)
    raw = f'"{text}"' if drawn.random() < 0.2 else json.dumps(text)  # as bytes that are not UTF-8, or escaped
    return _mutated(kind, drawn, raw)


def _fields(kind: str, drawn: random.Random) -> Request:
    """Make requests with missing, repeated, unknown or oddly named fields."""
    path, body = _valid(drawn)
    name = drawn.choice(list(body))
    text = json.dumps(body)
    choice = drawn.randrange(4)
    if choice == 0:
        del body[name]
        text = json.dumps(body)
    elif choice == 1:
        text = text[:-1] + f', "{name}": {drawn.choice(LITERALS[:6])}}}'
    elif choice == 2:
        text = text[:-1] + f", {json.dumps(drawn.choice(TEXTS)[:900])}: 1}}"
    else:
        text = text[:-1] + f', "__proto__": {{}}, "{"k" * drawn.randrange(1, 9000)}": []}}'
    return _http(kind, text.encode(), path=path)


def _many(kind: str, drawn: random.Random) -> Request:
    """Make lists and texts that are too long."""
    path = drawn.choice(list(VALID))
    long = ((1, "a " * 200_000), (1, "a" * 5_000_000), (30, "word " * 1000))
    count, text = drawn.choice(((2000, "a b"), (20_000, ""), (0, ""), *long))
    items: list[Any] = [text] * count
    name = {"/get_reward": "query", "/v1/score/evaluation": "messages", "/rerank": "documents"}.get(path, "input")
    body: dict[str, Any] = {name: items, "query": "q"} if path == "/rerank" else {name: items}
    if path == "/v1/rewards":
        response = [{"role": "assistant", "content": text}]
        body = {"conversations": [{"prompt": CONVERSATION["prompt"], "response": response}] * count}
    return _http(kind, json.dumps(body).encode(), path=path)


def _content_types(kind: str, drawn: random.Random) -> Request:
    path, body = _valid(drawn)
    return _http(kind, json.dumps(body).encode(), path=path, content_type=drawn.choice((*KINDS, None)))


def _encodings(kind: str, drawn: random.Random) -> Request:
    """Make bodies in another encoding than declared, or in an undeclared one."""
    path, body = _valid(drawn)
    text = json.dumps(body)
    choices: list[tuple[bytes, tuple[str, ...]]] = [
        (text.encode("utf-16"), ()),
        (text.encode("utf-32"), ()),
        (b"\xef\xbb\xbf" + text.encode(), ()),
        (gzip.compress(text.encode(), mtime=0), ()),
        (gzip.compress(text.encode(), mtime=0), ("Content-Encoding: gzip",)),
        (text.encode(), ("Content-Encoding: gzip",)),
        (text.encode(), ("Content-Encoding: br, br, br",)),
        (b"", ()),
        (b"\x00" * 64, ()),
        (drawn.randbytes(drawn.randrange(1, 4000)), ()),
    ]
    content, more = drawn.choice(choices)
    return _http(kind, content, path=path, more=more)


def _flipped(kind: str, drawn: random.Random) -> Request:
    """Make a valid body with bytes changed, inserted or removed."""
    path, body = _valid(drawn)
    content = bytearray(json.dumps(body).encode())
    for _ in range(drawn.randrange(1, 8)):
        place = drawn.randrange(len(content))
        content[place : place + drawn.randrange(2)] = drawn.randbytes(drawn.randrange(3))
    return _http(kind, bytes(content), path=path)


def _cut(kind: str, drawn: random.Random) -> Request:
    """Make a truncated body with a matching length."""
    path, body = _valid(drawn)
    content = json.dumps(body).encode()
    return _http(kind, content[: drawn.randrange(len(content))], path=path)


def _left(kind: str, drawn: random.Random) -> Request:
    """Make a client that disconnects before or right after sending its body."""
    path, body = _valid(drawn)
    content = json.dumps(body).encode()
    sent = content[: drawn.randrange(len(content) + 1)]
    return _http(kind, sent, path=path, length=len(content), half=True)


def _paths(kind: str, drawn: random.Random) -> Request:
    words = (
        "..",
        "%00",
        "%ff%fe",
        "v1",
        "rewards",
        "%2e%2e",
        "etc",
        "passwd",
        ";a=b",
        "a" * 3000,
        "%",
        "%zz",
        "//",
        "*",
    )
    path = "/" + "/".join(drawn.choices(words, k=drawn.randrange(1, 6)))
    if drawn.random() < 0.3:
        path = drawn.choice(list(VALID)) + drawn.choice(("/", "?a=%ff", "?" + "b=1&" * 900, "%20", "/../metrics", "#x"))
    return _http(kind, json.dumps(VALID["/rerank"]).encode(), path=path, method=drawn.choice((*METHODS, "POST")))


def _methods(kind: str, drawn: random.Random) -> Request:
    path = drawn.choice((*VALID, "/", "/health", "/ready", "/metrics", "/openapi.json", "/page.js", "/v1/rerank"))
    return _http(kind, b"", path=path, method=drawn.choice(METHODS))


def _headers(kind: str, drawn: random.Random) -> Request:
    path, body = _valid(drawn)
    more = drawn.choice(
        (
            ("Authorization: Bearer \xff\xfe",),
            ("Authorization: " + "x" * 5000,),
            ("Host: evil.example",),
            ("Host: [::1",),
            ("X-Forwarded-For: " + "1.1.1.1, " * 500,),
            ("Expect: 100-continue",),
            ("Cookie: " + "a=b; " * 500,),
            tuple(f"X-{i}: {i}" for i in range(90)),
            ("Accept: \xe9", "Accept-Encoding: \x7f"),
            ("Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"),
            ("Upgrade: h2c", "HTTP2-Settings: AAA"),
            ("Range: bytes=0-1",),
        )
    )
    return _http(kind, json.dumps(body).encode(), path=path, more=more)


def _malformed(kind: str, drawn: random.Random) -> Request:
    """Make malformed HTTP, which the server's parser answers."""
    body = json.dumps(VALID["/rerank"]).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    endless = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"
    raw = drawn.choice(
        (
            head + b"Content-Length: -1\r\n\r\n" + body,
            head + b"Content-Length: 1e3\r\n\r\n" + body,
            head + b"Content-Length: " + b"9" * 50 + b"\r\n\r\n" + body,
            head + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + body,
            head
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + f"{len(body):x}".encode()
            + b"\r\n"
            + body
            + b"\r\n0\r\n\r\n",
            head + b"Transfer-Encoding: gzip\r\n\r\n" + body,
            b"POST /rerank HTTP/9.9\r\nHost: localhost\r\n\r\n",
            b"POST  /rerank  HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
            endless,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n\r\n\r\nnothing\r\n\r\n",
        )
    )
    # The parser disconnects before it has read an endless header, and the reset can arrive before its answer.
    return Request(kind, "POST", raw, half=raw is endless)


MAKERS: dict[str, Callable[[str, random.Random], Request]] = {
    "wrong types": _wrong_types,
    "deep nesting": _deep,
    "odd numbers": _numbers,
    "odd texts": _texts,
    "odd fields": _fields,
    "long lists and texts": _many,
    "content types": _content_types,
    "encodings": _encodings,
    "changed bytes": _flipped,
    "cut bodies": _cut,
    "clients that leave": _left,
    "unknown paths": _paths,
    "methods": _methods,
    "headers": _headers,
    "malformed HTTP": _malformed,
}


if __name__ == "__main__":
    main()
