"""Paths of test files: fixtures in this repository, and real data next to it, if present."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCES = TESTS / "fixtures" / "sources"
"""A few invented rows in the schema of each published source."""
SHARED = TESTS.parent.parent / "shared"


def shared_data(name: str, split: str) -> Path:
    """Return the file of a real preference set; skip the test if it is missing."""
    path = SHARED / "data" / f"{name}-{split}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs the real preference data: no ../shared/data/{path.name}")
    return path


def shared_model(name: str) -> Path:
    """Return the folder of a real pretrained model; skip the test if it is missing."""
    path = SHARED / "models" / name
    if not path.exists():
        pytest.skip(f"needs a real pretrained model: no ../shared/models/{name}")
    return path
