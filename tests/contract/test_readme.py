"""The README's numbers are those of the file that `make demo` wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
