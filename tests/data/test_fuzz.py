"""Two thousand mutated rows raise only hafrm's own errors, and every row is accounted for."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main
from hafrm.data import DataOptions, load_pairs
from hafrm.errors import HafrmError

ROWS = 2000
VALID: list[dict[str, Any]] = [
    {"prompt": "What is rain?", "chosen": "Water from clouds.", "rejected": "Snow.", "margin": 1.5, "group": "g1"},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "assistant", "content": "No idea."}],
    },
    {
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go"}],
    },
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go", "margin": None},
]
ODD_TEXTS = [
    "",
    " ",
    "\x00",
    "\x1b[31m",
    "\u202e\u0000",
    "\ud800",
    "x\udfff",
    "é\u0301\U0001f600",
    "</s><s>",
    "y" * 20_000,
]
ODD_VALUES = [None, True, 0, -1, 3.5, float("nan"), float("inf"), 10**300, [], {}, [[]], [{}], [None], {"role": "user"}]
ODD_MESSAGES = [
    {"role": "assistant"},
    {"role": "robot", "content": "x"},
    {"role": "user", "content": 3},
    "turn",
    7,
    None,
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places inside a row, outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in paths(item, (*path, key)))]


def edit(row: Any, rng: random.Random, change: Callable[[Any, Any], None]) -> Any:
    """Apply a change to a random place inside a row."""
    place = rng.choice(paths(row)[1:])
    holder = row
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return row


def put(value: Any) -> Callable[[Any, Any], None]:
    def change(holder: Any, key: Any) -> None:
        holder[key] = value

    return change


def delete(holder: Any, key: Any) -> None:
    del holder[key]


def rename(holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)


def double(holder: Any, key: Any) -> None:
    holder[key] = [holder[key], holder[key]]


def extend(rng: random.Random) -> Callable[[Any, Any], None]:
    def change(holder: Any, key: Any) -> None:
        if isinstance(holder[key], list):
            holder[key].insert(rng.randint(0, len(holder[key])), rng.choice(ODD_MESSAGES))

    return change


TEXT_MUTATIONS: list[Callable[[str, random.Random], str]] = [
    lambda text, rng: text[: rng.randint(0, len(text))],
    lambda text, rng: text.replace('"', "'", 1),
    lambda text, rng: text + text,
    lambda text, rng: "[" * rng.choice([5, 2000, 100_000]),
    lambda text, rng: '{"prompt": ' + '{"a": ' * 50_000,
    lambda text, rng: '{"prompt": "a", "chosen": ' + "[" * 900 + "]" * 900 + ', "rejected": "b"}',
    lambda text, rng: '{"margin": ' + "9" * 10_000 + "}",
    lambda text, rng: rng.choice(["null", "3", '"text"', "[]", "NaN", "{}", "\\u0000", "\ufeff{}", "#", "true"]),
    lambda text, rng: "".join(c for c in text if rng.random() > 0.05),
    lambda text, rng: text.replace("{", '{"chosen": "again", ', 1),
]


def mutated_line(rng: random.Random) -> str:
    """One line of a file: a valid row, changed in one to three ways, at times also as text."""
    row: Any = copy.deepcopy(rng.choice(VALID))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if len(paths(row)) > 1:
            changes = [delete, rename, double, extend(rng), put(rng.choice(ODD_TEXTS)), put(rng.choice(ODD_VALUES))]
            row = edit(row, rng, rng.choice(changes))
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5 or "\\ud" in json.dumps(row))
    if rng.random() < 0.2:
        text = rng.choice(TEXT_MUTATIONS)(text, rng)
    return text.replace("\n", " ") or "{"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    rng = random.Random(20)
    return [line if line.strip() else "{" for line in (mutated_line(rng) for _ in range(ROWS))]


def test_no_row_vanishes_uncounted(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    loaded = load_pairs(str(path), options=DataOptions(on_bad_row="skip"))
    (report,) = loaded.reports
    assert report.rows == ROWS
    assert report.kept + sum(report.skipped.values()) == ROWS
    assert report.kept == len(loaded.pairs) > 100
    # The mutations reach every way in which a row can break the contract.
    assert set(report.skipped) == {
        "invalid_json", "invalid_text", "missing_field", "wrong_type", "empty_prompt", "empty_response", "mixed_schema",
        "unsupported",
    }  # fmt: skip
    for pair in loaded.pairs:
        pair.prompt.turns[0].content.encode()
        assert all(turn.content.strip() for turn in (*pair.chosen, *pair.rejected) if turn.role == "assistant")


def test_each_row_alone_is_a_pair_or_a_named_error(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    messages = []
    for line in lines:
        path.write_text(line, encoding="utf-8")
        try:
            load_pairs(str(path))
        except HafrmError as error:
            messages.append(str(error))
    assert 100 < len(messages) < ROWS - 100
    for message in messages:
        assert message.startswith(f"{path}")
        assert "\n" not in message
        assert len(message) < 600


def test_the_command_line_says_one_line_and_ends_with_status_2(
    lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.jsonl"
    for line in lines[:60]:
        path.write_text(line, encoding="utf-8")
        status = main(["data", "show", str(path), "--rows", "1"])
        printed = capsys.readouterr()
        assert status in (0, 2)
        if status == 2:
            assert printed.err.startswith("hafrm data: ")
            assert printed.err.count("\n") == 1
        else:
            assert printed.err == ""
            assert "chosen" in printed.out


def test_check_counts_the_mutated_rows(lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    status = main(["data", "check", str(path), "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    assert status == any(finding["severity"] == "error" for finding in result["findings"])
    bad = {f["check"].removeprefix("bad_rows."): f["count"] for f in result["findings"] if "bad_rows" in f["check"]}
    assert bad == result["data"]["skipped"]
    assert sum(bad.values()) + result["data"]["kept"] == ROWS
