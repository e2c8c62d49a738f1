"""Files are written completely or not at all."""

from __future__ import annotations

import json
import math
import os
import stat
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hafrm import atomic


def test_text_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    atomic.write_text(path, "ä\n")
    assert path.read_text(encoding="utf-8") == "ä\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_and_folders_have_the_modes_that_the_umask_allows(mask: int, tmp_path: Path) -> None:
    """Some writers make files that only their owner can read."""
    before = os.umask(mask)
    try:
        atomic.write_text(tmp_path / "file.txt", "x")
        with atomic.new_folder(tmp_path / "folder") as folder, atomic.new_files(tmp_path / "others", last="") as files:
            for place in (folder, files):
                (place / "file.txt").write_text("x")
                (place / "file.txt").chmod(0o600)
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
        if path.name != "others"
    }
    assert modes == {
        "file.txt": 0o666 & ~mask,
        "folder": 0o777 & ~mask,
        "folder/file.txt": 0o666 & ~mask,
        "others/file.txt": 0o666 & ~mask,
    }


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), atomic.new_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def strict(content: str | bytes) -> Any:
    """Parse standard JSON, which has neither NaN nor infinity."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(content, parse_constant=refuse)


ODD = {"a": math.nan, "b": [1.5, (-math.inf, {"c": np.float64("inf")})], "d": True, "e": "NaN", "f": 10**400}


def test_json_has_nulls_where_numbers_are_not_finite(tmp_path: Path) -> None:
    """Non-finite numbers become null in files, lines and pages; all else is unchanged."""
    plain = {"a": None, "b": [1.5, [None, {"c": None}]], "d": True, "e": "NaN", "f": 10**400}
    atomic.write_json(tmp_path / "x.json", ODD)
    assert strict((tmp_path / "x.json").read_text()) == plain
    assert strict(atomic.json_line(ODD)) == plain
    assert strict(atomic.json_line(ODD | {"g": "\udcef", "day": date(2026, 1, 2)}))["g"] == "\udcef"
    assert strict(atomic.json_text(ODD, indent=1)) == plain
    assert math.isnan(ODD["a"])
    assert atomic.has_non_finite(ODD)
    assert not atomic.has_non_finite(plain)
    deep = json.loads("[" * 900 + "NaN" + "]" * 900)  # nearly as deep as JSON can be read
    assert atomic.json_line({"x": deep}).count(b"null") == 1
    assert atomic.has_non_finite(deep)


def test_circles_are_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        atomic.write_json(tmp_path / "x.json", circle)
    assert not list(tmp_path.iterdir())


def test_folders_appear_whole_and_replace_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for text in ("one", "two"):
        with atomic.new_folder(folder) as temporary:
            (temporary / "file").write_text(text)
        assert (folder / "file").read_text() == text
    with pytest.raises(RuntimeError), atomic.new_folder(folder) as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert (folder / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_can_not_be_put_in_place_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, replace = tmp_path / "run", Path.replace
    place.mkdir()
    (place / "old.txt").write_text("before")

    def refuse(self: Path, target: Path) -> Path:
        if target == place and self.name != place.name:  # not the old folder, which is put back
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), atomic.new_folder(place) as folder:
        (folder / "new.txt").write_text("after")
    assert [each.name for each in place.iterdir()] == ["old.txt"]
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFRM_CACHE", "/somewhere")
    assert atomic.cache_folder("x") == Path("/somewhere/x")
    monkeypatch.delenv("HAFRM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert atomic.cache_folder("x") == Path("/cache/hafrm/x")


def test_lines_hold_what_json_has_no_form_for() -> None:
    assert (
        atomic.json_line({"day": date(2026, 1, 2), "text": "\u00e4\n"})
        == '{"day": "2026-01-02", "text": "\u00e4\\n"}\n'.encode()
    )
    assert atomic.json_line({"name": "\udcef"}) == b'{"name": "\\udcef"}\n'


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_what_a_killed_writer_left_goes(folder: bool, tmp_path: Path) -> None:
    """Files that another process is still writing, or with merely similar names, are kept."""
    path = tmp_path / "out"
    new = atomic.new_folder if folder else atomic.new_file
    (tmp_path / ".out.swp").write_text("an editor's")
    with new(path):
        alive = {each.name for each in tmp_path.glob(".out.hafrm-*")}
        for leftover in (".out.hafrm-deadbeef", ".other.hafrm-deadbeef", ".out.hafrm-my-notes", ".out.hafrm-ideas"):
            (tmp_path / leftover).mkdir() if folder else (tmp_path / leftover).write_text("half")
        kept = {".out.swp", ".other.hafrm-deadbeef", ".out.hafrm-my-notes", ".out.hafrm-ideas"}
        with new(path):
            names = {each.name for each in tmp_path.iterdir()}
            assert ".out.hafrm-deadbeef" not in names
            assert {*kept, *alive} < names
    assert {each.name for each in tmp_path.iterdir()} == {"out", *kept}


def test_new_files_come_whole_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are moved one by one, the one that marks them as complete last."""
    folder, order = tmp_path / "run", []
    folder.mkdir()
    (folder / "kept").write_text("kept")
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: order.append(to.name) or replace(self, to))
    with atomic.new_files(folder, last="b") as temporary:
        for name in ("b", "a", "c"):
            (temporary / name).write_text(name)
        (temporary / "deep").mkdir()
        (temporary / "deep" / "d").write_text("d")
        assert not (folder / "a").exists()
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order[-1] == "b"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "deep", "kept"]
    with pytest.raises(RuntimeError), atomic.new_files(folder, last="b") as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (folder / "a").read_text() == "a"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "deep", "kept"]
