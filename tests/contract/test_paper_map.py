"""The page that maps the paper to modules and commands names only existing ones, and every experiment."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import COMMANDS
from hafrm.paper.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8")


def test_every_module_imports() -> None:
    modules = set(re.findall(r"`(hafrm(?:\.\w+)+)`", PAGE))
    assert len(modules) > 20
    for module in modules:
        importlib.import_module(module)


def test_every_experiment_is_on_the_page_and_every_command_is_one() -> None:
    lines = [line for line in PAGE.splitlines() if "hafrm reproduce" in line and line.startswith("|")]
    named = {word for line in lines for word in re.findall(r"`(?:hafrm reproduce )?([a-z]+\d*)`", line)}
    assert set(EXPERIMENTS) == named
    assert set(re.findall(r"`hafrm ([a-z-]+)", PAGE)) <= set(COMMANDS)


def test_every_table_and_figure_is_named() -> None:
    text = (
        re.sub(r"(Tables|Figures) (\d+) and (\d+)", r"\1 \2 \1 \3", PAGE)
        .replace("Tables", "Table")
        .replace("Figures", "Figure")
    )
    for number in range(1, 12):
        assert re.search(rf"Table {number}\b", text), number
    for number in range(1, 11):
        assert re.search(rf"Figure {number}\b", text), number


def test_the_example_recomputes_a_published_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block, names)
    assert capsys.readouterr().out
    results = json.loads((names["folder"] / "results.json").read_text(encoding="utf-8"))
    expected = results["differences"]["Helpful"]["plackett_luce - all pairs"]
    assert list(names["found"].interval) == pytest.approx(expected["ci95"], abs=1e-9)
    assert names["found"].difference == pytest.approx(expected["difference"], abs=1e-9)
