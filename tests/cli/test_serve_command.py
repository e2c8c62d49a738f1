"""`hafrm serve` as a process: it prints its address, gives the rewards of `hafrm score`, and stops cleanly."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest

from hafrm.cli import main
from hafrm.serving.run import _listen
from tests.models.test_scorers import save_classifier

ROWS = [{"prompt": f"question {i}", "response": "yes " * (1 + i % 9)} for i in range(20)]


def as_messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    roles = {"prompt": "user", "response": "assistant"}
    return {name: [{"role": roles[name], "content": text}] for name, text in row.items()}


def test_served_rewards_are_those_of_score(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert main(["score", str(model), "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "o.jsonl")]) == 0
    expected = [json.loads(line)["reward"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]

    command = [sys.executable, "-m", "hafrm", "serve", str(model), "--port", "0", "--host", "0.0.0.0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    environment = os.environ | {"HAFRM_API_KEY": ""}
    with subprocess.Popen(command, env=environment, preexec_fn=heeded, **pipes) as server:  # type: ignore[call-overload]
        try:
            name, _, address = server.stdout.readline().strip().partition(" at ")
            assert name == "model"
            local = address.replace("0.0.0.0", "127.0.0.1")
            data = {"conversations": list(map(as_messages, ROWS))}
            answer = httpx.post(f"{local}/v1/rewards", json=data, timeout=60).raise_for_status().json()
            server.send_signal(signal.SIGINT)
            _, said = server.communicate(timeout=30)
        finally:
            server.kill()
    assert answer["model"] == "model"
    assert [item["reward"] for item in answer["rewards"]] == pytest.approx(expected, abs=1e-5)
    assert server.returncode == 130
    assert "HAFRM_API_KEY" in said
    assert "requests in flight were answered" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_answers_are_sent_at_once(host: str) -> None:
    with _listen(host, 0) as listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as found:
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_can_not_work_is_one_line(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path), "--port", port]) == 2
    assert "hafrm serve: " in capfd.readouterr().err
    assert main(["serve", str(tmp_path / "nowhere"), "--port", "0"]) == 2
    assert main(["serve", str(tmp_path), "--max_requests", "0"]) == 2
    assert "max_requests must be at least 1" in capfd.readouterr().err
    assert main(["serve", str(tmp_path), "--max_conversations", "16385"]) == 2
    assert "at most 16384" in capfd.readouterr().err
    monkeypatch.setenv("HAFRM_API_KEY", "schlüssel")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "printable ASCII" in capfd.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'hafrm[serve]'" in capfd.readouterr().err
