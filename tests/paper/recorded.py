"""Accuracies recomputed from the margins that `hafrm reproduce` writes next to its results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest


def recorded_accuracies(folder: Path) -> dict[str, float]:
    """Accuracy of each run on each test set, by "RUN on SET"."""
    found = {}
    for line in map(json.loads, (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()):
        if "scores" in line:
            seen = set(line["seen"])
            margins = [each for place, each in enumerate(line["margins"]) if place not in seen and each is not None]
            found[line["scores"]] = fmean(0.5 if each == 0 else float(each > 0) for each in margins)
    return found


def reported_accuracies(results: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Yield the accuracies by seed of Table 2, Figure 3 or Table 3, by "RUN{seed} on SET"."""
    for part in ("accuracy", "single", "mixed", "internal"):
        for backbone, columns in results.get(part, {}).items():
            for trained, cells in columns.items():
                for tested, row in cells.items() if part == "internal" else [(trained, cells)]:
                    sets = "+".join(columns) if part == "mixed" else trained
                    for method, cell in row.items():
                        yield f"{backbone}/{sets}/{method}-seed{{seed}} on {tested}", cell["by_seed"]


def require_results_of_the_record(folder: Path) -> None:
    """Fail unless every reported accuracy follows from the recorded margins."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    recorded, reported = recorded_accuracies(folder), list(reported_accuracies(results))
    assert reported
    for name, by_seed in reported:
        for seed, value in zip(results["seeds"], by_seed, strict=True):
            assert value == pytest.approx(recorded[name.format(seed=seed)], abs=1e-9), name
