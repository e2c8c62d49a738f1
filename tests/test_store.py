"""Output folders: one writer, growing files that survive kills, and changes since results were written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hafrm.errors import ConfigError, DataError
from hafrm.store import LineFile, RunFolder, alone, changed_names, changed_values, read_json


def other_process(folder: Path, beside: bool) -> str:
    code = (
        f"from pathlib import Path; from hafrm.store import alone\nwith alone(Path({str(folder)!r}), beside={beside}):"
        " print('in')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("beside", [False, True])
def test_two_commands_never_write_into_one_folder(beside: bool, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with alone(folder, beside=beside):
        assert str(folder) in other_process(folder, beside)
        assert "ConfigError" in other_process(folder, beside)
    assert other_process(folder, beside) == "in"


@pytest.mark.parametrize("beside", [False, True])
def test_no_lock_remains_nor_a_folder_in_which_nothing_was_written(beside: bool, tmp_path: Path) -> None:
    with alone(tmp_path / "new" / "out", beside=beside):
        pass
    with alone(tmp_path / "new" / "out", beside=True), alone(tmp_path / "new" / "out", beside=True):
        (tmp_path / "new" / "out").mkdir()  # before loading a model, which failed
    assert not list(tmp_path.iterdir())
    mine = tmp_path / "mine"
    mine.mkdir()
    with alone(mine, beside=beside):
        pass
    (mine / "file").write_text("")
    with alone(mine, beside=beside):
        pass
    assert [path.name for path in (*tmp_path.iterdir(), *mine.iterdir())] == ["mine", "file"]


def test_a_lock_that_was_removed_is_not_held_by_two_commands(tmp_path: Path) -> None:
    """Each holder counts up and down alone; the folder is made and removed again and again."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = (
        "from pathlib import Path; from hafrm.store import alone\n"
        f"folder, counter = Path({str(tmp_path / 'out')!r}), Path({str(counter)!r})\n"
        "for _ in range(200):\n"
        "    with alone(folder, wait=True):\n"
        "        counter.write_text(str(int(counter.read_text()) + 1))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [each.wait(timeout=120) for each in running] == [0, 0, 0]
    assert counter.read_text() == "600"


def test_a_lock_beside_its_folder_can_be_taken_again_by_its_owner(tmp_path: Path) -> None:
    with alone(tmp_path / "out", beside=True), alone(tmp_path / "out", beside=True, wait=True):
        assert "ConfigError" in other_process(tmp_path / "out", True)


@pytest.mark.parametrize("spelling", ["link", "out/../out"])
def test_every_spelling_of_a_path_leads_to_one_lock(spelling: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with alone(tmp_path / "out", beside=True):
        assert "Another command" in other_process(tmp_path / spelling, True)
        assert not list((tmp_path / "out").iterdir())  # the command may replace the folder


def test_a_place_that_cant_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for beside in (False, True):
        with pytest.raises(ConfigError, match="file"), alone(tmp_path / "file" / "out", beside=beside):
            pass


def test_changed_names_and_values() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": 0}
    now = {"a": 1, "b": {"c": (1, 2), "d": 3}, "new": None}
    assert sorted(changed_names(before, now)) == ["b", "gone", "new"]
    assert changed_names(before, before) == []
    assert changed_values(before, {**before, "b": {"c": [1, 2], "d": 3}}) == "b.d (was None, now 3)"
    assert changed_values(before, {**before, "a": 2, "gone": 5}, free=lambda name: name == "gone") == "a (was 1, now 2)"
    assert changed_values(dict.fromkeys("abcdefg", 1), {}).count("was") == 5
    assert changed_values({"a": {"b": 1}}, {"a": {}}) == "a.b (was 1, now None)"


@pytest.mark.parametrize(("before", "after"), [(b"1\n2\n3", [1, 2]), (b"1\n\n2\n", [1, 2]), (b"1", []), (b"", [])])
def test_a_killed_writers_half_line_is_dropped(tmp_path: Path, before: bytes, after: list[int]) -> None:
    lines = LineFile(tmp_path / "lines.jsonl")
    assert lines.empty
    assert lines.read(int) == []
    lines.path.write_bytes(before)
    assert lines.read(int) == after
    lines.extend([{"row": 1}], at_once=True)
    lines.extend({"row": number} for number in (2, 3))
    lines.drop_half_line()
    written = [json.loads(line) for line in lines.path.read_text().splitlines() if line]
    assert written == [*after, {"row": 1}, {"row": 2}, {"row": 3}]
    lines.replace([{"row": 9}])
    assert lines.read(lambda row: row["row"]) == [9]


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    lines = LineFile(tmp_path / "lines.jsonl")
    lines.path.write_text('{"row": 1}\n{"row"\n')
    with pytest.raises(DataError, match=r"lines.jsonl, line 2"):
        lines.read(dict)
    lines.path.write_text('{"row": 1}\n{"other": 1}\n')
    with pytest.raises(DataError, match=r"line 2.*row"):
        lines.read(lambda row: row["row"])


def test_results_are_reused_only_if_nothing_changed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "header.json", "verdicts")
    with pytest.raises(DataError, match=r"header\.json"):
        folder.require_same({"data": "x"})
    assert folder.write_header({"data": "x", "size": (1, 2)}, status="running") == read_json(
        tmp_path / "header.json"
    ) | {"depends_on": {"data": "x", "size": (1, 2)}}
    folder.require_same({"data": "x", "size": [1, 2]})
    with pytest.raises(ConfigError, match=r"verdicts .*data, size\."):
        folder.require_same({"data": "y"})
    for damage in ("{", "[]", '{"depends_on": 1}'):
        (tmp_path / "header.json").write_text(damage)
        with pytest.raises(DataError, match=r"header\.json"):
            folder.require_same({"data": "x", "size": [1, 2]})
