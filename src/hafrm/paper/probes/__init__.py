"""The paper's smaller measurements on trained models: each module measures, and builds its experiment's page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.store import read_json


def remembered(folder: Path, kind: str, depends_on: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """Return a value stored earlier for the same dependencies, or compute and store it, so that probes can resume.

    Corrupt files are recomputed.

    Args:
        folder: Folder of the stored values, `KIND-DIGEST.json`, written atomically.
        kind: Kind of value.
        depends_on: Everything that the value depends on, as plain values.
        compute: Computes the value, which must be JSON-serialisable.
    """
    described = json.dumps(dict(depends_on), sort_keys=True)
    path = folder / f"{kind}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"
    kept = read_json(path) or {}
    if "value" in kept and json.dumps(kept.get("depends_on"), sort_keys=True) == described:
        return kept["value"]
    value = compute()
    atomic.write_json(path, {"depends_on": dict(depends_on), "value": value})
    return value
