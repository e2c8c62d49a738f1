"""Measurements: interleaved rounds, medians of ratios, peak memory in a separate process."""

from __future__ import annotations

import gc
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import __version__ as transformers_version

from hafrm.atomic import json_text, write_json
from hafrm.training.manifest import processor

__all__ = ["environment", "interleaved", "median_ratio", "peak_memory", "peak_rss", "print_table", "save"]


def interleaved(
    actions: Mapping[str, Sequence[Callable[[], Any]]], *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time actions in rounds: every round runs each action once, in an order that rotates.

    Args:
        actions: What to run in each round, by name.
        clock: `time.perf_counter`, or `time.process_time` if other programs use the processor.

    Returns:
        The seconds in each round, by name.
    """
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(len(actions[names[0]])):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            start = clock()
            actions[name][number]()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_rss() -> int:
    """Return the peak memory of this process, in bytes.

    On Linux child processes inherit getrusage's peak, so it is read from the process's own status instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_memory(arguments: Sequence[str]) -> int:
    """Run a benchmark's module in a separate process, whose last line of output is its peak memory in bytes."""
    done = subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.strip().splitlines()[-1])


def environment() -> dict[str, Any]:
    """Return the machine and versions of a result."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def save(out: str | None, result: Mapping[str, Any]) -> None:
    """Write the result as JSON if a file is given."""
    if out:
        write_json(Path(out), dict(result))
        print(f"wrote {out}")
    else:
        print(json_text(result.get("ratios", {}), indent=2))
