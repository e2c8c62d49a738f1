"""Parts hold every row of the input once, whatever the format, the sizes and the row groups."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.data import read_rows
from hafrm.errors import BadRowReason, ConfigError, UnreadableError
from hafrm.scale.plan import Part, find_input, plan_parts, read_part

LINE = st.sampled_from([b'{"a": 1}', b'{"a": "\xc3\xa9"}', b"", b"  ", b"{broken", b"5", b'{"a": [1, 2]}\r'])


def parts_and_rows(path: Path, size: int) -> tuple[list[tuple], list[tuple]]:
    """A file's rows by its parts, and as they are read at once."""
    found = find_input(path)
    rows = [row for part in plan_parts(found, size) for row in read_part(found.folder, part).rows]
    return [[(row.number, row.value, str(row.error)) for row in each] for each in (rows, read_rows(path))]


@given(lines=st.lists(LINE, max_size=12), size=st.integers(1, 5), ended=st.booleans(), bom=st.booleans())
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines_are_those_of_the_whole_file(suffix: str, lines: list[bytes], size: int, ended: bool, bom: bool) -> None:
    content = b"\xef\xbb\xbf" * bom + b"\n".join(lines) + b"\n" * ended
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"rows{suffix}"
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        by_parts, at_once = parts_and_rows(path, size)
    assert by_parts == at_once


@given(groups=st.lists(st.integers(1, 7), max_size=5), size=st.integers(1, 9))
def test_rows_of_parquet_are_those_of_the_whole_file(groups: list[int], size: int) -> None:
    """Parts begin and end inside row groups, and span several."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.parquet"
        schema = pyarrow.schema([("id", pyarrow.int32()), ("text", pyarrow.large_string())])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for start, count in enumerate(groups):
                rows = [{"id": 100 * start + i, "text": f"{start}.{i}"} for i in range(count)]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        by_parts, at_once = parts_and_rows(path, size)
        found = find_input(path)
        tables = [read_part(found.folder, part).table for part in plan_parts(found, size)]
    assert by_parts == at_once
    assert all(table is not None and table.schema == schema for table in tables)
    assert all(table.num_rows == size for table in tables[:-1])


def test_a_folder_is_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a.jsonl.gz", "b/1.jsonl", ".hidden/x.jsonl", "_SUCCESS", "b/.tmp.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b"{}\n") if name.endswith("gz") else b"{}\n{}\n")
    found = find_input(tmp_path)
    assert found.files == ["a.jsonl.gz", "b/1.jsonl", "b/2.jsonl"]
    assert found.left_out == ["README.md"]
    assert plan_parts(found, 1) == [
        Part(0, "a.jsonl.gz", 0, 1, 0),
        Part(1, "b/1.jsonl", 0, 1, 0),
        Part(2, "b/1.jsonl", 1, 1, 3),
        Part(3, "b/2.jsonl", 0, 1, 0),
        Part(4, "b/2.jsonl", 1, 1, 3),
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no"),
        (["a.csv"], "holds no"),
        (["a.json"], "one JSON value"),
        (["a.jsonl", "b.parquet"], "of their own"),
    ],
)
def test_what_is_no_input_is_refused(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=said):
        find_input(tmp_path)


def test_a_line_that_is_no_text_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": 2}\n')
    found = find_input(tmp_path)
    first, bad, last = read_part(found.folder, plan_parts(found, 9)[0]).rows
    assert (first.value, last.value) == ({"a": 1}, {"a": 2})
    assert bad.error is not None
    assert (bad.error.reason, bad.error.row) == (BadRowReason.INVALID_TEXT, 2)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_file_that_has_become_shorter_is_noticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    def write(count: int) -> None:
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.table({"a": list(range(count))}), path)
        else:
            path.write_text("{}\n" * count)

    write(5)
    found = find_input(path)
    _, last = plan_parts(found, 3)
    write(4)
    with pytest.raises(UnreadableError, match="has changed"):
        read_part(found.folder, last)


def test_a_damaged_file_is_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:-20])
    with pytest.raises(UnreadableError, match="damaged"):
        plan_parts(find_input(tmp_path), 10)
