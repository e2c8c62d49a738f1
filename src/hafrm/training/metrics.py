"""`metrics.jsonl`: a line of JSON with the metrics of each step of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.store import parsed_lines

METRICS_FILE = "metrics.jsonl"


def keep_metrics(path: Path, step: int) -> None:
    """Remove the lines after `step` from a metrics file, and the partial last line of a killed run."""
    kept = [row for row in read_metrics(path) if step and row["step"] <= step]
    atomic.write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))


def add_metrics(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Append a step's line to a metrics file as JSON; non-finite numbers become null."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    with atomic.naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **finite}) + "\n")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file, without the partial last line of a killed run."""
    if path.exists():
        yield from parsed_lines(path, _with_step, remedy=None)


def _with_step(row: dict[str, Any]) -> dict[str, Any]:
    if not math.isfinite(row["step"]):
        raise ValueError("a line without a step")
    return row
