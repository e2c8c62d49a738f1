"""The study's pages in a checkout.

A checkout may contain several studies of other backbones or parts, each with its own page; the README's table is that
of the main page.
"""

from __future__ import annotations

import re
from pathlib import Path

from hafrm import atomic
from hafrm.errors import ConfigError
from hafrm.paper.scales import MAIN_PAGE
from hafrm.paper.study_page import Results, findings_of, readme_block
from hafrm.report.charts import standalone
from hafrm.report.findings import findings_markdown

_FOLDER = Path("docs/results")
_BLOCK = re.compile(r"(<!-- study: .*?-->\n).*?(<!-- end of study -->)", re.DOTALL)


def markdown_path(page: str) -> Path:
    """Return the path of a page in a checkout."""
    return _FOLDER / f"{page}.md"


def results_path(page: str) -> Path:
    """Return the path of a page's numbers; its figures are in the same folder."""
    return _FOLDER / page / "results.json"


def page_of(results: Results, page: str = MAIN_PAGE) -> str:
    """Render a page of the docs; the topic of a page other than the main one is in its name."""
    about = None if page == MAIN_PAGE else page.removeprefix(f"{MAIN_PAGE}-").replace("-", " ")
    return findings_markdown(findings_of(results, about=about), pictures=f"{page}/")


def with_block(readme: str, results: Results) -> str:
    """Replace the study's table between its two marks in a README; without the marks, return it unchanged."""
    return _BLOCK.sub(lambda found: f"{found[1]}{readme_block(results)}{found[2]}", readme)


def require_checkout(root: Path, page: str = MAIN_PAGE) -> None:
    """Raise if a page can't be published in the folder.

    Raises:
        ConfigError: there is no README.md or docs folder, or the README has no marks for the main page's table.
    """
    readme = root / "README.md"
    if not readme.is_file() or not (root / "docs").is_dir():
        raise ConfigError(f"publish: {root} has no README.md and docs. Give the root of a checkout.")
    if page == MAIN_PAGE and not _BLOCK.search(readme.read_text(encoding="utf-8")):
        raise ConfigError(
            f"publish: {readme} has no lines <!-- study: ... --> and <!-- end of study --> between which the table "
            "goes. Add them, or publish as another --page."
        )


def publish(results: Results, root: Path, page: str = MAIN_PAGE) -> list[Path]:
    """Write results of `collect` into a checkout: page, numbers and figures, and the README's table for the main page.

    Returns:
        Paths of the written files.

    Raises:
        ConfigError: the folder is not a checkout.
    """
    require_checkout(root, page)
    folder = (root / results_path(page)).parent
    figures = {folder / f"{name}.svg": standalone(svg) for name, svg in findings_of(results).figures.items()}
    for path, text in {**figures, root / markdown_path(page): page_of(results, page)}.items():
        atomic.write_text(path, text)
    for stale in set(folder.glob("*.svg")) - figures.keys():
        stale.unlink()
    atomic.write_json(root / results_path(page), results)
    written = [root / results_path(page), root / markdown_path(page), *figures]
    readme = root / "README.md"
    before = readme.read_text(encoding="utf-8")
    if page == MAIN_PAGE and (after := with_block(before, results)) != before:
        atomic.write_text(readme, after)
        written.append(readme)
    return written
