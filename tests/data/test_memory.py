"""Rows in memory give the same pairs as a file, whatever container holds them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest

from hafrm.data import DataOptions, MemoryData, data_names_of, load_pairs, load_tables
from hafrm.encoding import ConversationEncoder
from hafrm.errors import BadRowError, ConfigError, DataError
from hafrm.pairs import PreferencePair
from tests.tiny import some_pairs, tiny_tokenizer

PAIRS = some_pairs(6)
MESSAGES = [{**pair.as_row(), "margin": 0.5 * place} for place, pair in enumerate(PAIRS)]
STRINGS = [
    {
        "prompt": f"Question {i}",
        "chosen": "yes",
        "rejected": "no",
        "margin": float(i),
        "system": None if i else "Be brief.",
    }
    for i in range(6)
]


def generator(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from rows


def polars(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("polars", reason="polars is not installed").DataFrame(rows)


HOLDERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": generator,
    "pandas": pandas.DataFrame,
    "polars": polars,
    "pyarrow": pyarrow.Table.from_pylist,
    "Dataset": datasets.Dataset.from_list,
    "IterableDataset": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "DatasetDict": lambda rows: datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:1])
    ),
    "pairs": lambda rows: load_pairs(rows).pairs,
}


@pytest.mark.parametrize("rows", [MESSAGES, STRINGS], ids=["messages", "strings"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_every_holder_gives_the_same_pairs(holder: str, rows: list[dict[str, Any]], tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = load_pairs(str(tmp_path / "a.jsonl"))
    found = load_pairs(HOLDERS[holder](rows))
    assert found.pairs == expected.pairs
    assert [pair.id for pair in found.pairs] == [f"memory:{row}" for row in range(1, 7)]
    (report,) = found.reports
    assert report.sha256 == expected.reports[0].sha256
    assert (report.kind, report.name) == ("memory", "memory")
    assert type(json.loads(json.dumps(report.as_dict()))["name"]) is str


def test_missing_values_of_a_data_frame_are_absent() -> None:
    frame = pandas.DataFrame(STRINGS)
    frame.loc[2, "margin"] = float("nan")
    frame["group"] = pandas.Series(["a", pandas.NA] * 3)
    pairs = load_pairs(frame).pairs
    assert [pair.margin for pair in pairs] == [0.0, 1.0, None, 3.0, 4.0, 5.0]
    assert pairs[0].group == "a"
    assert pairs[1].group not in ("a", "")


@pytest.mark.parametrize("levels", [["prompt"], ["prompt", "margin"]], ids=["index", "several levels"])
@pytest.mark.parametrize("drop", [True, False], ids=["moved", "copied"])
def test_named_levels_of_an_index_are_columns(levels: list[str], drop: bool) -> None:
    frame = pandas.DataFrame(STRINGS)
    assert load_pairs(frame.set_index(levels, drop=drop)).pairs == load_pairs(frame).pairs


def test_numbers_and_arrays_of_numpy_are_values() -> None:
    row = {
        "prompt": np.array([{"role": "user", "content": np.str_("a")}]),
        "responses": np.array(["b", "c", "d"]),
        "scores": [np.float32(0.5), np.int64(2), np.float16(1)],
    }
    pairs = load_pairs([row, row], options=DataOptions(score_margins=True)).pairs
    assert [(pair.chosen[0].content, pair.margin) for pair in pairs] == [("c", 1.5), ("d", 0.5), ("c", 1.0)] * 2
    with pytest.raises(BadRowError, match="margin"):  # only a DataFrame has NaN for missing values
        load_pairs([{**STRINGS[1], "margin": np.float32("nan")}])


@pytest.mark.parametrize("holder", [pandas.DataFrame, lambda rows: pyarrow.Table.from_pylist(rows)])
def test_a_column_that_occurs_twice_is_refused(holder: Callable[[list[dict[str, Any]]], Any]) -> None:
    held = holder([STRINGS[0] | {"other": "x"}])
    names = ["prompt" if name == "other" else name for name in STRINGS[0] | {"other": 1}]
    if isinstance(held, pandas.DataFrame):
        held.columns = names
    else:
        held = held.rename_columns(names)
    with pytest.raises(DataError, match="column prompt occurs 2 times"):
        load_pairs(held)


def test_deep_values_of_columns_that_no_pair_needs_do_no_harm() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert load_pairs([STRINGS[1] | {"x": deep}]).reports[0].unread == ["x"]
    with pytest.raises(BadRowError, match="tools"):
        load_pairs([STRINGS[1] | {"tools": deep}])


def test_forms_and_options_apply_to_rows_in_memory() -> None:
    rows = [{"question": "a", "answers": ["b", "c"], "votes": [1, 2]}]
    (pair,) = load_pairs(rows, options=DataOptions(columns="prompt: question, responses: answers, scores: votes")).pairs
    assert pair.chosen[0].content == "c"


def test_names_and_rows_can_be_given_together(tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MESSAGES))
    loaded = load_pairs([tmp_path / "a.jsonl", STRINGS, pandas.DataFrame(STRINGS[:2])])
    assert [report.name for report in loaded.reports] == [str(tmp_path / "a.jsonl"), "memory", "memory-2"]
    assert [report.kept for report in loaded.reports] == [6, 6, 2]


def test_splits_of_a_dict_of_data_sets() -> None:
    held = HOLDERS["DatasetDict"](STRINGS)
    assert len(load_pairs(held, split="test").pairs) == 1
    with pytest.raises(ConfigError, match=r"no split 'validation'.*train, test"):
        load_pairs(held, split="validation")


def test_a_generator_is_read_once() -> None:
    (name,) = data_names_of(generator(STRINGS))
    assert len(load_pairs(name).pairs) == 6
    with pytest.raises(DataError, match="were read before"):
        load_pairs(name)


@pytest.mark.parametrize(
    "data", [3, None, STRINGS[0], PAIRS[0], [3], [STRINGS, 3], object(), b"rows"], ids=lambda data: type(data).__name__
)
def test_what_holds_no_rows_is_refused_in_one_line(data: Any) -> None:
    with pytest.raises(ConfigError, match="can't read rows from a") as caught:
        data_names_of(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rows", [pandas.Series(["a"]), [[1, 2]], ["text", {"prompt": "a"}], [{"prompt": "a"}, "text"]], ids=str
)
def test_rows_that_are_not_rows_are_named(rows: Any) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        load_pairs(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [[], (), pandas.DataFrame()], ids=["list", "tuple", "frame"])
def test_nothing_is_no_data(data: Any) -> None:
    with pytest.raises((ConfigError, DataError), match=r"No data given|contains no rows"):
        load_pairs(data)


def test_options_hold_rows_without_copying_or_writing_them() -> None:
    @dataclass(frozen=True)
    class Options:
        data: list[str]

    rows = list(STRINGS)
    options = Options(data_names_of(rows))
    (name,) = asdict(options)["data"]
    assert isinstance(name, MemoryData)
    assert name.held is rows
    assert copy.deepcopy(name).held is rows
    assert json.dumps(asdict(options)) == '{"data": ["memory"]}'
    assert data_names_of(options.data)[0] is options.data[0]


class Counting:
    """An endless source that counts the rows taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self.taken += 1
            yield {
                "prompt": f"Question {self.taken}",
                "chosen": "yes " * (self.taken % 3 * 40 + 1),
                "rejected": "no",
                "x": 1,
            }


def test_an_endless_source_is_read_until_there_are_enough_pairs() -> None:
    """Every third pair is too long, and other pairs replace it."""
    source = Counting()
    tables = load_tables(source, ConversationEncoder(tiny_tokenizer(), 256), DataOptions(), limit=10)
    assert len(tables) == 10
    report = tables.account.reports[0]
    assert source.taken == report.rows == report.kept == 10 + tables.account.dropped["overlong"]
    assert report.unread == ["x"]
    assert report.sha256
    pairs = [
        PreferencePair(prompt=p.prompt, chosen=p.chosen, rejected=p.rejected) for p in load_pairs(some_pairs(3)).pairs
    ]
    assert len(load_tables(pairs, ConversationEncoder(tiny_tokenizer(), 256), DataOptions(), limit=2)) == 3
