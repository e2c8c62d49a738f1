"""`hafrm data`: what it prints, and the exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main
from hafrm.data import NAMED_SOURCES, loading
from tests.sources import harmless
from tests.tiny import pair, tiny_tokenizer

SPLITS = ("train", "test", "validation")

ROWS = [
    {
        "prompt": f"question {i}",
        "chosen": "yes it is" if i % 2 else "yes",
        "rejected": "no it is" if not i % 2 else "no",
    }
    for i in range(6)
]


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small stand-in for the simulated world, and a terminal wide enough to print cells whole."""
    monkeypatch.setattr("hafrm.paper.world.source.WORLD_SETS", ("helpful", "arena"), raising=False)
    monkeypatch.setattr(
        "hafrm.paper.world.source.world_pairs", lambda name, split, size: [pair("w", "yes", "no")], raising=False
    )
    monkeypatch.setenv("COLUMNS", "300")
    loading._drawn.cache_clear()  # sets are drawn once per process
    yield
    loading._drawn.cache_clear()


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def clean(tmp_path: Path) -> str:
    return write(tmp_path / "clean.jsonl", *ROWS)


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    return write(tmp_path / "faulty.jsonl", *ROWS, "{", ROWS[0], {"prompt": "a", "chosen": "x", "rejected": " X"})


def test_list_names_every_set_with_licence_and_citation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for source in NAMED_SOURCES.values():
        assert source.name in printed
        assert source.licence in printed
        assert source.homepage in printed
    assert "world/helpful" in printed
    assert "world/arena" in printed


def test_show_prints_statistics_and_pairs(clean: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", clean, "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "6 rows read, 6 kept" in printed
    assert "4.0" in printed  # words of a QA: 2 of the prompt, 1 or 3 of a response
    assert "50.0%" in printed
    assert "tokens are not counted" in printed
    assert f"{clean}:2" in printed
    assert f"{clean}:3" not in printed
    assert "user: question 1" in printed
    assert "chosen: assistant: yes it is" in printed
    assert "rejected: assistant: no" in printed


def test_show_prints_text_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a text are not treated as markup."""
    path = write(tmp_path / "a.jsonl", {"prompt": "[bold]a[/nothing]", "chosen": "[red]b", "rejected": "[/]c"})
    assert main(["data", "show", path]) == 0
    printed = capsys.readouterr().out
    assert "user: [bold]a[/nothing]" in printed
    assert "rejected: assistant: [/]c" in printed


def test_show_takes_several_names_and_a_split(clean: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", clean, "world/arena", "--split", "test", "--rows", "0"]) == 0
    printed = capsys.readouterr().out
    assert "6 rows read" in printed
    assert "1 rows read, 1 kept, of hafrm.world" in printed
    assert "question" not in printed


def test_show_counts_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt of one word, with responses of three words and one: three words per prompt and response."""
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "one two three", "rejected": "one"})
    assert main(["data", "show", path]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "100.0%" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["1", "1", "3.0", "3.0", "1.0", "100.0%"]


def test_show_of_no_rows(clean: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", clean, "--rows", "-1"]) == 0
    assert "question" not in capsys.readouterr().out


@pytest.mark.parametrize(("count", "more"), [(4, False), (5, True)])
def test_show_names_some_files_and_the_columns_that_it_does_not_read(
    count: int, more: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / f"{i}.jsonl", {**ROWS[i], "colour": "red"}) for i in range(count)]
    assert main(["data", "show", str(tmp_path), "--rows", "0"]) == 0
    printed = capsys.readouterr().out
    assert [file in printed for file in files] == [True, True, True, True, False][:count]
    assert ("and more" in printed) == more
    assert "columns not read: colour" in printed


def test_show_prints_the_licence_and_the_left_out_rows_of_a_named_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three rows one is broken, and another is dropped by the set's rule."""
    assert main(["data", "show", harmless(tmp_path), "--split", "test", "--data_options.on_bad_row", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "3 rows read, 1 kept" in printed
    assert "1 bad rows skipped: invalid_json" in printed
    assert "1 rows left out: " in printed
    assert "left out: invalid_json" not in printed
    assert f"licence: {NAMED_SOURCES['hh-harmless'].licence}" in printed
    assert "columns not read" not in printed


def test_a_tokenizer_counts_tokens(clean: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--data_options.max_length", "40", "--json"]
    assert main(["data", "check", clean, *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    # "<s>Human: question 0\n\nAssistant:" is 1 token and 29 bytes; " yes it is</s>" 11, " no</s>" 4, and so on.
    assert result["statistics"]["tokens_per_qa"] == 30 + (11 + 4 + 5 + 10) / 4
    assert result["too_long"] == 3


def test_check_of_a_clean_set(clean: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", clean, "--strict"]) == 0
    assert "Nothing found." in capsys.readouterr().out


def test_check_finds_faults_and_fails(faulty: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", faulty]) == 1
    printed = capsys.readouterr().out
    for finding in ("bad_rows.invalid_json", "identical_answers", "duplicate_pairs", f"{faulty}:9"):
        assert finding in printed


def test_names_with_brackets_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a[bold].jsonl", *ROWS, ROWS[0])
    assert main(["data", "check", path]) == 0
    printed = capsys.readouterr().out
    assert path in printed
    assert f"{path}:7" in printed


def test_warnings_fail_a_strict_check_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *ROWS, ROWS[0])
    assert main(["data", "check", path]) == 0
    assert main(["data", "check", path, "--strict"]) == 1


def test_check_prints_json_for_other_programs(clean: str, faulty: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", clean, faulty, "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["data"]["name"], first["findings"], first["too_long"]) == (clean, [], None)
    assert second["data"]["skipped"] == {"invalid_json": 1}
    assert second["statistics"]["size"] == 8
    assert [finding["check"] for finding in second["findings"]] == [
        "bad_rows.invalid_json",
        "identical_answers",
        "duplicate_pairs",
    ]


def test_check_compares_with_test_sets(clean: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = write(tmp_path / "test.jsonl", ROWS[3], {"prompt": "other", "chosen": "a", "rejected": "b"})
    assert main(["data", "check", clean, "--strict", "--json", "--against", test, "world/arena"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    (finding,) = result["findings"]
    assert (finding["check"], finding["count"], finding["examples"]) == ("overlap", 1, [f"{clean}:4"])


def test_check_compares_with_the_test_split_and_skips_its_bad_rows(
    clean: str, faulty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "hafrm.paper.world.source.world_pairs", lambda name, split, size: [pair(f"{split}?", "yes", "no")]
    )
    path = write(tmp_path / "a.jsonl", *({"prompt": f"{split}?", "chosen": "a", "rejected": "b"} for split in SPLITS))
    assert main(["data", "check", path, clean, "--json", "--against", "world/helpful", faulty]) == 1
    overlaps = [each for found in json.loads(capsys.readouterr().out) for each in found["findings"]]
    assert [(each["check"], each["examples"]) for each in overlaps] == [
        ("overlap", [f"{path}:{1 + SPLITS.index('test')}"]),
        ("overlap", [f"{clean}:{row}" for row in range(1, 1 + len(overlaps[1]["examples"]))]),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "Nothing to show"),
        (["check"], "Nothing to check"),
        (["show", "hh-harmles"], "Did you mean hh-harmless"),
        (["show", "missing.jsonl"], "missing.jsonl: no such file"),
        (["show", "world/arena", "--split", "dev"], "no split 'dev'"),
        (["show", "world/arena", "--data_options.max_length", "1"], "max_length must be at least 2"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_show_stops_at_a_bad_row_unless_told_to_skip(faulty: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", faulty]) == 2
    assert f"{faulty}, row 7: the line is not valid JSON" in capsys.readouterr().err
    assert main(["data", "show", faulty, "--data_options.on_bad_row", "skip"]) == 0
    assert "1 bad rows skipped: invalid_json" in capsys.readouterr().out


def test_lengths_are_shown_against_the_limit(clean: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The longer sequences have 34, 41, 34, 41, 34, 41 tokens."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    arguments = ["data", "check", clean, "--tokenizer", str(tmp_path / "tokenizer"), "--data_options.max_length"]
    assert main([*arguments, "40"]) == 0
    printed = capsys.readouterr().out
    assert "at most 41; 3 pairs (50.0%) are over data_options.max_length 40" in printed
    assert "overlong" in printed
    assert main([*arguments, "41"]) == 0
    assert "Nothing found." in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "found"), [("51", False), ("50", True)])
def test_more_than_a_twentieth_of_the_pairs_over_the_limit_is_a_finding(
    limit: str, found: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The longer sequences have 33 to 52 tokens: 30 of the prompt, one to twenty letters, a space and the end."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [{"prompt": f"question {chr(97 + i)}", "chosen": "y" * (1 + i), "rejected": "n"} for i in range(20)]
    path = write(tmp_path / "rows.jsonl", *rows)
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--data_options.max_length", limit]
    assert main(["data", "check", path, *options]) == 0
    printed = capsys.readouterr().out
    assert "median 42, 95% up to 51, at most 52" in printed
    assert ("overlong" in printed) == found


def test_a_clean_set_is_followed_by_the_findings_of_the_next(
    clean: str, faulty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", clean, faulty]) == 1
    printed = capsys.readouterr().out
    assert printed.index("Nothing found.") < printed.index("duplicate_pairs")


def test_a_file_of_no_known_form_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "a", "response_j": "b", "response_k": "c"}
    path = write(tmp_path / "a.jsonl", row)
    assert main(["data", "check", path]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for expected in (*row, "TRL pairs", "data_options.columns"):
        assert expected in printed
    columns = "prompt: question, chosen: response_j, rejected: response_k"
    assert main(["data", "check", path, "--data_options.columns", columns]) == 0
    assert "read as TRL pairs" in capsys.readouterr().out
