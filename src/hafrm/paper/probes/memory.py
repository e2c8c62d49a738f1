"""Store computed values on disk with what they depend on, so that interrupted probes resume."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hafrm import atomic


def remembered(folder: Path, kind: str, depends_on: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """Return a value stored earlier for the same dependencies, or compute and store it.

    Corrupt files are recomputed.

    Args:
        folder: Folder of the stored values, `KIND-DIGEST.json`, written atomically.
        kind: Kind of value.
        depends_on: Everything that the value depends on, as plain values.
        compute: Computes the value, which must be JSON-serialisable.
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
