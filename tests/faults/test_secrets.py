"""Keys and tokens appear in no file that a command writes, nor in its output."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.faults.processes import Setting, ended, hafrm, start
from tests.faults.stages import STAGES, Stage

KEYS = {
    name: f"sk-{number}-planted-7f3a9c"
    for number, name in enumerate(
        "OPENAI_API_KEY HAFRM_API_KEY HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY ANTHROPIC_API_KEY".split()
    )
}
PLANTED = b"planted-7f3a9c"


def require_no_key(folder: Path, said: str) -> None:
    assert PLANTED.decode() not in said
    for path in folder.rglob("*"):
        assert not path.is_file() or PLANTED not in path.read_bytes(), path


@pytest.mark.parametrize("name", [name for name in STAGES if name != "precompute"])
def test_keys_of_the_environment(name: str, stage_of: Callable[[str], Stage]) -> None:
    stage = replace(stage_of(name), environment=KEYS)
    done = stage.run()
    assert done.status == 0, done.said
    require_no_key(stage.work, done.said)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("judge", ["--judge.base_url", "http://user:planted-7f3a9c@127.0.0.1:1/v1"]),
        ("judge", ["--judge.base_url", "http://127.0.0.1:1/v1?key=planted-7f3a9c"]),
        ("evaluate", ["--models", "http://user:planted-7f3a9c@127.0.0.1:1"]),
        ("train", ["--training.hub_token", "planted-7f3a9c"]),
    ],
    ids=["user", "query", "server", "hub token"],
)
def test_keys_in_options_are_refused(name: str, option: list[str], stage_of: Callable[[str], Stage]) -> None:
    """They are refused with an error that does not repeat them."""
    stage = stage_of(name)
    argv = [*stage.argv, *option]
    if option[0] == "--models":
        argv = ["evaluate", option[1], *stage.argv[2:]]
    done = hafrm(argv, stage.setting())
    assert done.status == 2
    assert done.said.startswith(f"hafrm {name}: "), done.said
    require_no_key(stage.work, done.said)


def test_a_server_does_not_tell_its_key(folder: Path, tmp_path: Path) -> None:
    """The key is neither in the log nor in any answer, whether clients send it, another one, or send it misplaced."""
    setting = Setting(own=tmp_path, work=tmp_path, log=tmp_path / "serve.log", environment=KEYS)
    process = start(["serve", str(folder / "run"), "--port", "0"], setting)
    try:
        address = _address(setting.log)
        key = {"Authorization": f"Bearer {KEYS['HAFRM_API_KEY']}"}
        conversation = {
            "prompt": [{"role": "user", "content": "q"}],
            "response": [{"role": "assistant", "content": "a"}],
        }
        ask = {"conversations": [conversation]}
        answers = [
            httpx.post(f"{address}/v1/rewards", json=ask, headers=key),
            httpx.post(f"{address}/v1/rewards", json=ask, headers={"Authorization": "Bearer other"}),
            httpx.post(f"{address}/v1/rewards", json={"wrong": 1}, headers=key),
            httpx.get(f"{address}/{KEYS['HAFRM_API_KEY']}", headers=key),
            httpx.get(f"{address}/metrics", headers=key),
        ]
    finally:
        process.terminate()
        process.join(timeout=60)
    assert [answer.status_code for answer in answers] == [200, 401, 422, 404, 200]
    for answer in answers:
        assert PLANTED.decode() not in answer.text + str(answer.headers)
    require_no_key(tmp_path, ended(process, setting).said)


def _address(log: Path) -> str:
    """Return the address that the server prints."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if log.exists() and (found := re.search(r"http://[\w.:]+", log.read_text())):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(log.read_text())
