"""A load on the reward server: answers right, latency, throughput, memory, with and without batches across requests.

    python -m benchmarks.serving MODEL --clients 16 --seconds 10 --out FILE

The server runs in a process of its own on loopback; the clients share this one, so on few cores they slow it down. Each
client sends one conversation after another, drawn from a fixed pool whose rewards a scorer in this process gave before.
An answer with another conversation's reward is `crossed`, any other number `wrong`, none at all `lost`. Overload is ten
times the clients on a server that takes only `--clients` requests: the rest are refused and try again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import environment, print_table, save
from hafrm.models.loading import load_scorer
from hafrm.pairs import Conversation

WORDS = "the a dog cat runs sees likes big small red house tree and then says yes no why how day".split()
TOLERANCE = 1e-4
PATIENCE = 30.0  # seconds for one answer
PAUSE = 0.05  # seconds until a refused client tries again


@dataclass
class Tally:
    """What the clients of one load met."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the answers came."""
        ordered = sorted(self.seconds) or [0.0]
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Load, print, save."""
    options = _options()
    pool = make_pool(options.pool)
    expected = load_scorer(options.model).score(pool)
    kept = [(c, r) for c, r in zip(pool, expected, strict=True) if r is not None]
    loads = {
        "batches": (options.clients, ()),
        "one request a forward pass": (options.clients, ("--batch_requests", "false")),
        "overload": (10 * options.clients, ("--max_requests", str(options.clients))),
    }
    result: dict[str, Any] = {"environment": environment(), "model": Path(options.model).name, "loads": {}}
    for name, (clients, more) in loads.items():
        result["loads"][name] = run_load(options.model, kept, clients, options.seconds, more)
    loads_found = result["loads"]
    result["ratios"] = {
        "throughput_batches_vs_alone": loads_found["batches"]["answers_per_second"]
        / max(loads_found["one request a forward pass"]["answers_per_second"], 1e-9)
    }
    _print(loads_found)
    save(options.out, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `hafrm serve` takes")
    parser.add_argument("--clients", type=int, default=16, choices=range(1, 65), metavar="1..64")
    parser.add_argument("--seconds", type=int, default=10, choices=range(1, 61), metavar="1..60", help="each load")
    parser.add_argument("--pool", type=int, default=200, choices=range(1, 2001), metavar="1..2000")
    parser.add_argument("--out")
    return parser.parse_args()


def make_pool(size: int) -> list[Conversation]:
    """Conversations of mixed lengths, all different, always the same ones."""
    drawn = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randint(2, longest)))

    return [Conversation.of(f"{i} {text(20)}", text(60)) for i in range(size)]


def run_load(
    model: str, pool: Sequence[tuple[Conversation, float]], clients: int, seconds: float, more: Sequence[str]
) -> dict[str, Any]:
    """Start a server, put one load on it, and tell what came of it; memory is in bytes, latencies in milliseconds."""
    with _server(model, more) as (address, process):
        asyncio.run(_load(address, pool[:1], 1, 0.5))  # a warm-up
        before = _peak(process)
        start = time.perf_counter()
        tally = asyncio.run(_load(address, pool, clients, seconds))
        elapsed = time.perf_counter() - start
        after = _peak(process)
    names = ("right", "wrong", "crossed", "lost", "refused")
    return {name: tally.outcomes[name] for name in names} | {
        "clients": clients,
        "seconds": elapsed,
        "answers_per_second": tally.outcomes["right"] / elapsed,
        "p50_ms": tally.percentile(0.5),
        "p99_ms": tally.percentile(0.99),
        "mean_ms": 1000 * statistics.fmean(tally.seconds or [0.0]),
        "peak_memory_before": before,
        "peak_memory_after": after,
    }


@contextmanager
def _server(model: str, more: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server of its own process on a free port of loopback: its address and process id."""
    command = [sys.executable, "-m", "hafrm.cli", "serve", model, "--port", "0", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if " at " not in line:
                raise SystemExit("the server did not start")
            yield line.strip().rpartition(" at ")[2], server.pid
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


async def _load(address: str, pool: Sequence[tuple[Conversation, float]], clients: int, seconds: float) -> Tally:
    tally, end = Tally(), time.perf_counter() + seconds
    await asyncio.gather(*(_client(address, pool, random.Random(n), end, tally) for n in range(clients)))
    return tally


async def _client(
    address: str, pool: Sequence[tuple[Conversation, float]], drawn: random.Random, end: float, tally: Tally
) -> None:
    """One client with a connection of its own: a pool that all share would be what is measured."""
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, verify=False) as client:  # no TLS on loopback
        await _ask(client, pool, drawn, end, tally)


async def _ask(
    client: httpx.AsyncClient,
    pool: Sequence[tuple[Conversation, float]],
    drawn: random.Random,
    end: float,
    tally: Tally,
) -> None:
    while time.perf_counter() < end:
        conversation, expected = drawn.choice(pool)
        body = {
            "prompt": [turn.as_dict() for turn in conversation.prompt],
            "response": [turn.as_dict() for turn in conversation.response],
        }
        start = time.perf_counter()
        try:
            answer = await client.post("/v1/rewards", json={"conversations": [body]})
        except httpx.HTTPError:
            tally.outcomes["lost"] += 1
            continue
        outcome = judge(answer, expected, pool)
        tally.outcomes[outcome] += 1
        if outcome == "refused":
            await asyncio.sleep(PAUSE)
        else:
            tally.seconds.append(time.perf_counter() - start)


def judge(answer: httpx.Response, expected: float, pool: Sequence[tuple[Conversation, float]]) -> str:
    """What an answer is: right, wrong, crossed, lost or refused."""
    if answer.status_code in (429, 503):
        return "refused"
    if answer.status_code != 200:
        return "lost"
    reward = answer.json()["rewards"][0]["reward"]
    if reward is None:
        return "wrong"
    if abs(reward - expected) <= TOLERANCE:
        return "right"
    return "crossed" if any(abs(reward - other) <= TOLERANCE for _, other in pool) else "wrong"


def _peak(process: int) -> int | None:
    """The most memory that a process has had, in bytes; None where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def _print(loads: dict[str, dict[str, Any]]) -> None:
    names = ("clients", "right", "wrong", "crossed", "lost", "refused")
    rows = [
        [name, *(str(found[key]) for key in names)]
        + [f"{found['answers_per_second']:.1f}", f"{found['p50_ms']:.0f}", f"{found['p99_ms']:.0f}"]
        + [f"{((found['peak_memory_after'] or 0) - (found['peak_memory_before'] or 0)) / 2**20:.0f}"]
        for name, found in loads.items()
    ]
    print_table("serving", ["load", *names, "answers/s", "p50 ms", "p99 ms", "memory +MiB"], rows)


if __name__ == "__main__":
    main()
