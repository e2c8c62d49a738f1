"""After Ctrl-C the message correctly says what remains of a command's work."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest

from hafrm import cli
from hafrm.cli import main

COMMANDS = {
    "demo": [],
    "pretrain": ["--data", "d", "--out", "o"],
    "train": ["--model", "m", "--data", "d", "--out", "o"],
    "probe": ["m", "--data", "d", "--out", "o"],
    "evaluate": ["m", "--data", "d", "--out", "o"],
    "score": ["m", "--data", "d"],
    "sample": ["m", "--data", "d", "--out", "o"],
    "best-of-n": ["m", "--samples", "s", "--out", "o"],
    "judge": ["d", "--judge.kind", "oracle", "--judge.model", "helpful", "--out", "o"],
    "rlhf": ["m", "--reward", "r", "--data", "d", "--out", "o"],
    "serve": ["m"],
    "doctor": ["r"],
    "export": ["r"],
    "data": ["list"],
    "reproduce": ["table2"],
}

RESUMES = ("demo", "pretrain", "train", "evaluate", "sample", "best-of-n", "judge", "rlhf", "reproduce")


@pytest.mark.parametrize(("command", "options"), COMMANDS.items(), ids=COMMANDS)
def test_ctrl_c_is_one_true_line(command: str, options: Sequence[str], monkeypatch, capfd) -> None:
    def run(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"hafrm.cli.{command.replace('-', '_')}"), "run", run)
    assert main([command, *options]) == 130
    error = capfd.readouterr().err
    assert error == f"hafrm {command}: stopped; {cli.STOPPED[command]}\n"
    assert ("resumes" in error) == (command in RESUMES)
    assert ("checkpoint" in error) == (command in ("demo", "pretrain", "train", "rlhf"))


@pytest.mark.parametrize("command", ["train", "data"])
def test_ctrl_c_while_a_command_is_loaded_is_one_line_too(command: str, monkeypatch, capfd) -> None:
    def loading(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", loading)
    assert main([command, *COMMANDS[command]]) == 130
    assert capfd.readouterr().err == f"hafrm {command}: stopped; {cli.STOPPED[command]}\n"


def test_every_command_has_its_line() -> None:
    assert cli.STOPPED.keys() == cli.COMMANDS.keys() == COMMANDS.keys()
