"""A tiny run with two heads, and rows of all kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hafrm.models.checkpoints import save_run
from hafrm.models.lora import LoraOptions
from hafrm.models.stock import new_model
from hafrm.models.tokenizers import load_tokenizer
from tests.models.test_checkpoints import info
from tests.tiny import save_tiny

LIMIT = 64


def answer(i: int) -> dict[str, Any]:
    """A row of one response."""
    return {"id": i, "prompt": f"question {i}", "response": "yes " * (1 + i % 5) + str(i)}


def pair(i: int) -> dict[str, Any]:
    """A row of two responses."""
    return {"id": i, "prompt": f"question {i}", "chosen": "yes " * (1 + i % 3), "rejected": f"no {i}"}


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines; a string stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of a folder's files, in the order of their names; [] where there is no folder."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose policy is not its reference, so that each head has rewards of its own."""
    place = tmp_path_factory.mktemp("run")
    base, tuned = save_tiny(place / "base"), save_tiny(place / "tuned", seed=1)
    tokenizer = load_tokenizer(str(tuned))
    described = info(base, max_length=LIMIT, pad_token=tokenizer.pad_token)
    save_run(new_model(str(tuned), tokenizer, lora=LoraOptions()), tokenizer, described, place / "run")
    return str(place / "run")
