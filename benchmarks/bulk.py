"""Rows a second of `hafrm score`: the local engine beside Ray's, on the same rows.

    python -m benchmarks.bulk small --rows 2000 --actors 1 2 --out FILE

Each engine is the command as users give it, in a process of its own, on real preference pairs. Its start (Python, Ray,
loading the model, in every actor) is what the same command takes for one row an actor; `rows_per_second` is without
the start, which a job of any size pays once, and `seconds` are with it. The machine's cores are shared out: one actor
computes on all of them, two on half of them each.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.measure import environment, print_table, save
from benchmarks.workload import SHARED, model_folder

NAMES = ("reward_chosen", "reward_rejected")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `hafrm score` takes, or a size of benchmarks.workload.SHAPES")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", help="a file for the JSON")
    options = parser.parse_args()
    with model_folder(options.model) as model, tempfile.TemporaryDirectory() as place:
        engines, difference = _measure(model, options.rows, options.actors, Path(place))
    rows = [[name, *(f"{value:.1f}" for value in found.values())] for name, found in engines.items()]
    print_table(f"hafrm score, {options.rows} rows", ["engine", "seconds", "start", "rows/s"], rows)
    print(f"largest difference of a reward: {difference:.1e}")
    local = engines["local"]["rows_per_second"]
    ratios = {
        f"rows a second, {name} vs local": found["rows_per_second"] / local
        for name, found in engines.items()
        if name != "local"
    }
    result = {"environment": environment(), "model": options.model, "rows": options.rows, "engines": engines}
    save(options.out, result | {"largest_difference": difference, "ratios": ratios})


def _measure(model: str, rows: int, actors: list[int], place: Path) -> tuple[dict[str, dict[str, float]], float]:
    """For each engine its seconds, those of its start, and rows a second; and how far rewards are apart at most."""
    engines: dict[str, dict[str, float]] = {}
    data = _write_rows(place / "rows.jsonl", rows)
    out = place / "local.jsonl"
    start = _seconds(model, _write_rows(place / "one.jsonl", 1), place / "one-scored.jsonl")
    engines["local"] = _rates(rows, 1, _seconds(model, data, out), start)
    expected = _rewards([out])
    difference = 0.0
    for count in actors:
        name = f"ray, {count} actor{'s' * (count > 1)}"
        more = ["--engine", "ray", "--num_actors", str(count), "--cpus_per_actor", str((os.cpu_count() or 1) // count)]
        few = _write_rows(place / f"few-{count}.jsonl", count)
        start = _seconds(model, few, place / f"few-{count}-scored", *more, "--rows_per_part", "1")
        out = place / f"ray-{count}"
        part = str(min(4096, -(-rows // (8 * count))))  # parts enough that no actor waits long for the last one
        engines[name] = _rates(rows, count, _seconds(model, data, out, *more, "--rows_per_part", part), start)
        found = _rewards(sorted((out / "scored").iterdir()))
        difference = max(difference, *(_apart(a, b) for a, b in zip(found, expected, strict=True)))
    return engines, difference


def _rates(rows: int, few: int, seconds: float, start: float) -> dict[str, float]:
    return {"seconds": seconds, "start": start, "rows_per_second": (rows - few) / (seconds - start)}


def _write_rows(path: Path, count: int) -> Path:
    """So many real pairs, over again from the first where there are not enough."""
    with path.open("w") as file:
        file.writelines(islice(cycle(list(_pairs())), count))
    return path


def _pairs() -> Iterator[str]:
    with gzip.open(SHARED / "data" / "hh_harmless-train.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from file


def _seconds(model: str, data: Path, out: Path, *more: str) -> float:
    command = [sys.executable, "-m", "hafrm.cli", "score", model, "--data", str(data), "--out", str(out), *more]
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # of the local engine: an actor has as many as it has CPUs
    start = time.perf_counter()
    subprocess.run([*command, "--score.overlong", "truncate"], check=True, env=os.environ | threads)
    return time.perf_counter() - start


def _apart(one: float | None, other: float | None) -> float:
    """How far two rewards are apart; over-long rows have none, in both engines."""
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    return abs(one - other)


def _rewards(files: list[Path]) -> list[float | None]:
    rows: Iterator[dict[str, Any]] = (json.loads(line) for file in files for line in file.open(encoding="utf-8"))
    return [row[name] for row in rows for name in NAMES]


if __name__ == "__main__":
    main()
