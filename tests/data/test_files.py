"""Only regular files are read, huge rows are bounded, and bytes after complete gzip data lose no row."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.data import arrays, files, read_rows, rowfiles
from hafrm.errors import UnreadableError

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}
LINES = "".join(json.dumps(ROW | {"prompt": f"p{i}"}) + "\n" for i in range(1000)).encode()


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "pipe"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "empty device": (lambda path: path.symlink_to("/dev/null"), "device"),
    "socket": (bind, "socket"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "link to nowhere"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "folder": (Path.mkdir, "directory"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ""])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused_at_once(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line with the name; a test that blocks here would wait forever."""
    monkeypatch.chdir(tmp_path)  # a socket's path may only be short
    path = tmp_path / f"rows{suffix}"
    make, said = SPECIAL[kind]
    make(path)
    if kind == "folder" and not suffix:
        said = "must end in"
    with pytest.raises(UnreadableError, match=said) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
@pytest.mark.parametrize(
    "command",
    [
        ["data", "check", "{}"],
        ["data", "show", "{}"],
        ["score", "m", "--data", "{}", "--out", "o"],
        ["judge", "{}", "--judge.kind", "oracle", "--judge.model", "helpful", "--out", "o"],
        ["judge", "{}", "--mode", "rank", "--judge.kind", "oracle", "--judge.model", "helpful", "--out", "o"],
        ["pretrain", "--data", "{}", "--out", "o"],
    ],
    ids=lambda command: f"{command[0]} {command[1] if command[0] == 'data' else ''}{'--mode' in command}",
)
@pytest.mark.slow
def test_no_command_waits_for_a_pipe(command: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    words = [word.format("rows.jsonl") for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "hafrm", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_pipe_among_a_folders_parts_is_refused(tmp_path: Path) -> None:
    from hafrm.data import load_pairs

    (tmp_path / "train-00000-of-00002.jsonl").write_bytes(LINES)
    os.mkfifo(tmp_path / "train-00001-of-00002.jsonl")
    with pytest.raises(UnreadableError, match=r"00001-of-00002\.jsonl: is a pipe"):
        load_pairs(str(tmp_path))


@pytest.mark.parametrize("rest", [b"x", b"\n", b"trailing", b"\x00" * 7 + b"x", b"\x1e\x8b" * 100], ids=repr)
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz"])
def test_bytes_behind_gzip_data_lose_no_row(
    suffix: str, rest: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning appears once, however often the file is read."""
    content = LINES if suffix == ".jsonl.gz" else b"[" + b",".join(LINES.splitlines()) + b"]"
    half = content.index(b"\n" if suffix == ".jsonl.gz" else b",", len(content) // 2) + 1
    whole = gzip.compress(content[:half]) + gzip.compress(content[half:])
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(whole + rest)
    with caplog.at_level(logging.WARNING):
        values = [[row.value for row in read_rows(path)] for _ in range(2)]
    assert values == [[json.loads(line) for line in LINES.splitlines()]] * 2
    (record,) = caplog.records
    assert str(path) in record.getMessage()


def test_padding_of_zeros_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES) + bytes(512))
    assert len(list(read_rows(tmp_path / "rows.jsonl.gz"))) == 1000
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(LINES)[:-9],
        gzip.compress(LINES)[:-8] + b"\x00" * 8,
        gzip.compress(LINES) + gzip.compress(LINES)[:40],
        gzip.compress(LINES) + b"\x1f\x8b\x00",
        b"\x1f",
        b"",
    ],
    ids=["cut", "checksum", "second cut", "second broken", "one byte", "empty"],
)
def test_damage_within_gzip_data_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=r"damaged|is empty"):
        list(read_rows(path))


def peak(read: Callable[[], Any]) -> int:
    """Return the peak memory of a call, in bytes."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MIB = 2**20
BOMBS = {
    "a line": ("a.jsonl.gz", b'{"a": "' + b"x" * 48 * MIB, "line 1"),
    "the second line": ("a.jsonl.gz", b"{}\n" + b"[" * 48 * MIB, "line 2"),
    "a row": ("a.json.gz", b'[{}, {"a": "' + b"x" * 48 * MIB, "row 2"),
    "an object": ("a.json", b'{"a": "' + b"x" * 48 * MIB, "row 1"),
    "the names of columns": ("a.csv.gz", b"x" * 48 * MIB, "line 1"),
    "a row of a table": ("a.tsv.gz", b"a\tb\n1\t2\n" + b"x" * 48 * MIB, "line 3"),
    "a row in many lines": ("a.csv.gz", b"a,b\n" + b'"\n",' * 12 * MIB, "line"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_huge_row_is_not_held(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the limit, here 2 MiB, and memory hardly exceeds it."""
    file, content, where = BOMBS[name]
    for module in (files, arrays, rowfiles):
        monkeypatch.setattr(module, "LONGEST_ROW", 2 * MIB)
    path = tmp_path / file
    path.write_bytes(gzip.compress(content, 1) if file.endswith(".gz") else content)

    def read() -> None:
        with pytest.raises(UnreadableError, match=rf"{where}\b.*2 MiB") as caught:
            list(read_rows(path))
        assert str(path) in str(caught.value)

    assert peak(read) < 16 * MIB


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.json"])
def test_a_large_file_of_small_rows_is_streamed(name: str, tmp_path: Path) -> None:
    row = json.dumps(ROW | {"prompt": "x" * 4000}).encode()
    count = 48 * MIB // len(row)
    content = row.join([b"[", b"]"]) if not count else b"\n".join([row] * count)
    if ".json." in name or name.endswith(".json"):
        content = b"[" + b",\n".join([row] * count) + b"]" + b" " * MIB
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)

    def read() -> None:
        assert sum(1 for _ in read_rows(path)) == count

    assert peak(read) < 12 * MIB


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(rows=st.lists(JSON), indent=st.none() | st.integers(0, 3), ascii=st.booleans(), size=st.integers(1, 40))
def test_an_array_reads_as_json_reads_it(
    rows: list[Any], indent: int | None, ascii: bool, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The rows are the same wherever the pieces that are read end."""
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_bytes(json.dumps(rows, indent=indent, ensure_ascii=ascii).encode(errors="replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_PIECE", size)
        assert [row.value for row in read_rows(path)] == json.loads(path.read_bytes())


@given(text=st.text(alphabet='[]{}",:01eE+-.tru nul\n\\', max_size=30), size=st.integers(1, 40))
def test_what_is_no_array_is_refused_where_json_refuses_it(
    text: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The reported place is that of the json module, unless the text ends there."""
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(f"[{text}", newline="")
    try:
        expected = json.loads(f"[{text}")
    except ValueError as error:
        expected = error
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_PIECE", size)
        try:
            found: Any = [row.value for row in read_rows(path)]
        except UnreadableError as error:
            found = error
    if isinstance(expected, ValueError):
        assert isinstance(found, UnreadableError)
        assert isinstance(expected, json.JSONDecodeError)
        assert f"character {expected.colno}" in str(found)
    else:
        assert found == expected
