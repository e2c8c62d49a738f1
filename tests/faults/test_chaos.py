"""Random faults, drawn from a seed: results are those of an undisturbed run, or the command refuses.

Only run by `make chaos`; `SEED=3 ROUNDS=50 make chaos` draws other faults. A round that fails names its seed, so that
`SEED=... ROUNDS=1` repeats it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from hafrm.contract import parse_conversation
from hafrm.models.loading import load_scorer
from hafrm.training.manifest import is_finished
from tests.faults.processes import LEAST_LIMIT, draw_kills
from tests.faults.stages import STAGES, Stage
from tests.faults.test_disks import limit_files
from tests.faults.whole import files

pytestmark = pytest.mark.chaos

SEED = int(os.environ.get("SEED", "0"))
ROUNDS = int(os.environ.get("ROUNDS", "10"))
SEEDS = range(SEED, SEED + ROUNDS)
WEIGHTS_AND_STATES = (".safetensors", ".pt", ".pth", ".npz")
"""Files with checksums, in which a changed byte is detected."""


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def lose(path: Path, draw: random.Random) -> None:
    path.unlink()


def stray(path: Path, draw: random.Random) -> None:
    """Make a copy with another name and other bytes."""
    other = path.with_name(path.stem + draw.choice(["-old", ".bak", " (copy)", "-00001-of-00002"]) + path.suffix)
    shutil.copy(path, other)
    flip(other, draw)


def damage(stage: Stage, draw: random.Random) -> str:
    """Damage a file that the command left; return what was done, in words."""
    found = [path for path in files(stage.work).values() if path.stat().st_size and path.suffix != ".sqlite"]
    if not found:
        return "nothing to damage"
    path = draw.choice(found)
    kinds = [cut, lose, stray, *([flip] if path.suffix in WEIGHTS_AND_STATES else [])]
    kind = draw.choice(kinds)
    kind(path, draw)
    return f"{kind.__name__} {path.relative_to(stage.work)}"


def disturb(stage: Stage, draw: random.Random) -> str:
    """Run the command under one fault."""
    if draw.random() < 0.3:
        size = draw.randint(LEAST_LIMIT, max(max(stage.sizes), LEAST_LIMIT + 1))
        ended, what = stage.run(partial(limit_files, size)), f"files of at most {size} bytes"
    else:
        (kill,) = draw_kills(stage.undisturbed, stage.sizes, 3, seed=str(draw.random()))[draw.randrange(3) :][:1]
        ended, what = stage.run(kill=kill), str(kill)
    assert "Traceback" not in ended.said, f"{what}: {ended.said}"
    return what


@pytest.mark.parametrize("seed", SEEDS)
def test_results_are_equal_or_refused(seed: int, stage_of: Callable[[str], Stage]) -> None:
    draw = random.Random(seed)
    stage = stage_of(draw.choice(STAGES))
    told = [disturb(stage, draw) for _ in range(draw.randint(1, 3)) if not is_finished(stage.work / "out")]
    if draw.random() < 0.6:
        told.append(damage(stage, draw))
    strays = {name for name in files(stage.work) if told[-1].startswith("stray")} - stage.expected.keys()
    finished = is_finished(stage.work / "out")
    ended = stage.run()
    story = f"{stage.argv[0]}: {'; '.join(told)}: {ended.said}"
    assert ended.status in (0, 2), story
    assert "Traceback" not in ended.said, story
    if ended.status == 0:
        for name in strays:
            (stage.work / name).unlink(missing_ok=True)
        stage.require_outcome()
    elif not finished:  # a finished run is not run again
        assert ended.said.splitlines()[-1].startswith(f"hafrm {stage.argv[0]}: "), story
        stage.clear()
        stage.require_resumed()


ROWS = [{"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}."} for i in range(6)]


@contextmanager
def served(model: Path, log: Path, open_files: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server that may open so many files; return its address and its process."""
    command = [sys.executable, "-m", "hafrm", "serve", str(model), "--port", "0"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files)),
        )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip().partition(" at ")[2], process
    finally:
        process.kill()
        process.communicate()


def bother(address: tuple[str, int], draw: random.Random, stop: threading.Event) -> None:
    """Connect, misbehave, and leave."""
    body = json.dumps({"conversations": [{"prompt": "a " * 400, "response": "b"}] * 300}).encode()
    head = b"POST /v1/rewards HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    rude = [
        b"",
        head[:20],
        head + b"content-length: 1000\r\n\r\n{",
        head + b"content-length: %d\r\n\r\n" % len(body) + body,
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 20,
        bytes(draw.randrange(256) for _ in range(500)),
        head + b"transfer-encoding: chunked\r\n\r\n" + b"5\r\naaaaa\r\n" * 50,
    ]
    while not stop.is_set():
        try:
            with socket.create_connection(address, timeout=2) as peer:
                peer.sendall(draw.choice(rude))
                if draw.random() < 0.5:
                    stop.wait(draw.uniform(0, 2))
        except OSError:
            stop.wait(0.05)


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_flooded_server_answers_right_or_refuses(seed: int, folder: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    expected = load_scorer(str(folder / "run")).score([parse_conversation(r, source="", number=1) for r in ROWS])
    request = {"conversations": [parse_conversation(row, source="", number=1).as_row() for row in ROWS]}
    with served(folder / "run", tmp_path / "log", draw.choice([128, 256, 1024])) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        stop = threading.Event()
        threads = [
            threading.Thread(target=bother, args=((host, int(port)), random.Random(f"{seed} {i}"), stop))
            for i in range(150)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                answer = httpx.post(f"{url}/v1/rewards", json=request, timeout=30)
            except httpx.TransportError:
                continue
            assert answer.status_code in (200, 429, 503), answer.text
            if answer.status_code == 200:
                assert [each["reward"] for each in answer.json()["rewards"]] == pytest.approx(expected, abs=1e-5)
        stop.set()
        for thread in threads:
            thread.join()
        assert process.poll() is None
        answer = httpx.post(f"{url}/v1/rewards", json=request, timeout=60)
        assert [each["reward"] for each in answer.json()["rewards"]] == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "log").stat().st_size < 1_000_000
