"""`hafrm serve` as a process: clients that hold connections, send too much, or leave; and changes to its files."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.processes import Setting, hafrm, start
from tests.faults.runs import saved_run
from tests.tiny import save_tiny

ONE = {"query": ["Human: How are you?\n\nAssistant: Fine.</s>"]}
HEAD = b"POST /get_reward HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
TURN = {"role": "user", "content": "a"}
ITEMS = 16_000


class Served:
    """A server's process, its address, and what it printed."""

    def __init__(self, process: Any, setting: Setting) -> None:
        self.process, self.log = process, setting.log
        self.port = int(re.findall(r"http://127.0.0.1:(\d+)", setting.log.read_text())[0])
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def reward(self) -> float:
        return float(self.client.post("/get_reward", json=ONE).raise_for_status().json()["rewards"][0])

    def memory(self) -> int:
        """Return the peak memory of the process, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024


def serve_command(run: Path, folder: Path, *options: str, files: int | None = None) -> tuple[list[str], Setting]:
    """Start `hafrm serve` on a free port, with at most so many open files; return its process and log."""
    folder.mkdir(exist_ok=True)
    faults = [partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files))] if files else []
    setting = Setting(own=folder, work=folder, log=folder / "log", faults=faults)
    return ["serve", str(run), "--port", "0", *options], setting


@contextmanager
def served(run: Path, folder: Path, *options: str, files: int | None = None) -> Iterator[Served]:
    """Run a server until it is stopped as an operator would."""
    command, setting = serve_command(run, folder, *options, files=files)
    process = start(command, setting)
    try:
        end = time.monotonic() + 120
        while not setting.log.exists() or "http://" not in setting.log.read_text():
            assert process.is_alive(), setting.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        found = Served(process, setting)
        yield found
        found.client.close()
    finally:
        process.terminate()
        process.join(60)
        assert process.exitcode is not None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return saved_run(save_tiny(folder / "base"), folder / "run")


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(run, tmp_path_factory.mktemp("log")) as found:
        yield found


def asked(server: Served, sent: bytes, *, shut: bool) -> bytes:
    """Return everything that the server answers until it closes the connection."""
    with server.connect() as connection:
        connection.sendall(sent)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def whole(body: Any) -> bytes:
    content = json.dumps(body).encode()
    return HEAD % len(content) + content


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/v1/rewards", {"conversations": [{"prompt": [1] * ITEMS, "response": [1]}] * 80}, 422),
        ("/classify", {"messages": [{"role": "user", "content": [1] * ITEMS}] * 80}, 422),
        ("/rerank", {"query": "a", "documents": ["b"], "tools": [1] * 10**6}, 422),
        ("/v1/rewards", {"conversations": [{"prompt": [TURN] * 500, "response": [TURN]}] * 60}, 200),
    ],
    ids=["turns", "parts", "tools", "valid"],
)
def test_a_large_body_does_not_hold_the_server(path: str, sent: Any, status: int, server: Served) -> None:
    """The allowed times are about ten times those of an idle machine, and far below those of a blocked event loop."""
    found: list[Any] = []
    content, before = json.dumps(sent).encode(), server.memory()

    def post() -> None:
        start = time.perf_counter()
        found.append(server.client.post(path, content=content, headers={"Content-Type": "application/json"}))
        found.append(time.perf_counter() - start)

    thread, worst = threading.Thread(target=post), 0.0
    with httpx.Client(base_url=server.client.base_url, timeout=60) as client:
        client.get("/health")
        thread.start()
        while thread.is_alive():
            start = time.perf_counter()
            client.get("/health")
            worst = max(worst, time.perf_counter() - start)
            time.sleep(0.002)
    assert found[0].status_code == status
    assert status == 200 or found[1] < 6
    assert worst < 0.4
    assert server.memory() - before < 200


@pytest.mark.slow
def test_connections_beyond_the_open_files_wait_and_are_logged_once(run: Path, tmp_path: Path) -> None:
    with served(run, tmp_path, "--body_timeout", "1", files=256) as server, ExitStack() as stack:
        expected = server.reward()
        server.client.close()  # its connection occupies a slot
        server.client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
        for number in range(400):
            connection = stack.enter_context(server.connect())
            if number % 2:
                connection.sendall(HEAD[:30])
        # Silent ones and half heads are closed in time, in two shifts; then there is a place.
        assert server.client.get("/health").status_code == 200
        assert server.reward() == expected
        assert server.process.is_alive()
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) == 3, said
    assert "ulimit -n" in said[0]
    assert "in use" in said[2]


def test_too_few_open_files_for_any_connection_are_refused(run: Path, tmp_path: Path) -> None:
    ended = hafrm(*serve_command(run, tmp_path, files=64))
    assert ended.status == 2
    assert "ulimit" in ended.said
    assert len(ended.said.splitlines()) == 1


def test_half_closed_clients_get_their_answers(server: Served) -> None:
    answer = asked(server, whole(ONE), shut=True)
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["rewards"] == [server.reward()]
    three = asked(server, whole(ONE) * 3, shut=True)
    assert three.count(b"HTTP/1.1 200") == 3
    assert asked(server, whole(ONE).replace(b"1.1", b"1.0", 1), shut=True).startswith(b"HTTP/1.1 200")
    assert asked(server, whole(ONE)[:-2], shut=True) == b""  # not whole
    assert asked(server, whole(ONE) + HEAD[:40], shut=True).count(b"HTTP/1.1 200") == 1


def test_two_keys_two_lengths_and_names_that_are_no_hosts_are_refused(server: Served) -> None:
    keys = b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"
    for sent in (
        HEAD[:-2] % 2 + keys + b"{}",
        HEAD[:-2] % 2 + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ):
        answer = asked(server, sent, shut=False)  # the server closes the connection
        assert answer.startswith(b"HTTP/1.1 400")
    for name in ("localhost:80@evil.com", "localhost:x", "[::1", "[::1]x", "localhost@evil.com", "localhost:80:80"):
        assert server.client.get("/health", headers={"Host": name}).status_code == 403, name
    for name in ("localhost", "localhost:8000", "[::1]:80", "127.0.0.1", "localhost:"):
        assert server.client.get("/health", headers={"Host": name}).status_code == 200, name


@pytest.mark.parametrize("damage", ["truncate", "overwrite"])
def test_changes_to_the_files_of_a_served_model_change_nothing(damage: str, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    with served(copy, tmp_path / "served") as server:
        expected = server.reward()
        weights = copy / "model.safetensors"
        if damage == "truncate":
            os.truncate(weights, 0)
        else:
            other = tmp_path / "other.safetensors"
            save_file({name: torch.randn_like(tensor) for name, tensor in load_file(weights).items()}, other)
            subprocess.run(["cp", str(other), str(weights)], check=True)  # in place
        assert server.reward() == expected
        assert server.process.is_alive()


def test_a_model_whose_rewards_are_not_finite_is_not_served(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((copy / "hafrm.json").read_text())
    described["sha256"]["model.safetensors"] = sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    (copy / "hafrm.json").write_text(json.dumps(described))
    ended = hafrm(*serve_command(copy, tmp_path / "served"))
    assert ended.status == 2, ended.said
    assert "not finite" in ended.said
    assert len(ended.said.splitlines()) == 1
