"""Replies that were paid for, kept in an SQLite file that several processes may share.

A reply is written as soon as it has arrived, so a crash loses at most the requests in flight.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafrm.errors import DataError, first_line

__all__ = ["Reply", "ReplyCache", "reply_key"]

_BUSY_SECONDS = 60.0
"""How long to wait while another process writes."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS replies "
    "(key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model replied, and what that took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def reply_key(
    *, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any], prompt_version: str
) -> str:
    """The name of a reply: a hash of all that it depends on. The parameters say the endpoint's address too."""
    text = json.dumps([model, list(messages), dict(parameters), prompt_version], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by their keys; threads and processes may share it.

    Args:
        path: The file; it is made if need be, with its folder.

    Raises:
        DataError: the file is no cache, or damaged, or can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        with self._explaining():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each reply is on disk before the next is asked for.
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute(_TABLE)
            except BaseException:
                self._connection.close()
                raise

    def get(self, key: str) -> Reply | None:
        """The reply of this key, or None."""
        query = "SELECT text, prompt_tokens, completion_tokens FROM replies WHERE key = ?"
        with self._lock, self._explaining():
            row = self._connection.execute(query, (key,)).fetchone()
        return Reply(*row) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; where another process was faster, its reply stays."""
        row = (key, reply.text, reply.prompt_tokens, reply.completion_tokens)
        with self._lock, self._explaining():
            self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"The cache of replies {self.path} can't be used ({first_line(error)}). If it is damaged, move it "
                "away; or name another file with `--judge.cache FILE`."
            ) from error
