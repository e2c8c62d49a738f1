"""Loads on the reward server: correctness, latency, throughput and memory, compared with servers without batches.

    python -m benchmarks.serving small --clients 200 --seconds 60 --out FILE

The server runs in a separate process on loopback; all clients run in this process, so with few cores they slow it down.
Each client sends one conversation after another, drawn from a fixed pool whose rewards were computed in this process
before. An answer with another conversation's reward is `crossed`, one with any other number `wrong`, and a missing one
`lost`. Four loads:

- `batches`: `hafrm serve` as it is;
- `one request a forward pass`: the same server with `--batch_requests false`;
- `plain server`: `benchmarks.plain_server`, which is FastAPI around a scorer;
- `overload`: ten times the clients on a server that takes only `--clients` requests: the rest are refused, and retry
when the answer says.

    python -m benchmarks.serving small --clients 64 --responses 8 --seconds 30 --pool 1024 --out FILE

With `--responses N` the clients send requests as GRPO trainers do: all at once, N responses to each prompt, each
response in its own request, and the next ones once all are answered. Prompts are then longer (100 words on average;
responses 31). Loads: `batches`; `batches, wait 5 ms`, with `--batch_wait 0.005`; `batches, prompts differ`, where
prompts begin with another number for each response, so that they can't be shared; and the two other servers.

The server's memory is measured every second. `growth` is the mean memory in the load's last third minus that in its
middle third: a leak shows up there, but buffers that fill once do not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import environment, print_table, save
from benchmarks.workload import model_folder
from hafrm.models.loading import load_scorer
from hafrm.pairs import Conversation

WORDS = "the a dog cat runs sees likes big small red house tree and then says yes no why how day".split()
TOLERANCE = 1e-4
PATIENCE = 30.0  # seconds for one answer
PAUSE = 1.0  # seconds until a refused client retries, if the answer does not say


@dataclass
class Tally:
    """Results of the clients of one load."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Memory of the server, each second."""
    elapsed: float = 0.0

    def percentile(self, share: float) -> float:
        """Return the milliseconds within which this share of the answers arrived."""
        ordered = sorted(self.seconds) or [0.0]
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Load, print, save."""
    options = _options()
    result: dict[str, Any] = {"environment": environment(), "model": Path(options.model).name, "loads": {}}
    result |= {"responses": options.responses} if options.responses > 1 else {}
    with model_folder(options.model) as model:
        several, score = options.responses > 1, load_scorer(model).score
        pools = {each: make_pool(options.pool, options.responses, apart=each) for each in {False, several}}
        known = {
            each: [(c, r) for c, r in zip(pool, score(pool), strict=True) if r is not None]
            for each, pool in pools.items()
        }
        for name, clients, command in _loads(model, options.clients, several=several):
            pool = known[name == _APART]
            result["loads"][name] = run_load(command, pool, clients, options.seconds, steps=several)
    found = result["loads"]
    result["ratios"] = {
        f"{key} of batches vs {name}": found["batches"][key] / max(found[name][key], 1e-9)
        for key in ("answers_per_second", "p50_ms", "p99_ms")
        for name in found
        if name not in ("batches", "overload")
    }
    _print(found)
    save(options.out, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `hafrm serve` takes, or a size of benchmarks.workload.SHAPES")
    parser.add_argument("--clients", type=int, default=16, choices=range(1, 513), metavar="1..512")
    parser.add_argument("--seconds", type=int, default=10, choices=range(1, 601), metavar="1..600", help="each load")
    parser.add_argument("--pool", type=int, default=200, choices=range(1, 2001), metavar="1..2000")
    parser.add_argument("--responses", type=int, default=1, choices=range(1, 65), metavar="1..64", help="per prompt")
    parser.add_argument("--out")
    return parser.parse_args()


def _loads(model: str, clients: int, *, several: bool) -> Iterator[tuple[str, int, Sequence[str]]]:
    """Each load's name, its clients, and the server's command."""
    most = ("--max_requests", str(clients + 1))
    yield "batches", clients, serve_command(model, *most)
    if several:
        yield "batches, wait 5 ms", clients, serve_command(model, *most, "--batch_wait", "0.005")
        yield _APART, clients, serve_command(model, *most)
    yield "one request a forward pass", clients, serve_command(model, *most, "--batch_requests", "false")
    yield "plain server", clients, [sys.executable, "-m", "benchmarks.plain_server", model]
    if not several:
        yield "overload", 10 * clients, serve_command(model, "--max_requests", str(clients))


_APART = "batches, prompts differ"


def serve_command(model: str, *more: str) -> list[str]:
    """Return the command of a server on a free port."""
    return [sys.executable, "-m", "hafrm", "serve", model, "--port", "0", *more]


def make_pool(size: int, responses: int = 1, *, apart: bool = False) -> list[Conversation]:
    """Create conversations of mixed lengths, all different, always the same ones.

    Args:
        size: Their number.
        responses: How many in a row have the same prompt.
        apart: Whether such prompts begin with different numbers instead.
    """
    drawn = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randint(2, longest)))

    if responses == 1:
        return [Conversation.of(f"{i} {text(20)}", text(60)) for i in range(size)]
    prompts = [text(200) for _ in range(0, size, responses)]
    numbers = [i if apart else i - i % responses for i in range(size)]
    return [Conversation.of(f"{number} {prompts[i // responses]}", text(60)) for i, number in enumerate(numbers)]


def run_load(
    command: Sequence[str],
    pool: Sequence[tuple[Conversation, float]],
    clients: int,
    seconds: float,
    *,
    steps: bool = False,
) -> dict[str, Any]:
    """Start a server, put one load on it, and return the results: memory in bytes, latencies in milliseconds."""
    with server(command) as (address, process):
        asyncio.run(_load(address, process, pool, 1, 1.0))  # a warm-up
        tally = asyncio.run(_load(address, process, pool, clients, seconds, steps=steps))
    names = ("right", "wrong", "crossed", "lost", "refused")
    return {name: tally.outcomes[name] for name in names} | {
        "clients": clients,
        "seconds": tally.elapsed,
        "answers_per_second": tally.outcomes["right"] / tally.elapsed,
        "p50_ms": tally.percentile(0.5),
        "p99_ms": tally.percentile(0.99),
        "mean_ms": 1000 * statistics.fmean(tally.seconds or [0.0]),
        "memory": tally.memory,
        "memory_growth": growth(tally.memory),
    }


def growth(memory: Sequence[int]) -> float:
    """Return the mean of the last third minus that of the middle third."""
    third = max(1, len(memory) // 3)
    return statistics.fmean(memory[-third:]) - statistics.fmean(memory[-2 * third : -third] or memory)


@contextmanager
def server(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Start a server in a separate process on a loopback port that it prints; return its address and process id."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " at " not in line:
                raise SystemExit("the server did not start")
            yield line.strip().rpartition(" at ")[2], process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


async def _load(
    address: str,
    process: int,
    pool: Sequence[tuple[Conversation, float]],
    clients: int,
    seconds: float,
    *,
    steps: bool = False,
) -> Tally:
    """Run clients, each with its own connection: otherwise a shared pool would limit the measurement."""
    tally = Tally()
    async with AsyncExitStack() as stack:
        ready = [await stack.enter_async_context(_client(address)) for _ in range(clients)]  # before the clock starts
        watching = asyncio.create_task(_watch(process, tally.memory))
        start = time.perf_counter()
        if steps:
            await _steps(ready, pool, start + seconds, tally)
        else:
            asking = (_ask(client, pool, random.Random(n), start + seconds, tally) for n, client in enumerate(ready))
            await asyncio.gather(*asking)
        tally.elapsed = time.perf_counter() - start
        watching.cancel()
    return tally


def _client(address: str) -> httpx.AsyncClient:
    # Without proxies of the environment, and without TLS: looking both up costs more than many requests.
    return httpx.AsyncClient(base_url=address, timeout=PATIENCE, verify=False, trust_env=False)


async def _watch(process: int, memory: list[int]) -> None:
    """Measure the server's memory now and every second."""
    while True:
        memory.append(_resident(process))
        await asyncio.sleep(1.0)


async def _ask(
    client: httpx.AsyncClient,
    pool: Sequence[tuple[Conversation, float]],
    drawn: random.Random,
    end: float,
    tally: Tally,
) -> None:
    """Send requests repeatedly, for conversations drawn from the pool."""
    while time.perf_counter() < end:
        await asyncio.sleep(await _once(client, drawn.choice(pool), pool, tally))


async def _steps(
    clients: Sequence[httpx.AsyncClient], pool: Sequence[tuple[Conversation, float]], end: float, tally: Tally
) -> None:
    """Send requests as a trainer does: all clients at once, the next ones once all are answered."""
    waiting = itertools.cycle(pool)
    while time.perf_counter() < end:
        await asyncio.gather(*(_once(client, next(waiting), pool, tally) for client in clients))


async def _once(
    client: httpx.AsyncClient,
    asked: tuple[Conversation, float],
    pool: Sequence[tuple[Conversation, float]],
    tally: Tally,
) -> float:
    """Request one reward and count the result; return the seconds to wait before the next request."""
    conversation, expected = asked
    body = {
        "prompt": [turn.as_dict() for turn in conversation.prompt.turns],
        "response": [turn.as_dict() for turn in conversation.response],
    }
    start = time.perf_counter()
    try:
        answer = await client.post("/v1/rewards", json={"conversations": [body]})
    except httpx.HTTPError:
        tally.outcomes["lost"] += 1
        return 0.0
    outcome = judge(answer, expected, pool)
    tally.outcomes[outcome] += 1
    if outcome == "refused":
        return float(answer.headers.get("Retry-After", PAUSE))
    tally.seconds.append(time.perf_counter() - start)
    return 0.0


def judge(answer: httpx.Response, expected: float, pool: Sequence[tuple[Conversation, float]]) -> str:
    """Classify an answer: right, wrong, crossed, lost or refused."""
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


def _resident(process: int) -> int:
    """Return the current memory of a process, in bytes; 0 if the system does not report it."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def _print(loads: dict[str, dict[str, Any]]) -> None:
    names = ("clients", "right", "wrong", "crossed", "lost", "refused")
    rows = [
        [name, *(str(found[key]) for key in names)]
        + [f"{found['answers_per_second']:.1f}", f"{found['p50_ms']:.0f}", f"{found['p99_ms']:.0f}"]
        + [f"{max(found['memory']) / 2**20:.0f}", f"{found['memory_growth'] / 2**20:+.0f}"]
        for name, found in loads.items()
    ]
    print_table("serving", ["load", *names, "answers/s", "p50 ms", "p99 ms", "memory MiB", "growth MiB"], rows)


if __name__ == "__main__":
    main()
