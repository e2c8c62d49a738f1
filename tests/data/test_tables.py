"""Tables of encoded pairs have the same token ids as single pairs, and are kept for later runs."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.data import DataOptions, PairTables, encode, encode_pairs, load_pairs, load_tables
from hafrm.encoding import ConversationEncoder, TokenGroup
from tests.tiny import pair, tables_of, tiny_tokenizer

PAIRS = [
    pair("Hi", "a", "b", row=1),
    pair("Bye", "a", "c", row=2),
    pair("Hi", "b", "c", row=3),
    pair("hi", "a", "b", row=4),
    pair("Hi", "a", "a", row=5),
]


def encoder() -> ConversationEncoder:
    return ConversationEncoder(tiny_tokenizer(), 64)


def one_by_one() -> list[TokenGroup]:
    return [encoder().encode(each.prompt, (each.chosen, each.rejected)) for each in PAIRS]


def test_equal_texts_are_one_row_and_every_pair_is_as_encoded_alone(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        tables = encode_pairs(PAIRS, encoder(), DataOptions(), folder=folder)
        assert tables[:] == one_by_one()
        assert tables.num_responses == 3 + 2 + 2  # a, b, c to Hi; a, c to Bye; a, b to hi
        assert len(set(tables.pairs["prompt"].tolist())) == 3
        assert tables.identical == 1
        assert tables.names([4, 0]) == ["test:5", "test:1"]
        assert tables.longest().tolist() == [max(group.lengths) for group in one_by_one()]
        assert len(tables.account.reports) == 0


def test_tables_of_many_rows_merge_equal_ones_in_any_place() -> None:
    """The table has more rows than fit into one of its pieces."""
    groups = [TokenGroup((1, 2 + place % 3), ((5, place % 7), (6,))) for place in range(9000)]
    tables = tables_of([pair("Hi", "a", "b", row=place + 1) for place in range(9000)], groups)
    assert tables[:] == groups
    assert tables.num_responses == 3 * (7 + 1)


def test_worker_processes_open_the_same_files(tmp_path: Path) -> None:
    tables = encode_pairs(PAIRS, encoder(), DataOptions(), folder=tmp_path)
    content = pickle.dumps(tables)
    assert len(content) < 500
    for copy in (pickle.loads(content), pickle.loads(pickle.dumps(encode_pairs(PAIRS, encoder(), DataOptions())))):
        assert copy[:] == tables[:]
        assert copy.names([1]) == tables.names([1])


def test_prompts_are_shared_by_their_text() -> None:
    ours = encode_pairs(PAIRS, encoder(), DataOptions())
    theirs = encode_pairs([pair("HI  ", "x", "y"), pair("New", "x", "y")], encoder(), DataOptions())
    assert ours.prompts_shared_with(theirs) == 1
    assert theirs.prompts_shared_with(encode_pairs([pair("New?", "x", "y")], encoder(), DataOptions())) == 0


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose tables are kept although it is small."""
    monkeypatch.setattr(encode, "_WORTH_KEEPING", 0)
    monkeypatch.setenv("HAFRM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pairs.jsonl"
    rows = [{**each.as_row(), "margin": 0.5 * place if place else None} for place, each in enumerate(PAIRS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{}\n")
    return path


def load(path: Path, said: list[str] | None = None, **options: object) -> PairTables:
    options = {"on_bad_row": "skip", "max_length": 64} | options
    return load_tables(str(path), encoder(), DataOptions(**options), say=(said if said is not None else []).append)


def no_reading(*_: object, **__: object) -> None:
    raise AssertionError("rows are read")


def test_a_second_run_reads_no_row_and_knows_as_much(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(file)
    monkeypatch.setattr("hafrm.data.loading.read_rows", no_reading)
    again = load(file)
    assert again[:] == first[:] == one_by_one()
    assert again.margins.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert math.isnan(again.pairs["margin"][0])
    report = again.account.reports[0]
    assert (report.rows, report.kept, report.skipped) == (6, 5, {"missing_field": 1})
    assert again.account == first.account
    monkeypatch.undo()


@pytest.mark.parametrize("change", ["content", "option", "tokenizer"])
def test_other_content_or_options_are_encoded_again(change: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(file)
    if change == "content":
        file.write_text(file.read_text().replace("Bye", "Ciao"))
    monkeypatch.setattr("hafrm.data.loading.read_rows", no_reading)
    with pytest.raises(AssertionError, match="rows are read"):
        if change == "tokenizer":
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template += " "
            load_tables(str(file), ConversationEncoder(tokenizer, 64), DataOptions(on_bad_row="skip"))
        else:
            load(file, **({"split_seed": 1} if change == "option" else {}))


def cut(folder: Path) -> None:
    tokens = folder / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda folder: (folder / "pairs.npy").unlink(),
        lambda folder: (folder / "prompts.npy").write_bytes(b"x"),
        lambda folder: (folder / "tables.json").write_text("{"),
        lambda folder: (folder / "tables.json").write_text("[]"),
    ],
    ids=["cut", "missing", "no table", "half an account", "no account"],
)
def test_damaged_tables_are_made_again(damage: Callable[[Path], object], file: Path) -> None:
    (folder,) = (path for path in [load(file).folder] if path is not None)
    damage(folder)
    said: list[str] = []
    assert load(file, said)[:] == one_by_one()
    assert len(said) == 1
    assert str(folder) in said[0]
    assert load(file, said)[:] == one_by_one()
    assert len(said) == 1


def test_a_killed_run_leaves_no_tables_that_count(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            load(file)
    assert load(file)[:] == one_by_one()


def test_a_run_without_a_cache_folder_works_and_says_so(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("HAFRM_CACHE", str(tmp_path / "occupied"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    said: list[str] = []
    tables = load(file, said)
    assert tables[:] == one_by_one()
    assert len(said) == 1
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del tables
    assert not list((tmp_path / "temporary").iterdir())


def test_sources_are_read_in_their_order_each_with_its_account(file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "More", "chosen": "x", "rejected": "y"}) + "\n")
    both = [str(tmp_path / "more.jsonl"), str(file)]
    for _ in range(2):
        tables = load_tables(both, encoder(), DataOptions(on_bad_row="skip"))
        loaded = load_pairs(both, options=DataOptions(on_bad_row="skip"))
        assert tables.names(range(len(tables))) == [each.id for each in loaded.pairs]
        assert [(report.name, report.kept) for report in tables.account.reports] == [(both[0], 1), (both[1], 5)]
        assert [report.sha256 for report in tables.account.reports] == [report.sha256 for report in loaded.reports]
