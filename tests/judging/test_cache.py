"""The cache of replies: entries stay, for every process, and damage is reported."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from hafrm.errors import DataError
from hafrm.judging.cache import Reply, ReplyCache, reply_key

ASKED = {"model": "m", "messages": [{"role": "user", "content": "?"}], "parameters": {"t": 0}, "prompt_version": "1"}


def test_replies_outlive_the_process(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "new" / "replies.sqlite")
    assert cache.get("key") is None
    cache.put("key", Reply("Output (a)\n\u2028", 3, 4))
    cache.put("key", Reply("another", 1, 1))
    cache.close()
    again = ReplyCache(tmp_path / "new" / "replies.sqlite")
    assert again.get("key") == Reply("Output (a)\n\u2028", 3, 4)
    again.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "n"),
        ("messages", [{"role": "system", "content": "?"}]),
        ("parameters", {"t": 1}),
        ("prompt_version", "2"),
    ],
)
def test_a_key_is_of_all_that_a_reply_depends_on(name: str, value: object) -> None:
    assert reply_key(**ASKED) != reply_key(**(ASKED | {name: value}))
    assert reply_key(**ASKED) == reply_key(**dict(reversed(ASKED.items())))


def write(path: Path, name: str, count: int, *, crash: bool) -> None:
    cache = ReplyCache(path)
    for i in range(count):
        cache.put(f"{name}{i}", Reply(name, i, i))
    if crash:
        os._exit(1)
    cache.close()


@pytest.mark.parametrize("crash", [False, True])
def test_two_processes_share_it(crash: bool, tmp_path: Path) -> None:
    """Entries stay even if processes end without closing the cache: each reply is on disk before the next."""
    path = tmp_path / "replies.sqlite"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write, args=(path, name, 200), kwargs={"crash": crash}) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cache = ReplyCache(path)
    assert all(cache.get(f"{name}{i}") == Reply(name, i, i) for name in "ab" for i in range(200))
    cache.close()


@pytest.mark.parametrize("damage", ["text", "torn", "folder"])
def test_damage_is_said(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    if damage == "text":
        path.write_text("this is no database " * 100)
    elif damage == "folder":
        path.mkdir()
    else:
        cache = ReplyCache(path)
        for i in range(300):
            cache.put(f"key{i}", Reply("x" * 100, 1, 1))
        cache.close()
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192)
    with pytest.raises(DataError, match=r"replies\.sqlite.*judge\.cache"):
        cache = ReplyCache(path)
        try:
            cache.get("key1")
        finally:
            cache.close()
