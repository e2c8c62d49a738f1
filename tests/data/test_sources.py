"""Files of every format, folders, patterns, slices and shares: the same pairs, whatever they are read from."""

from __future__ import annotations

import csv
import glob
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from hafrm.data import DataOptions, ReadOptions, encode, load_pairs, load_tables, local_path, read_rows
from hafrm.encoding import ConversationEncoder
from hafrm.errors import BadRowError, ConfigError, DataError, UnreadableError
from tests.tiny import tiny_tokenizer

STRINGS = [
    {"prompt": f'Question {i}, with a comma and "quotes"', "chosen": f"Line one\nline {i}", "rejected": f"{i}"}
    for i in range(6)
]
ROLES = ("user", "assistant", "assistant")
MESSAGES = [
    {name: [{"role": role, "content": row[name]}] for name, role in zip(row, ROLES, strict=True)} for row in STRINGS
]


def zstandard(content: bytes) -> bytes:
    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, "zstd") as stream:
        stream.write(content)
    return target.getvalue().to_pybytes()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(path: Path, rows: list[dict[str, Any]], separator: str = ",", **options: Any) -> None:
    with path.open("w", newline="", **options) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    held = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), held.schema) as stream:
        stream.write_table(held, max_chunksize=2)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "a.jsonl": lambda path, rows: path.write_bytes(json_lines(rows)),
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(json_lines(rows))),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(
        zstandard(json_lines(rows[:2])) + zstandard(json_lines(rows[2:]))
    ),
    "a.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "a.json.zst": lambda path, rows: path.write_bytes(zstandard(json.dumps(rows).encode())),
    "a.csv": table,
    "b.csv": lambda path, rows: table(path, rows, encoding="utf-8-sig"),
    "a.tsv": lambda path, rows: table(path, rows, "\t"),
    "a.csv.gz": lambda path, rows: (table(path, rows), path.write_bytes(gzip.compress(path.read_bytes()))),
    "a.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    "a.feather": lambda path, rows: pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), str(path)),
    "a.arrow": arrow_stream,
    "saved": lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(str(path)),
}


@pytest.mark.parametrize("rows", [STRINGS, MESSAGES], ids=["strings", "messages"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_pairs(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_bytes(json_lines(rows))
    expected = load_pairs(str(tmp_path / "plain.jsonl"))
    WRITERS[name](tmp_path / name, rows)
    found = load_pairs(str(tmp_path / name))
    assert found.pairs == expected.pairs
    assert [pair.row for pair in found.pairs] == [1, 2, 3, 4, 5, 6]
    assert found.reports[0].sha256 == expected.reports[0].sha256


def test_cells_are_numbers_and_lists_where_a_form_wants_them(tmp_path: Path) -> None:
    row = {"prompt": "7", "chosen": "[1, 2]", "rejected": '{"a": 1}', "margin": "1.5", "tools": ""}
    table(tmp_path / "a.csv", [row, row | {"margin": ""}])
    pairs = load_pairs(str(tmp_path / "a.csv")).pairs
    assert [pair.margin for pair in pairs] == [1.5, None]
    assert (pairs[0].prompt.turns[0].content, pairs[0].chosen[0].content) == ("7", "[1, 2]")
    assert pairs[0].rejected[0].content == '{"a": 1}'
    table(tmp_path / "b.csv", [{"prompt": "a", "responses": '["x", "y"]', "scores": "[1, 2]"}])
    (pair,) = load_pairs(str(tmp_path / "b.csv")).pairs
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("y", "x")
    table(tmp_path / "c.csv", [{"prompt": "a", "completion": f"c{i}", "label": str(i == 1)} for i in range(2)])
    assert load_pairs(str(tmp_path / "c.csv")).pairs[0].chosen[0].content == "c1"
    for margin in ("high", "nan"):
        table(tmp_path / "a.csv", [row | {"margin": margin}])
        with pytest.raises(BadRowError, match="margin"):
            load_pairs(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,chosen,prompt\na,b,c\n", "column prompt occurs 2 times"),
        (b"prompt,,rejected\na,b,c\n", "without a name"),
        (b'prompt,chosen,rejected\na,"b,c\n', "line"),
        (b"prompt,chosen,rejected\na,b,\xff\n", "UTF-8"),
        (b"prompt,chosen,rejected\n", "contains no rows"),
        (b"", "contains no rows"),
        (b"question;answer\na;b\n", "question, answer"),
    ],
    ids=["twice", "nameless", "quote", "encoding", "header", "empty", "separator"],
)
def test_a_damaged_table_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(str(tmp_path / "a.csv"))
    assert str(tmp_path / "a.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


ASKED = '[{"role": "user", "content": "a"}]'


@pytest.mark.parametrize(
    "cells",
    [
        {"chosen": '[{"role": "assistant", "content": "b", "content": "c"}]'},
        {"chosen": "[{'role': 'assistant', 'content': 'b', \"content\": 'c'}]"},
        {"prompt": '{"role": "user", "content": "a", "role": "user"}'},
        {"chosen": '[{"role": "assistant", "content": "b", "tool_calls": [{"name": "x", "name": "y"}]}]'},
        {"chosen": '{"from": "gpt", "value": "b", "value": "c"}'},
    ],
    ids=["json", "python", "one turn", "nested", "sharegpt"],
)
def test_messages_in_a_cell_have_each_key_once(cells: dict[str, str], tmp_path: Path) -> None:
    """As in JSON files; only the last of two values would be read."""
    row = {"prompt": ASKED, "chosen": '[{"role": "assistant", "content": "c"}]', "rejected": "d"}
    table(tmp_path / "a.csv", [row, row | cells])
    with pytest.raises(BadRowError, match="twice") as caught:
        load_pairs(str(tmp_path / "a.csv"))
    assert (caught.value.row, caught.value.field) == (2, *cells)
    assert len(load_pairs(str(tmp_path / "a.csv"), options=ReadOptions(on_bad_row="skip")).pairs) == 1


def test_lists_in_a_cell_have_each_key_once(tmp_path: Path) -> None:
    responses = '[[{"role": "assistant", "content": "x", "content": "y"}], "z"]'
    table(tmp_path / "a.csv", [{"prompt": "a", "responses": responses, "scores": "[1, 2]"}])
    with pytest.raises(BadRowError, match="`responses` is ambiguous"):
        load_pairs(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"a": 1, "a": 2}]', "{{1}}", "{{}}", "{[]: 1}", "[{[1]}]"])
def test_texts_that_look_like_values_stay_texts(text: str, tmp_path: Path) -> None:
    table(tmp_path / "a.csv", [{"prompt": text, "chosen": text, "rejected": "other"}])
    (pair,) = load_pairs(str(tmp_path / "a.csv")).pairs
    assert (pair.prompt.turns[0].content, pair.chosen[0].content) == (text, text)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ","), ("a.csv.gz", ";")])
def test_the_first_line_shows_the_separator(name: str, separator: str, tmp_path: Path) -> None:
    """Spreadsheets write semicolons where numbers have a decimal comma; cells may contain the usual separator."""
    rows = [{"prompt": "a, b;\tc\n", "chosen": "1;2", "rejected": "3,4\t"}] * 2
    table(tmp_path / "table", rows, separator=separator)
    content = (tmp_path / "table").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [dict(row.fields) for row in read_rows(tmp_path / name)] == rows


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_a_column_that_a_table_has_twice_is_refused(name: str, tmp_path: Path) -> None:
    held = pyarrow.table([["a"], ["b"], ["c"], ["d"]], names=["prompt", "chosen", "rejected", "prompt"])
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(held, tmp_path / name)
    else:
        new = pyarrow.ipc.new_file if name.endswith("feather") else pyarrow.ipc.new_stream
        with new(str(tmp_path / name), held.schema) as file:
            file.write_table(held)
    with pytest.raises(UnreadableError, match="column prompt occurs 2 times"):
        load_pairs(str(tmp_path / name))


def test_decimals_of_a_table_are_numbers(tmp_path: Path) -> None:
    """Databases export fractions as decimals."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": Decimal("1.5"), "score_rejected": Decimal(2)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    loaded = load_pairs(str(tmp_path / "a.parquet"), options=DataOptions(score_margins=True))
    assert loaded.pairs[0].margin == -0.5
    assert loaded.reports[0].contradicted == 1


def test_a_row_with_other_cells_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\na,b,c\n\nd,e,f,g\nh,i\nj,k,l\n")
    with pytest.raises(BadRowError, match=r"row 2: .*line 4.*4 cells.*3 columns"):
        load_pairs(str(tmp_path / "a.csv"))
    loaded = load_pairs(str(tmp_path / "a.csv"), options=ReadOptions(on_bad_row="skip"))
    assert [pair.row for pair in loaded.pairs] == [1, 4]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.arrow", "a.feather", "a.parquet"])
@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"not what it says" * 4])
def test_damaged_files_are_named(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, STRINGS * 50)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(UnreadableError, match=name) as caught:
        load_pairs(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_saved_data_sets_have_splits(tmp_path: Path) -> None:
    held = datasets.DatasetDict(
        train=datasets.Dataset.from_list(STRINGS[:4]), test=datasets.Dataset.from_list(STRINGS[4:])
    )
    held.save_to_disk(str(tmp_path / "saved"))
    assert len(load_pairs(str(tmp_path / "saved")).pairs) == 4
    assert len(load_pairs(f"{tmp_path}/saved#test").pairs) == 2
    assert len(load_pairs(str(tmp_path / "saved"), split="test").pairs) == 2
    with pytest.raises(UnreadableError, match=r"no split 'validation'.*train, test"):
        load_pairs(str(tmp_path / "saved"), split="validation")
    (tmp_path / "saved/train/data-00000-of-00001.arrow").unlink()
    with pytest.raises(UnreadableError, match="data-00000-of-00001"):
        load_pairs(str(tmp_path / "saved"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six rows in three files."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for place in range(3):
        (folder / f"part-{place}.jsonl").write_bytes(json_lines(STRINGS[2 * place : 2 * place + 2]))
    return folder


def numbers(data: Any, **options: Any) -> list[int]:
    """Return the rows that were read, as the numbers in their questions."""
    pairs = load_pairs(data, options=DataOptions(**options)).pairs
    return [int(pair.prompt.turns[0].content.split(",")[0].split()[1]) for pair in pairs]


def test_folders_of_shards_and_patterns_are_read_in_order(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may list files in any order."""
    listed, found = Path.iterdir, glob.glob
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    monkeypatch.setattr(glob, "glob", lambda *names, **options: sorted(found(*names, **options), reverse=True))
    assert numbers(str(shards)) == list(range(6))
    assert numbers(f"{shards}/part-*.jsonl") == list(range(6))
    assert numbers(f"{shards}/part-[12].jsonl") == [2, 3, 4, 5]
    assert numbers(f"{shards.parent}/**/*.jsonl") == list(range(6))
    assert load_pairs(str(shards), split="test").reports[0].split == ""
    with pytest.raises(UnreadableError, match="matches"):
        load_pairs(f"{shards}/none-*.jsonl")
    with pytest.raises(UnreadableError, match="no file of the split 'test'"):
        load_pairs(f"{shards}#test")
    (shards / "more.csv").write_text("x")
    with pytest.raises(UnreadableError, match="several formats"):
        load_pairs(str(shards))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("[:2]", [0, 1]),
        ("[1:3]", [1, 2]),
        ("[4:]", [4, 5]),
        ("[:50%]", [0, 1, 2]),
        ("[50%:]", [3, 4, 5]),
        ("[-2:]", [4, 5]),
        ("[4:100000000000000000000]", [4, 5]),
        ("[:-4]", [0, 1]),
        ("[:100]", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_slices_are_of_rows(selection: str, expected: list[int], shards: Path) -> None:
    (shards / "a.jsonl").write_bytes(json_lines(STRINGS))
    for name in (f"{shards}/part-*.jsonl{selection}", f"{shards / 'a.jsonl'}{selection}"):
        loaded = load_pairs(name)
        assert numbers(name) == expected
        assert loaded.reports[0].name == name
        assert loaded.reports[0].rows == len(expected)
    assert [pair.row for pair in load_pairs(f"{shards / 'a.jsonl'}{selection}").pairs] == [row + 1 for row in expected]
    assert local_path(f"{shards / 'a.jsonl'}{selection}") == shards / "a.jsonl"


def test_shares_are_drawn_without_replacement_by_the_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "chosen": "a", "rejected": "b"} for i in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(rows))
    first = numbers(f"{path}*0.3")
    assert len(first) == len(set(first)) == 30
    assert first == sorted(first) == numbers(f"{path}*.3") != numbers(f"{path}*0.3", split_seed=1)
    assert len(numbers([f"{path}[:50]*0.1", f"{path}[50:]*0.2"])) == 5 + 10
    assert max(numbers(f"{path}[:50]*0.1")) < 50
    for share in ("0", "1.5", "2"):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            numbers(f"{path}*{share}")


def test_a_slice_without_rows_and_a_wrong_one(shards: Path) -> None:
    with pytest.raises(DataError, match="contains no rows"):
        load_pairs(f"{shards}[6:]")
    with pytest.raises(DataError, match="Unknown data set"):
        load_pairs("nothing[:2]")
    for wrong in ("[:x]", "[1:2:3]", "[:10%%]", "[:1_000]"):
        with pytest.raises(ConfigError, match=r"slice can't be read.*\[START:STOP\]"):
            load_pairs(f"{shards}/part-*.jsonl{wrong}")


def test_a_set_of_pairs_is_one_line_in_a_notebook(shards: Path) -> None:
    (shards / "a.jsonl").write_bytes(json_lines(STRINGS))
    assert repr(load_pairs(f"{shards / 'a.jsonl'}[:2]")) == f"PairSet(2 pairs of {shards / 'a.jsonl'}[:2])"


def test_an_existing_path_is_not_taken_apart(tmp_path: Path) -> None:
    for name in ("a[:2]", "a*0.5"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.jsonl").write_bytes(json_lines(STRINGS))
        assert len(load_pairs(str(folder)).pairs) == 6
        assert len(load_pairs(f"{folder}#train[:3]").pairs) == 3
        assert len(load_pairs(f"{folder}[:1]").pairs) == 1


def test_slices_of_the_world_and_of_named_sets_are_of_pairs(tmp_path: Path) -> None:
    assert len(load_pairs("world/helpful[:40]*0.25").pairs) == 10
    (report,) = load_pairs("world/helpful[10:30]").reports
    assert report.kept == 20
    rows = [
        {
            "prompt": f"q{i}",
            "response_0": "a",
            "response_1": "b",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
        }
        for i in range(100)
    ]
    (tmp_path / "train.jsonl").write_bytes(json_lines(rows))
    whole = load_pairs(f"beaver-safe@{tmp_path}").pairs
    found = load_pairs(f"beaver-safe@{tmp_path}[:10]")
    assert found.pairs == whole[:10]
    assert found.reports[0].dropped["not_selected"] == len(whole) - 10
    assert load_pairs(f"beaver-safe@{tmp_path}#train[:10]").pairs == whole[:10]


def test_a_hub_set_at_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: Any, **kwargs: Any) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(STRINGS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (report,) = load_pairs("hub:someone/set:config@1a2b3c#test[:2]").reports
    assert calls == [(("someone/set",), {"name": "config", "revision": "1a2b3c", "split": "test"})]
    assert report.kept == 2
    assert "1a2b3c" in report.read_from[0]


SWAP = """
def swap(row):
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def keep(row):
    return row
"""

KEYED = [
    {"data": "a.jsonl[:4]"},
    {"data": "a.jsonl*0.5"},
    {"data": "a.jsonl", "columns": "chosen: rejected, rejected: chosen"},
    {"data": "a.jsonl", "mapping": "mapping_of_rows.py:swap"},
    {"data": "a.jsonl", "mapping": "mapping_of_rows.py:keep"},
    {"data": "a.jsonl", "score_margins": True},
    {"data": "a.jsonl", "off_topic": 0.5},
]


def test_kept_tables_depend_on_what_changes_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is read once, and again only after its content has changed."""
    monkeypatch.setattr(encode, "_WORTH_KEEPING", 0)
    monkeypatch.chdir(tmp_path)
    rows = [row | {"score_chosen": 3, "score_rejected": 1} for row in STRINGS]
    Path("a.jsonl").write_bytes(json_lines(rows))
    Path("mapping_of_rows.py").write_text(SWAP)

    def load(data: str = "a.jsonl", **options: Any) -> Any:
        return load_tables(data, ConversationEncoder(tiny_tokenizer(), 256), DataOptions(**options))

    folders = [load(**options).folder for options in [{}, *KEYED]]
    assert len(set(folders)) == len(folders)
    assert [load(**options).folder for options in [{}, *KEYED]] == folders
    Path("mapping_of_rows.py").write_text(SWAP + "\n")
    assert load(**KEYED[3]).folder not in folders


def test_held_data_sets_are_kept_by_their_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_WORTH_KEEPING", 0)
    held = datasets.Dataset.from_list(STRINGS)

    def folder(data: Any) -> Path | None:
        return load_tables(data, ConversationEncoder(tiny_tokenizer(), 256), DataOptions()).folder

    assert folder(held) == folder(held) != folder(held.select(range(3)))
    assert len(load_tables(STRINGS, ConversationEncoder(tiny_tokenizer(), 256), DataOptions())) == 6


def test_a_table_that_pandas_wrote_with_its_index_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "a.csv"
    pandas.DataFrame(STRINGS).to_csv(path)
    pairs = load_pairs(str(path)).pairs
    path.with_suffix(".jsonl").write_bytes(json_lines(STRINGS))
    assert [pair.conversations for pair in pairs] == [
        pair.conversations for pair in load_pairs(str(path.with_suffix(".jsonl"))).pairs
    ]
