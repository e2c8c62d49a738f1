"""`metrics.jsonl`: a line of JSON with the metrics of each step of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hafrm import atomic

METRICS_FILE = "metrics.jsonl"


def keep_metrics(path: Path, step: int) -> None:
    """Remove the lines after `step` from a metrics file, and the partial last line of a killed run."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    atomic.write_text(path, "".join(f"{line}\n" for line in lines if step and _step(line) <= step))


def add_metrics(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Append a step's line to a metrics file as JSON; non-finite numbers become null."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    with atomic.naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **finite}) + "\n")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file, without the partial last line of a killed run."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if math.isfinite(_step(line)):
            yield json.loads(line)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the partial last line of a killed run
        return float("inf")
