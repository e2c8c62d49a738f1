"""What a probe has computed, kept on disk beside what it depends on, so that a stopped probe goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hafrm import atomic

__all__ = ["remembered"]


def remembered(folder: Path, kind: str, depends_on: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """A value that was computed before from the same things, or is computed now and kept.

    A file that is damaged is computed anew.

    Args:
        folder: Where values are kept, as `KIND-DIGEST.json`, written whole or not at all.
        kind: What sort of value it is.
        depends_on: Plain values: all that the value depends on.
        compute: Gives the value, which JSON can hold.
    """
    described = json.dumps(dict(depends_on), sort_keys=True)
    path = folder / f"{kind}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if json.dumps(kept["depends_on"], sort_keys=True) == described:
            return kept["value"]
    value = compute()
    atomic.write_json(path, {"depends_on": dict(depends_on), "value": value})
    return value
