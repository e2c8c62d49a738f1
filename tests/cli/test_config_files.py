"""A config is read from a file, or refused immediately if reading could block."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from hafrm.cli.options import command_parser, options_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")


@dataclass(frozen=True)
class Options:
    """What a command takes."""

    steps: int = 1
    """How many."""


def read(*words: str) -> int:
    parser = command_parser(Options)
    return options_of(Options, parser, parser.parse_args(list(words))).steps


def test_a_commands_description_is_its_options_docstring() -> None:
    assert command_parser(Options).description == "What a command takes."


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder"])
def test_what_is_not_a_file_is_refused_at_once(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        target = Path("/dev/zero")
        if kind != "device":
            target = tmp_path / "pipe"
            os.mkfifo(target)
        place.symlink_to(target)
    with pytest.raises(SystemExit) as caught:
        read("--config", str(place))
    assert caught.value.code == 2
    assert "config.yaml is not a regular file" in capsys.readouterr().err


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "config.yaml")
    assert read("--config", str(tmp_path / "config.yaml")) == 3
    assert read("--config", str(tmp_path / "link.yaml"), "--steps", "4") == 4
    assert read("--config", "{steps: 5}") == 5
    assert read("--config", "{steps: 5} # " + "x" * 5000) == 5


@pytest.mark.parametrize(
    "text",
    ["steps: 3\nsteps: 4\n", '{"steps": 3, "steps": 3}', "more: &m {a: {b: 1, b: 2}}\nagain: [*m, *m]\nsteps: 3"],
)
def test_a_key_given_twice_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(text)
    for given in (str(tmp_path / "config.yaml"), text):
        with pytest.raises(SystemExit):
            read("--config", given)
        assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "steps: 3\nmore: &m [*m]",
        "steps: 3\nmore: &m {a: {b: *m}}",
        "steps: 3\na0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "steps: " + "[" * 5000 + "]" * 5000,
    ],
    ids=["in itself", "deep in itself", "doubled often", "deep"],
)
def test_a_file_that_can_not_be_written_without_aliases_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        read("--config", str(tmp_path / "config.yaml"))
    assert caught.value.code == 2
    assert "config" in capsys.readouterr().err


def test_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: &n 7\n")
    assert read("--config", str(tmp_path / "config.yaml")) == 7


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no open files by number here")
def test_process_substitution_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"steps: 6\n")
    os.close(writer)
    assert read("--config", f"/dev/fd/{reader}") == 6
    os.close(reader)


@dataclass(frozen=True)
class Group:
    """Options of a group."""

    rate: float = 0.5
    """A number."""

    kind: Literal["a", "b"] = "a"
    """One of two."""

    limit: int | None = None
    """A number, or none."""


@dataclass(frozen=True)
class Grouped:
    """Options with a group of options and an open mapping."""

    group: Group = Group()
    """The group."""

    more: dict[str, Any] = field(default_factory=dict)
    """Any further options."""


def read_group(text: str) -> Grouped:
    parser = command_parser(Grouped)
    return options_of(Grouped, parser, parser.parse_args(["--config", text]))


def test_a_group_without_options_has_its_defaults() -> None:
    assert read_group("group:\nmore:\n") == Grouped()
    assert read_group("group: {limit: null, rate: 1}") == Grouped(Group(rate=1.0))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((f"group: {wrong}", "group") for wrong in ("4", "[1]", "true", "x", "''", "2.5")),
        *((f"more: {wrong}", "more") for wrong in ("4", "[1]", "x")),
        *((f"group: {{{each}: null}}", f"group.{each}") for each in ("rate", "kind")),
    ],
)
def test_a_value_that_is_not_an_options_is_refused_by_name(
    text: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    for given in (str(tmp_path / "config.yaml"), text):
        with pytest.raises(SystemExit) as caught:
            read_group(given)
        assert caught.value.code == 2
        assert f"--{name} must be " in capsys.readouterr().err
