"""Putting the study into a checkout: `docs/results/study.md`, its numbers and figures, and the README's table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.errors import ConfigError, DataError
from hafrm.reproduce.figures import standalone
from hafrm.reproduce.findings import findings_markdown
from hafrm.reproduce.study.results import FORMAT
from hafrm.reproduce.study.telling import findings_of, readme_block

__all__ = ["PAGE", "RESULTS", "page_of", "publish", "read_results", "with_block"]

PAGE = Path("docs/results/study.md")
RESULTS = Path("docs/results/study/results.json")

_BLOCK = re.compile(r"(<!-- study: .*?-->\n).*?(<!-- end of study -->)", re.DOTALL)


def read_results(path: Path) -> dict[str, Any]:
    """A study's `results.json`.

    Raises:
        DataError: it is not there, or it is no study's.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as JSON ({error}). Run the study first.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path} holds no results of this version's study. Run it again: nothing is trained anew.")
    return found


def page_of(results: dict[str, Any]) -> str:
    """The page of the docs."""
    return findings_markdown(findings_of(results), pictures=f"{RESULTS.parent.name}/")


def with_block(readme: str, results: dict[str, Any]) -> str:
    """A README with the study's table between its two marks; one without the marks stays as it is."""
    return _BLOCK.sub(lambda found: f"{found[1]}{readme_block(results)}{found[2]}", readme)


def publish(results: dict[str, Any], root: Path) -> list[Path]:
    """Write the study into a checkout.

    Args:
        results: What `collect` gave.
        root: The checkout, which has a README.md and a folder docs.

    Returns:
        The files.

    Raises:
        ConfigError: it is no checkout.
    """
    readme = root / "README.md"
    if not readme.is_file() or not (root / "docs").is_dir():
        raise ConfigError(f"publish: {root} has no README.md and docs. Give the root of a checkout.")
    atomic.write_json(root / RESULTS, results)
    written = [root / RESULTS, root / PAGE]
    for name, svg in findings_of(results).figures.items():
        written.append(root / RESULTS.parent / f"{name}.svg")
        atomic.write_text(written[-1], standalone(svg))
    atomic.write_text(root / PAGE, page_of(results))
    before = readme.read_text(encoding="utf-8")
    if (after := with_block(before, results)) != before:
        atomic.write_text(readme, after)
        written.append(readme)
    return written
