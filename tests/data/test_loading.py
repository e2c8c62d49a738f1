"""Data names, the account of every row, and error messages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hafrm.data import DataOptions, data_names, fingerprint, load_pairs, loading, local_path
from hafrm.errors import BadRowError, BadRowReason, ConfigError, DataError, UnknownDataError, UnreadableError
from hafrm.pairs import PreferencePair
from tests.tiny import pair, some_pairs

SKIP = DataOptions(on_bad_row="skip")
GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def write(path: Path, *rows: Any) -> str:
    """JSON lines; strings are written as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stand-in for the simulated world."""

    def world_pairs(name: str, split: str, *, size: int | None) -> list[PreferencePair]:
        return [pair(f"{name} {split} {i}", "yes", "no") for i in range(size or 3)]

    monkeypatch.setattr("hafrm.paper.world.source.WORLD_SETS", ("helpful", "arena"), raising=False)
    monkeypatch.setattr("hafrm.paper.world.source.world_pairs", world_pairs, raising=False)
    # A cache of its own, so that no stand-in outlives its test.
    monkeypatch.setattr(loading, "_drawn", loading._drawn.__wrapped__)


def test_a_file_is_read_whole_whatever_the_split(tmp_path: Path) -> None:
    pairs = some_pairs(5)
    path = write(tmp_path / "a.jsonl", *(p.as_row() for p in pairs))
    for split in ("train", "validation", "test", "anything"):
        loaded = load_pairs(path, split=split)
        assert loaded.pairs == pairs
    assert [p.id for p in loaded.pairs[:2]] == [f"{path}:1", f"{path}:2"]


def test_the_report_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, "", GOOD)
    (report,) = load_pairs(path).reports
    assert report.as_dict() == {
        "name": path,
        "kind": "file",
        "form": "TRL pairs with a prompt",
        "split": "",
        "read_from": [path],
        "rows": 2,
        "expanded": 0,
        "off_topic": 0,
        "kept": 2,
        "skipped": {},
        "dropped": {},
        "examples": {},
        "first_fault": "",
        "unread": [],
        "contradicted": 0,
        "first_contradicted": "",
        "sha256": fingerprint(load_pairs(path).pairs),
        "licence": "",
        "notes": [],
    }
    json.dumps(report.as_dict())


def test_several_names_are_put_one_after_the_other(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", GOOD)
    second = write(tmp_path / "b.jsonl", {**GOOD, "prompt": "other"}, GOOD)
    loaded = load_pairs([first, second, "world/arena"])
    assert [p.source for p in loaded.pairs[:3]] == [first, second, second]
    assert [report.kept for report in loaded.reports] == [1, 2, 3]


def test_no_name_at_all() -> None:
    with pytest.raises(ConfigError, match="No data given"):
        load_pairs([])


def test_fingerprints_are_of_the_pairs_in_order(tmp_path: Path) -> None:
    rows = [p.as_row() for p in some_pairs(3)]
    plain = load_pairs(write(tmp_path / "a.jsonl", *rows)).reports[0].sha256
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert load_pairs(str(tmp_path / "b.json")).reports[0].sha256 == plain
    with_a_bad_row = write(tmp_path / "c.jsonl", rows[0], "{", *rows[1:])
    assert load_pairs(with_a_bad_row, options=SKIP).reports[0].sha256 == plain
    changed = [
        rows[::-1],
        [*rows[:2], {**rows[2], "margin": 1.0}],
        [*rows[:2], {**rows[2], "chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}],
    ]
    prints = {load_pairs(write(tmp_path / "d.jsonl", *other)).reports[0].sha256 for other in changed}
    assert len(prints | {plain}) == 4


def test_bad_rows_stop_the_load_with_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "chosen": " "})
    with pytest.raises(BadRowError, match=r"a\.jsonl, row 2: `chosen` is empty"):
        load_pairs(path)


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    empty = {**GOOD, "chosen": ""}
    path = write(
        tmp_path / "a.jsonl", GOOD, empty, "{", empty, "[]", empty, empty, {"prompt": "a", "chosen": "b"}, GOOD
    )
    (report,) = load_pairs(path, options=SKIP).reports
    assert (report.rows, report.kept) == (9, 2)
    assert report.skipped == {"empty_response": 4, "invalid_json": 1, "wrong_type": 1, "missing_field": 1}
    assert report.examples["empty_response"] == [f"{path}:{row} `chosen`" for row in (2, 4, 6)]
    assert report.examples["invalid_json"] == [f"{path}:3"]


def test_a_mixed_file_says_both_schemas(tmp_path: Path) -> None:
    messages = {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"}
    path = write(tmp_path / "a.jsonl", "", "{", GOOD, messages)
    with pytest.raises(BadRowError) as caught:
        load_pairs(write(tmp_path / "b.jsonl", GOOD, messages))
    assert caught.value.reason == BadRowReason.MIXED_SCHEMA
    assert "row 2: the row has `prompt` string, `chosen` messages, `rejected` string," in str(caught.value)
    (report,) = load_pairs(path, options=SKIP).reports
    assert report.skipped == {"invalid_json": 1, "mixed_schema": 1}


def test_two_files_may_have_two_schemas(tmp_path: Path) -> None:
    implicit = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    first = write(tmp_path / "a.jsonl", GOOD)
    second = write(tmp_path / "b.jsonl", {"chosen": implicit, "rejected": implicit})
    assert len(load_pairs([first, second]).pairs) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "contains no rows"),
        (["", " "], "contains no rows"),
        (["{", "{", {}], r"none of its 3 rows .*2 invalid_json, 1 miss"),
    ],
    ids=["empty", "blank", "all bad"],
)
def test_a_source_without_a_pair_is_an_error(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_pairs(write(tmp_path / "a.jsonl", *rows), options=SKIP)


def test_folders_have_a_file_or_parts_for_each_split(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", GOOD)
    write(tmp_path / "train-00001-of-00002.jsonl", {**GOOD, "prompt": "x"}, GOOD)
    (tmp_path / "test.json.gz").write_bytes(gzip.compress(json.dumps([GOOD]).encode()))
    write(tmp_path / "training-notes.txt", "no data")
    train = load_pairs(str(tmp_path))
    assert [p.prompt.turns[0].content for p in train.pairs] == ["a", "x", "a"]
    assert train.reports[0].kind == "folder"
    assert len(train.reports[0].read_from) == 2
    assert (train.reports[0].rows, train.reports[0].kept) == (3, 3)
    assert len(load_pairs(str(tmp_path), split="test").pairs) == 1
    with pytest.raises(UnreadableError, match=r"no file of the split 'validation'.*test\.json\.gz, train-0"):
        load_pairs(str(tmp_path), split="validation")


@pytest.mark.parametrize("part", ["train-0", "train-00000-of-00001", "train-00000-of-00001-0123456789abcdef"])
def test_only_parts_belong_to_a_split(tmp_path: Path, part: str) -> None:
    """An old version or a subset next to the file is not part of it, nor of any split except the one it names."""
    for name in (part, "train-old", "train-0-old", "train-small-0", "train_sft"):
        write(tmp_path / f"{name}.jsonl", {**GOOD, "prompt": name})
    assert [pair.prompt.turns[0].content for pair in load_pairs(str(tmp_path)).pairs] == [part]
    assert [pair.prompt.turns[0].content for pair in load_pairs(f"{tmp_path}#train-old").pairs] == ["train-old"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("train.jsonl", "train.json"), ("train-0.jsonl", "train-0.json"), ("train-00000-of-00001.json", "train.jsonl")],
)
def test_rows_that_would_be_read_twice_are_an_error(tmp_path: Path, one: str, other: str) -> None:
    write(tmp_path / one, [GOOD] if one.endswith(".json") else GOOD)
    write(tmp_path / other, [GOOD] if other.endswith(".json") else GOOD)
    write(tmp_path / "test.jsonl", GOOD)
    with pytest.raises(ConfigError, match=r"would both be read.*Remove or rename") as caught:
        load_pairs(str(tmp_path))
    assert one in str(caught.value)
    assert other in str(caught.value)
    assert len(load_pairs(str(tmp_path), split="test").pairs) == 1


def test_bad_rows_of_a_folders_parts_add_up(tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", GOOD, "{")
    write(tmp_path / "train-1.jsonl", "{", GOOD, "{")
    (report,) = load_pairs(str(tmp_path), options=SKIP).reports
    assert (report.rows, report.kept, report.skipped) == (5, 2, {"invalid_json": 3})


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="contains no data file"):
        load_pairs(str(tmp_path))


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs-train.jsonl", GOOD)
    with pytest.raises(UnreadableError, match="no such file") as caught:
        load_pairs(str(tmp_path / "pairs-trian.jsonl"))
    assert path in str(caught.value)


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"can't be opened|Unknown data set"):
        load_pairs(str(tmp_path / ("x" * 5000)))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("hh-harmles", "hh-harmless"), ("chatbotarena", "chatbot-arena"), ("world/helpfull", "world/helpful")],
)
def test_unknown_names_say_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownDataError, match=f"Did you mean .*{nearest}") as caught:
        load_pairs(name)
    assert "hafrm data list" in str(caught.value)


def test_a_name_like_no_other_is_still_explained() -> None:
    with pytest.raises(UnknownDataError) as caught:
        load_pairs("zzzzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_the_world_is_data_like_any_other() -> None:
    loaded = load_pairs("world/arena", split="test")
    assert [p.prompt.turns[0].content for p in loaded.pairs] == [f"arena test {i}" for i in range(3)]
    assert (loaded.reports[0].kind, loaded.reports[0].rows, loaded.reports[0].kept) == ("world", 3, 3)
    with pytest.raises(ConfigError, match="no split 'dev'"):
        load_pairs("world/arena", split="dev")
    assert {"hh-harmless", "world/helpful"} <= set(data_names())


def test_a_part_of_a_world_set() -> None:
    assert len(load_pairs("world/helpful[:2]").pairs) == 2
    with pytest.raises(DataError, match="3 not_selected"):
        load_pairs("world/helpful[:0]")


class Hub:
    """Stands in for `datasets.load_dataset`: records its calls, and returns rows or fails."""

    def __init__(self, rows: list[dict[str, Any]] | Exception) -> None:
        self.rows, self.calls = rows, []

    def __call__(self, *args: Any, **kwargs: Any) -> datasets.Dataset:
        self.calls.append((args, kwargs))
        if isinstance(self.rows, Exception):
            raise self.rows
        return datasets.Dataset.from_list(self.rows)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hub:someone/some-set", {}),
        ("someone/some-set", {}),
        ("hub:someone/some-set:clean", {"name": "clean"}),
        ("someone/some-set:clean", {"name": "clean"}),
    ],
)
def test_hub_names(monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict[str, str]) -> None:
    hub = Hub([GOOD, {**GOOD, "prompt": None}])
    monkeypatch.setattr("datasets.load_dataset", hub)
    loaded = load_pairs(name, split="dev", options=SKIP)
    assert hub.calls == [(("someone/some-set",), {"split": "dev", **arguments})]
    assert [p.id for p in loaded.pairs] == [f"{name}/dev:1"]
    assert loaded.reports[0].skipped == {"missing_field": 1}


def test_a_hub_failure_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", Hub(ConnectionError("Couldn't reach the Hub\nlong story")))
    with pytest.raises(UnreadableError) as caught:
        load_pairs("someone/some-set:clean")
    message = str(caught.value)
    assert "load_dataset('someone/some-set', name='clean', split='train') failed: Couldn't reach the Hub." in message
    assert "no file or folder someone/some-set:clean" in message
    assert "give the file's path" in message
    assert "long story" not in message


def test_a_malformed_hub_name() -> None:
    with pytest.raises(UnknownDataError, match="hub:OWNER/NAME"):
        load_pairs("hub:nothing")


def test_a_name_can_carry_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub([GOOD])
    monkeypatch.setattr("datasets.load_dataset", hub)
    names = ["hub:someone/some-set#test_prefs", "someone/some-set:clean#test_prefs", "hh-harmless#test"]
    for name in names[:2]:
        (report,) = load_pairs(name, split="train").reports
        assert (report.name, report.split) == (name, "test_prefs")
    assert [call[1]["split"] for call in hub.calls] == ["test_prefs", "test_prefs"]
    write(tmp_path / "train.jsonl", GOOD, GOOD)
    write(tmp_path / "test.jsonl", GOOD)
    assert len(load_pairs([f"{tmp_path}#test", str(tmp_path)]).pairs) == 3
    assert load_pairs("world/arena[:2]#test").pairs[1].prompt.turns[0].content == "arena test 1"
    with pytest.raises(ConfigError, match="world/arena has no split 'dev'"):
        load_pairs("world/arena#dev")


def test_a_named_set_and_its_copy_can_carry_their_split(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"\n\nHuman: {q}\n\nAssistant: yes", "rejected": f"\n\nHuman: {q}\n\nAssistant: no"} for q in "abc"
    ]
    write(tmp_path / "test.jsonl", *rows)
    loaded = load_pairs(f"hh-harmless@{tmp_path}#test", split="train")
    assert len(loaded.pairs) == 3
    assert loaded.reports[0].name == f"hh-harmless@{tmp_path}#test"
    with pytest.raises(ConfigError, match="no split 'dev'"):
        load_pairs(f"hh-harmless@{tmp_path}#dev")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/a.jsonl#test", "read whole and has no splits. Leave out #test"),
        ("{folder}#", "split's name is missing"),
        ("{folder}#dev", "no file of the split 'dev'.*#SPLIT"),
        ("{folder}/b#1.jsonl", "no such file"),
        ("hub:nothing#test", "hub:OWNER/NAME"),
        ("zzzzzzzz#test", "Unknown data set 'zzzzzzzz'"),
    ],
)
def test_splits_that_can_not_be(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises((ConfigError, DataError), match=message):
        load_pairs(name.format(folder=tmp_path))


def test_paths_may_hold_the_mark(tmp_path: Path) -> None:
    folder = tmp_path / "C#x"
    folder.mkdir()
    path = write(folder / "train.jsonl", GOOD)
    write(folder / "test.jsonl", GOOD, GOOD)
    assert len(load_pairs(path).pairs) == len(load_pairs(str(folder)).pairs) == 1
    assert len(load_pairs(f"{folder}#test").pairs) == 2


def test_a_hub_failure_tells_of_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", Hub(ValueError('Unknown split "validation". Should be one of ...')))
    with pytest.raises(UnreadableError, match=r"no split 'validation'.*hub:a/b#SPLIT"):
        load_pairs("hub:a/b", split="validation")


def test_the_paths_that_names_read(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", GOOD)
    for name in (path, f"{path}#test", f"hh-harmless@{path}", f"hh-harmless@{path}#test"):
        assert local_path(name) == Path(path)
    for name in ("world/arena", "hub:a/b", "a/b#test", "hh-harmless", "hh-harmless#test", f"{path}.gz"):
        assert local_path(name) is None
