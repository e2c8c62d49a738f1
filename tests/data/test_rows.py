"""Files of every format give the same rows; errors say what is wrong with damaged ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hafrm.data import read_rows
from hafrm.errors import BadRowReason, UnreadableError
from hafrm.rows import unique_keys

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "chosen": "b", "rejected": "ü\u2028x", "margin": 1.5, "group": None},
    {"prompt": "d", "chosen": "e", "rejected": "f", "margin": None, "group": "g"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "b.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    "c.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "d.json": lambda path: path.write_text(json.dumps(ROWS)),
    "e.json.gz": lambda path: path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())),
    "f.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_give_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    rows = list(read_rows(tmp_path / name))
    assert [row.value for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2]


def test_blank_lines_are_no_rows_but_are_counted_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n \t\n\n{"a": 2}')
    assert [(row.number, row.value) for row in read_rows(path)] == [(2, {"a": 1}), (5, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": 1', "Expecting ',' delimiter at character 8"),
        ("nonsense", "Expecting value at character 1"),
        ('{"a": 1}{"b": 2}', "Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}', "the key 'c' twice"),
    ],
    ids=["cut off", "no JSON", "two on a line", "deep", "huge number", "repeated key"],
)
def test_a_bad_line_is_a_row_with_an_error(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    good, bad, after = read_rows(path)
    assert (good.value, after.value, after.number) == ({"a": 1}, {"a": 2}, 3)
    assert bad.fault is not None
    assert bad.fault.reason == BadRowReason.INVALID_JSON
    assert problem in str(bad.fault)
    assert str(bad.fault).startswith(f"{path}, row 2: ")


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"line 2: not UTF-8 \(byte 7 is 0xff\)"),
    "UTF-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), "line 1: not UTF-8"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINES * 100)[:-20], "damaged"),
    "no gzip": ("a.jsonl.gz", LINES, "Not a gzipped file"),
    "no bytes of gzip": ("a.jsonl.gz", b"", "is empty"),
    "no bytes of zstd": ("a.csv.zst", b"", "is empty"),
    "gzip without its ending": ("a.csv", gzip.compress(LINES), r"Rename it to a\.csv\.gz"),
    "zstd without its ending": ("a.json", pyarrow.compress(LINES, "zstd", asbytes=True), r"Rename it to a\.json\.zst"),
    "corrupt gzip": ("a.json.gz", gzip.compress(b"[1, 2]")[:12] + b"\xff" * 40, "damaged"),
    "no parquet": ("a.parquet", LINES, "damaged"),
    "empty parquet": ("a.parquet", b"", "damaged"),
    "bad JSON": ("a.json", b'[{"a": 1},\n {"b"}]', "line 2, character 6"),
    "repeated key": ("a.json", b'[{"a": 1},\n {"a": 1, "a": 2}]', "the key 'a' twice in row 2"),
    "JSON lines in .json": ("a.json", LINES, "rename it to .jsonl"),
    "JSON object": ("a.json", b'{"train": []}', "of type dict, not an array"),
    "deep JSON": ("a.json", b"[" * 100_000, "nested too deeply"),
    "other suffix": ("a.xlsx", b"a,b", r"must end in .*\.jsonl"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named_errors(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=message) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)


def test_damaged_parquet_pages_are_named_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match="damaged"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.parquet", "b/a.csv.gz", "b/a"])
def test_a_missing_file_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"[Nn]o such file"):
        list(read_rows(tmp_path / name))


def test_a_forbidden_file_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UnreadableError, match=r"can't be opened \(Permission denied\)"):
        list(read_rows(tmp_path / "a.jsonl"))


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """A data set larger than memory must not be read as a whole."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b"\xff not reached")
    rows = read_rows(path)
    assert next(rows).value == ROWS[0]


def test_a_repeated_key_among_many_is_found_without_comparing_all() -> None:
    compared = 0

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = [Key(number) for number in range(2000)] + [Key(1999)]
    with pytest.raises(ValueError, match="'1999' twice"):
        unique_keys([(name, None) for name in names])
    assert compared < 10 * len(names)
