"""Copies of named data sets for tests, with rows that are left out."""

from __future__ import annotations

import json
from pathlib import Path

_TURNS = "\n\nHuman: Who?\n\nAssistant: "


def harmless(folder: Path) -> str:
    """A test split of HH-Harmless: a pair, a row of several turns, which that set's rule drops, and a broken row."""
    pair = {"chosen": f"{_TURNS}I.", "rejected": f"{_TURNS}You."}
    longer = {name: f"{_TURNS}They.{text}" for name, text in pair.items()}
    (folder / "test.jsonl").write_text(f"{json.dumps(pair)}\n{json.dumps(longer)}\n{{broken\n")
    return f"hh-harmless@{folder}"
