"""A small local endpoint of OpenAI's chat API, in a thread, whose misbehaviour is scripted."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Endpoint:
    """What the server does and what it was asked."""

    reply: Callable[[str], str]
    """Function from the user's turn to the reply."""
    faults: list[Any] = field(default_factory=list)
    """What happens to the next requests, one each: a status, (status, headers), ("body", JSON), which has status 200,
    "garbage", "half", "hang", "shape"."""
    always: Any = None
    """What happens to all requests."""
    delay: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    """Number of requests by user turn."""
    replied: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    usage: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    most_running: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""


def completion(text: str, *, usage: bool = True) -> bytes:
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps(body).encode()


def longer_wins(user: str) -> str:
    """A judge without position bias: prefers the longer response, in both prompts."""
    if "## Output (a):" in user:
        first, second = re.findall(r"## Output \([ab]\):\n(.*?)\n\n(?=##)", user.split("# Task:")[1], re.DOTALL)
        return "Output (a)" if len(first) > len(second) else "Output (b)"
    start = user.index("[\n")
    shown, _ = json.JSONDecoder().raw_decode(user, start)
    order = sorted(shown, key=lambda each: -len(each["answer"]))
    return json.dumps([{"model": each["model"], "rank": rank} for rank, each in enumerate(order, 1)])


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def do_POST(self) -> None:
        endpoint = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        user = body["messages"][-1]["content"]
        with endpoint.lock:
            endpoint.asked[user] += 1
            endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
            endpoint.bodies.append(body)
            endpoint.times.append(time.monotonic())
            fault = endpoint.faults.pop(0) if endpoint.faults else endpoint.always
            endpoint.running += 1
            endpoint.most_running = max(endpoint.most_running, endpoint.running)
        time.sleep(endpoint.delay)
        try:
            self._answer(fault, user)
        finally:
            with endpoint.lock:
                endpoint.running -= 1

    def _answer(self, fault: Any, user: str) -> None:
        if fault == "hang":
            self.endpoint.closing.wait(30)
            self.close_connection = True
        elif fault == "garbage":
            self._send(200, b"<html>busy</html>", {"content-type": "text/html"})
        elif fault == "shape":
            self._send(200, b'{"choices": []}')
        elif isinstance(fault, tuple) and fault[0] == "body":
            self._send(200, json.dumps(fault[1]).encode())
        elif fault == "half":
            whole = completion("Output (a)")
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
        elif fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            key = self.headers.get("authorization", "")
            self._send(
                status, json.dumps({"error": {"message": f"no: {key}"} | headers.pop("error", {})}).encode(), headers
            )
        else:
            with self.endpoint.lock:
                self.endpoint.replied[user] += 1
            text = self.endpoint.reply(user).replace("{KEY}", self.headers.get("authorization", ""))
            self._send(200, completion(text, usage=self.endpoint.usage))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(reply: Callable[[str], str] = longer_wins, **behaviour: Any) -> Iterator[Endpoint]:
    """Run an endpoint on loopback during the block; its address is in `url`."""
    endpoint = Endpoint(reply, **behaviour)

    class Handler(_Handler):
        pass

    Handler.endpoint = endpoint

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore clients that disconnected."""

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
