"""The README's numbers are those of the files that `make demo` and the study wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hafrm.reproduce.study.publishing import (
    MAIN_PAGE,
    markdown_path,
    page_of,
    read_results,
    results_path,
    with_block,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "demo" / "results.json"


def test_the_results_table_is_the_demos() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- results: .*?-->(.*?)<!-- end of results -->", text, re.DOTALL)
    assert table is not None
    rows = {line.split("|")[1].strip(): line for line in table[1].splitlines() if line.startswith("|")}
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for model, entry in results["models"].items():
        cells = [cell.strip() for cell in rows[Path(model).name].split("|")[2:-1]]
        expected = [
            f"{100 * found['accuracy']:.1f} [{100 * found['ci95'][0]:.1f}, {100 * found['ci95'][1]:.1f}]"
            for found in entry["data"].values()
        ]
        assert cells == expected


def study_pages() -> list[str]:
    return sorted(path.stem for path in (ROOT / markdown_path(MAIN_PAGE)).parent.glob(f"{MAIN_PAGE}*.md"))


@pytest.mark.parametrize("page", study_pages())
def test_a_studys_page_is_made_of_its_numbers(page: str) -> None:
    results = read_results(ROOT / results_path(page))
    assert (ROOT / markdown_path(page)).read_text(encoding="utf-8") == page_of(results, page)


def test_the_readmes_study_is_the_main_page() -> None:
    """Either none is published, and the README shows none, or its table says what the page's numbers say."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if MAIN_PAGE not in study_pages():
        assert "| bag of words |" not in readme
        return
    assert "<!-- study:" in readme
    assert with_block(readme, read_results(ROOT / results_path(MAIN_PAGE))) == readme
