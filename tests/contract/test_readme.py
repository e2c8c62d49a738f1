"""The README's numbers are those of the files that `make demo` and the study wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hafrm.reproduce.study.publishing import PAGE, page_of, read_results, with_block
from hafrm.reproduce.study.publishing import RESULTS as RESULTS_OF_STUDY

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


def test_the_studys_page_and_table_are_made_of_its_numbers() -> None:
    """Either no study is published, and the README shows none, or page and table say what its numbers say."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if not (ROOT / RESULTS_OF_STUDY).exists():
        assert not (ROOT / PAGE).exists()
        assert "| bag of words |" not in readme
        return
    results = read_results(ROOT / RESULTS_OF_STUDY)
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page_of(results)
    assert "<!-- study:" in readme
    assert with_block(readme, results) == readme
