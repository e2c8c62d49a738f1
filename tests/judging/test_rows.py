"""Rows to judge, and what is wrong with rows that can't be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import ReadOptions
from hafrm.errors import BadRowError, DataError
from hafrm.judging.options import Mode
from hafrm.judging.rows import load_items
from hafrm.pairs import Message
from tests.sources import harmless

PAIR = {"prompt": "Who?", "chosen": "I.", "rejected": "You."}
FOUR = {"prompt": "Who?", "responses": ["a", "b", "c", "d"]}


def written(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_rows_of_all_kinds(tmp_path: Path) -> None:
    chat = [{"role": "assistant", "content": "b"}]
    two = {
        "prompt": [{"role": "user", "content": "Who?"}],
        "responses": ["a", chat],
        "models": ["x", "y"],
        "group": "g",
    }
    path = written(tmp_path, two, PAIR)
    first, second = load_items(path, "pair", ReadOptions()).items
    assert first.responses == ((Message("assistant", "a"),), (Message("assistant", "b"),))
    assert (first.models, first.group, first.labelled, first.id) == (("x", "y"), "g", False, f"{path}:1")
    assert (second.models, second.labelled) == (("chosen", "rejected"), True)
    assert first.prompt == second.prompt
    (ranked,) = load_items(written(tmp_path, FOUR), "rank", ReadOptions()).items
    assert ranked.models == ("response 1", "response 2", "response 3", "response 4")


@pytest.mark.parametrize(
    ("row", "mode", "said"),
    [
        (FOUR, "pair", "contains 4 responses. --mode pair takes 2, or `chosen`"),
        ({"prompt": "?", "responses": ["a"] * 3}, "rank", "takes 4 or 8"),
        (PAIR, "rank", "`responses` is missing"),
        ({"prompt": "?", "responses": "ab"}, "pair", "not a list"),
        ({"responses": ["a", "b"]}, "pair", "`prompt` is missing"),
        ({"prompt": " ", "responses": ["a", "b"]}, "pair", "`prompt` is empty"),
        ({"prompt": "?", "responses": ["a", ""]}, "pair", r"`responses\[1\]` is empty"),
        ({"prompt": "?", "responses": ["a", None]}, "pair", r"`responses\[1\]` is missing"),
        ({"prompt": "?", "responses": ["a", "\ud800"]}, "pair", "surrogate"),
        ({"prompt": "?", "responses": ["a", "b"], "models": ["x", "x"]}, "pair", "`models` does not name"),
        ({"prompt": "?", "responses": ["a", "b"], "models": ["x"]}, "pair", "`models` does not name"),
        ({"prompt": "?", "chosen": "a"}, "pair", "`rejected` is missing"),
        ([1], "pair", "not an object"),
        ("{broken", "pair", "not valid JSON"),
    ],
    ids=str,
)
def test_bad_rows_say_what_is_wrong(row: Any, mode: Mode, said: str, tmp_path: Path) -> None:
    """Bad rows can be skipped and counted instead."""
    good = FOUR if mode == "rank" else PAIR
    path = written(tmp_path, good, row)
    with pytest.raises(BadRowError, match=said) as error:
        load_items(path, mode, ReadOptions())
    assert "row 2" in str(error.value)
    found = load_items(path, mode, ReadOptions(on_bad_row="skip"))
    assert len(found.items) == 1
    assert found.skipped == {error.value.reason.value: 1}
    with pytest.raises(DataError, match="nothing to judge"):
        load_items(written(tmp_path, row), mode, ReadOptions(on_bad_row="skip"))


def test_pairs_of_a_named_set() -> None:
    items = load_items("world/safe[:5]", "pair", ReadOptions()).items
    assert [item.labelled for item in items] == [True] * 5
    with pytest.raises(DataError, match="reads a file"):
        load_items("world/safe[:5]", "rank", ReadOptions())


def test_rows_of_a_set_that_are_no_pair_are_counted(tmp_path: Path) -> None:
    found = load_items(harmless(tmp_path), "pair", ReadOptions(on_bad_row="skip"))
    assert (len(found.items), found.skipped) == (1, {"multi_turn": 1, "invalid_json": 1})


def test_rows_are_known_by_their_texts_wherever_they_lie(tmp_path: Path) -> None:
    rows = [FOUR, FOUR | {"responses": ["d", "c", "b", "a"]}, FOUR, FOUR | {"models": ["w", "x", "y", "z"]}]
    (tmp_path / "other").mkdir()
    here, there = (
        load_items(written(folder, *rows), "rank", ReadOptions()) for folder in (tmp_path, tmp_path / "other")
    )
    keys = [item.key for item in here.items]
    assert keys == [item.key for item in there.items]
    assert keys[2:] == [f"{keys[0]}-1", f"{keys[0]}-2"]  # equal texts are distinguished by their order
    assert len(set(keys)) == 4
    assert here.sha256 == there.sha256
    assert [item.id for item in here.items] != [item.id for item in there.items]


def test_the_fingerprint_is_of_all_texts(tmp_path: Path) -> None:
    prints = {
        load_items(written(tmp_path, row), "pair", ReadOptions()).sha256
        for row in (PAIR, PAIR | {"prompt": "Why?"}, PAIR | {"chosen": "Me."}, PAIR | {"rejected": "Me."})
    }
    assert len(prints) == 4
