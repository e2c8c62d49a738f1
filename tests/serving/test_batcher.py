"""Batches across requests change no reward, mix up no answers, and isolate requests from each other's failures."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from hafrm.encoding import TokenGroup
from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from hafrm.serving.app import build_app
from hafrm.serving.batcher import Batcher, ClosedError, Job
from hafrm.serving.config import ServeConfig
from hafrm.serving.service import RewardService
from tests.serving.conftest import Wrapped, body, live

POISON = 255


def group(*ids: int) -> TokenGroup:
    return TokenGroup(ids[:1], (ids[1:],))


def total(groups: Any) -> list[float]:
    return [float(sum(g.prompt) + sum(g.responses[0])) for g in groups]


class Held:
    """A score function that waits until it is released, and records its batches."""

    def __init__(self) -> None:
        self.go, self.started, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, groups: Any) -> list[float]:
        self.started.set()
        assert self.go.wait(10)
        self.batches.append([g.unique_tokens for g in groups])
        if any(POISON in g.responses[0] for g in groups):
            raise RuntimeError("poisoned")
        return total(groups)


def test_what_waits_runs_together_within_the_token_budget() -> None:
    held = Held()
    batcher = Batcher(held, tokens_per_batch=10)
    futures = [batcher.submit(Job([group(0, i, i, i)])) for i in range(1, 5)]
    futures.append(batcher.submit(Job([group(0, *range(20)), group(0, 1)])))
    held.go.set()
    batcher.close()
    assert [future.result() for future in futures] == [[3], [6], [9], [12], [190, 1]]
    assert sorted(n for batch in held.batches for n in batch) == [2, 4, 4, 4, 4, 21]
    assert all(sum(batch) <= 10 or batch == [21] for batch in held.batches)
    assert max(map(len, held.batches)) > 1


class Stepped(Held):
    """A score function each of whose batches waits for a step."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.step = threading.Semaphore(0), threading.Semaphore(0)
        self.go.set()

    def __call__(self, groups: Any) -> list[float]:
        self.running.release()
        assert self.step.acquire(timeout=10)
        return super().__call__(groups)


def test_a_long_request_is_cut_and_others_have_their_turns() -> None:
    stepped = Stepped()
    batcher = Batcher(stepped, tokens_per_batch=20)
    long = batcher.submit(Job([group(0, i, i) for i in range(100)]))
    assert stepped.running.acquire(timeout=10)
    short = [batcher.submit(Job([group(0, 1)])) for _ in range(3)]
    stepped.step.release(2)  # the batch that runs, and one more
    assert [future.result(10) for future in short] == [[1]] * 3
    assert not long.done()
    assert batcher.waiting == 1
    stepped.step.release(100)
    batcher.close()
    assert long.result() == [2.0 * i for i in range(100)]
    assert all(sum(batch) <= 20 for batch in stepped.batches)
    assert len(stepped.batches[1]) > 3  # the rest of that batch was the long one's


def test_every_one_of_many_long_requests_gets_its_turn() -> None:
    order: list[int] = []

    def score(groups: Any) -> list[float]:
        order.extend(g.prompt[0] for g in groups)
        return total(groups)

    held = Held()
    batcher = Batcher(lambda groups: (held.go.wait(10), score(groups))[1], tokens_per_batch=6)
    futures = [batcher.submit(Job([group(i, 1, 1) for _ in range(20)])) for i in range(10)]
    held.go.set()
    batcher.close()
    assert all(future.result() == [i + 2.0] * 20 for i, future in enumerate(futures))
    for start in range(0, 150, 30):  # two sequences a batch: each request has one at least every ten batches
        assert set(order[start : start + 30]) == set(range(10))


def test_requests_with_one_prompt_run_together_and_count_it_once() -> None:
    """Ten tokens a batch: four responses of two tokens after a prompt of two, each in its own request."""
    held, batches = threading.Event(), list[int]()

    def score(groups: list[TokenGroup]) -> list[float]:
        batches.append(len(groups))
        held.wait(10)
        return total(groups)

    batcher = Batcher(score, tokens_per_batch=10, share_prompts=True)
    sent = [TokenGroup((7, 8), ((i, i),)) for i in range(9)]
    futures = [batcher.submit(Job([each])) for each in sent[:1]]
    until(lambda: bool(batches))
    futures += [batcher.submit(Job([each])) for each in sent[1:]]
    held.set()
    assert [future.result(10)[0] for future in futures] == total(sent)
    batcher.close()
    assert batches == [1, 4, 4]


@pytest.mark.parametrize(("tokens", "sizes"), [(100, [3]), (4, [2, 1])], ids=["time", "full"])
def test_an_idle_model_may_wait_for_more_requests(tokens: int, sizes: list[int]) -> None:
    """Requests wait until the time is over, or until two requests of two tokens fill a batch of four."""
    batches: list[int] = []
    batcher = Batcher(lambda groups: (batches.append(len(groups)), total(groups))[1], tokens_per_batch=tokens, wait=0.4)
    start = time.monotonic()
    first = [batcher.submit(Job([group(0, i)])) for i in range(2)]
    time.sleep(0.05)
    last = batcher.submit(Job([group(0, 2)]))
    assert [future.result(10) for future in (*first, last)] == [total([group(0, i)]) for i in range(3)]
    assert time.monotonic() - start > 0.35
    assert batches == sizes
    batcher.close()


def test_sequences_of_one_prompt_run_together_and_count_it_once() -> None:
    jobs = [group(7, *[i] * 2) for i in range(6)] + [group(8, 1, 1) for _ in range(6)]
    mixed = [jobs[i] for i in (0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11)]
    for share, sizes in ((True, [6, 6]), (False, [4, 4, 4])):
        batches: list[list[int]] = []
        batcher = Batcher(
            lambda groups, found=batches: (found.append([g.prompt[0] for g in groups]), total(groups))[1],
            tokens_per_batch=13,
            share_prompts=share,
        )
        assert batcher.submit(Job(mixed)).result(10) == total(mixed)
        batcher.close()
        assert [len(batch) for batch in batches] == sizes
        assert [n for batch in batches for n in batch] == [7] * 6 + [8] * 6


def test_what_is_left_of_a_request_taken_back_or_failed_is_not_scored() -> None:
    stepped = Stepped()
    batcher = Batcher(stepped, tokens_per_batch=20)
    long = batcher.submit(Job([group(0, i, i) for i in range(100)]))
    failing = batcher.submit(Job([group(0, POISON, 1), *(group(0, 1, 1) for _ in range(100))]))
    assert stepped.running.acquire(timeout=10)
    assert long.cancel()
    stepped.step.release(100)
    batcher.close()
    with pytest.raises(RuntimeError, match="poisoned"):
        failing.result()
    assert sum(map(len, stepped.batches)) <= 4 * 6  # the batch that ran, and the one that failed, together and apart


def test_a_failure_is_its_causes_alone() -> None:
    held = Held()
    batcher = Batcher(held, tokens_per_batch=100)
    futures = [batcher.submit(Job([group(0, i)])) for i in (1, POISON, 3)]
    held.go.set()
    batcher.close()
    assert (futures[0].result(), futures[2].result()) == ([1], [3])
    with pytest.raises(RuntimeError, match="poisoned"):
        futures[1].result()


def test_a_request_taken_back_is_not_scored() -> None:
    held = Held()
    batcher = Batcher(held, tokens_per_batch=1)
    first = batcher.submit(Job([group(0, 1)]))
    assert held.started.wait(10)
    second, third = batcher.submit(Job([group(0, 2)])), batcher.submit(Job([group(0, 3)]))
    assert second.cancel()
    held.go.set()
    batcher.close()
    assert (first.result(), third.result()) == ([1], [3])
    with pytest.raises(CancelledError):
        second.result()
    assert len(held.batches) == 2
    with pytest.raises(ClosedError):
        batcher.submit(Job([group(0, 1)]))


def mixed(i: int) -> list[Conversation]:
    """One to three conversations of differing lengths, of which some share a prompt."""
    return [Conversation.of(f"question {i % 7}", f"answer {i}.{j} " + "so " * (i * j % 29)) for j in range(1 + i % 3)]


@pytest.mark.parametrize("batch_requests", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fifty_clients_get_the_rewards_of_a_lone_scorer(batch_requests: bool, scorer: HybridScorer) -> None:
    async def ask(address: str) -> list[list[float]]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            answers = await asyncio.gather(*(client.post("/v1/rewards", json=body(*mixed(i))) for i in range(150)))
        return [[item["reward"] for item in answer.raise_for_status().json()["rewards"]] for answer in answers]

    sizes: list[int] = []

    def score(groups: list[TokenGroup]) -> list[float]:
        sizes.append(len(groups))
        return scorer.score_tokens(groups)

    with live(Wrapped(scorer, score), batch_requests=batch_requests) as address:
        found = asyncio.run(ask(address))
    expected = [scorer.score(mixed(i)) for i in range(150)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert len({round(reward, 4) for rewards in found for reward in rewards}) > 200
    assert (max(sizes) > 3) == batch_requests


def test_a_full_server_says_so_at_once(scorer: HybridScorer) -> None:
    held = Held()
    one = body(Conversation.of("a", "b"))
    with live(Wrapped(scorer, held), max_requests=3) as address, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(httpx.post, f"{address}/v1/rewards", json=one, timeout=20) for _ in range(3)]
        until(lambda: "hafrm_open_requests 3.0" in httpx.get(f"{address}/metrics").text)
        refused = httpx.post(f"{address}/v1/rewards", json=one)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert httpx.get(f"{address}/health").status_code == 200
        held.go.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
        assert httpx.post(f"{address}/v1/rewards", json=one).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_models_thread_has_died_is_not_ready(scorer: HybridScorer) -> None:
    def deadly(groups: Any) -> list[float]:
        raise SystemExit

    service = RewardService({"tiny": Wrapped(scorer, deadly)}, ServeConfig(models=["tiny=none"]))
    client = TestClient(build_app(service), base_url="http://localhost")
    assert client.get("/ready").status_code == 200
    service.models["tiny"].batcher.submit(Job([group(0, 1)]))
    service.models["tiny"].batcher._thread.join(10)
    for answer in (client.get("/ready"), client.post("/v1/rewards", json=body(Conversation.of("a", "b")))):
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")
        assert "Restart" in answer.json()["error"]["message"]
    assert client.get("/health").status_code == 200


def test_stopping_answers_what_is_in_flight(scorer: HybridScorer) -> None:
    held = Held()
    with ThreadPoolExecutor(4) as pool:
        with live(Wrapped(scorer, held)) as address:
            bodies = [body(Conversation.of("a", "b" * i)) for i in range(1, 4)]
            flying = [pool.submit(httpx.post, f"{address}/v1/rewards", json=b, timeout=20) for b in bodies]
            until(lambda: "hafrm_open_requests 3.0" in httpx.get(f"{address}/metrics").text)
            pool.submit(lambda: (time.sleep(0.3), held.go.set()))  # while the server is shutting down
        answers = [future.result() for future in flying]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.json()["rewards"][0]["reward"] for answer in answers}) == 3


def test_a_client_that_leaves_takes_only_its_own_work_back(scorer: HybridScorer) -> None:
    held = Held()
    with live(Wrapped(scorer, held), batch_requests=False) as address, ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx.post, f"{address}/v1/rewards", json=body(Conversation.of("a", "b")), timeout=20)
        assert held.started.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/rewards", json=body(Conversation.of("a", "c" * 99)), timeout=0.3)
        until(lambda: "hafrm_open_requests 1.0" in httpx.get(f"{address}/metrics").text)
        last = pool.submit(httpx.post, f"{address}/v1/rewards", json=body(Conversation.of("a", "d")), timeout=20)
        held.go.set()
        assert first.result().status_code == last.result().status_code == 200
    assert len(held.batches) == 2


def test_a_long_request_stops_when_its_client_has_gone(scorer: HybridScorer) -> None:
    stepped = Stepped()
    content = json.dumps(body(*[Conversation.of(f"a {i}", "b" * 30) for i in range(200)])).encode()
    head = (
        "POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    )
    with live(Wrapped(scorer, stepped)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as leaving:
            leaving.sendall(head.format(len(content)).encode() + content)
            assert stepped.running.acquire(timeout=10)
        until(lambda: "hafrm_open_requests 0.0" in httpx.get(f"{address}/metrics").text)
        until(lambda: 'path="/v1/rewards",status="499"} 1.0' in httpx.get(f"{address}/metrics").text)
        stepped.step.release(1000)
        assert httpx.post(f"{address}/v1/rewards", json=body(Conversation.of("a", "d"))).status_code == 200
    assert len(stepped.batches) == 2


def test_a_failing_model_answers_500_with_an_id_to_those_concerned(scorer: HybridScorer, caplog) -> None:
    def score(groups: list[TokenGroup]) -> list[float]:
        if any(len(g.responses[0]) > 50 for g in groups):
            raise RuntimeError("the secret inside")
        return scorer.score_tokens(groups)

    bodies = [body(Conversation.of("a", "b" * (90 if i % 5 == 0 else i))) for i in range(1, 31)]
    with live(Wrapped(scorer, score)) as address, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda b: httpx.post(f"{address}/v1/rewards", json=b, timeout=20), bodies))
    assert [answer.status_code for answer in answers] == [500 if i % 5 == 0 else 200 for i in range(1, 31)]
    for answer in answers:
        if answer.status_code == 500:
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text
            assert answer.json()["error"]["id"] in caplog.text


def until(condition: Any, seconds: float = 10) -> None:
    """Wait for a condition; fail if it does not become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
