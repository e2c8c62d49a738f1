"""A cache of an endpoint's replies in an SQLite file, which several processes may share.

Replies are written as they arrive, so a crash loses at most the requests in flight.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from hafrm.errors import DataError, first_line

_BUSY_SECONDS = 60.0
"""How long to wait while another process writes, in seconds."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS chat_replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, finish_reason TEXT, thought INTEGER NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply and its numbers of tokens."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    """Why the endpoint ended the reply, if it says so: "stop", "length"."""
    thought: bool = False
    """Whether the model's reasoning came in a separate field."""


_COLUMNS = ", ".join(field.name for field in fields(Reply))


def reply_key(
    *, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any], prompt_version: str
) -> str:
    """Return a reply's key: a hash of everything it depends on. The parameters include the endpoint's address."""
    text = json.dumps([model, list(messages), dict(parameters), prompt_version], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by key; threads and processes may share the cache.

    Args:
        path: The file; created with its folder if it does not exist.

    Raises:
        DataError: the file is not a cache, is damaged, or can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        with self._explaining():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each reply is on disk before the next request.
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
        """Return the reply of this key, or None."""
        query = f"SELECT {_COLUMNS} FROM chat_replies WHERE key = ?"
        with self._lock, self._explaining():
            row = self._connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        text, prompt_tokens, completion_tokens, finish_reason, thought = row
        return Reply(text, prompt_tokens, completion_tokens, finish_reason, bool(thought))

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply, unless another process has already stored one under this key."""
        with self._lock, self._explaining():
            self._connection.execute(
                "INSERT OR IGNORE INTO chat_replies VALUES (?, ?, ?, ?, ?, ?)", (key, *astuple(reply))
            )

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
