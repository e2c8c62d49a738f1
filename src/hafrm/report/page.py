"""Build one self-contained HTML file from an evaluation's folder.

Style and script are inline, the data are JSON that browsers don't execute, and the page's content security policy
forbids all other scripts and all requests. So markup in responses is shown as text, and the file can be mailed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hafrm import atomic
from hafrm.evaluation.tokens import TOKENS_FILE, read_tokens
from hafrm.pairs import PreferencePair
from hafrm.report.diagnostics import forest_plots, plot_groups
from hafrm.report.inspector import embedded_json, inspector_data
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.suites import suite_tables
from hafrm.report.tables import accuracy_table, comparison_rows
from hafrm.report.wording import count, short_names, visible

PAGE_FILE = "index.html"


def write_page(
    folder: Path,
    *,
    title: str,
    texts: Mapping[str, PreferencePair] | None = None,
    intro: str = "",
    max_pairs: int = 500,
) -> Path:
    """Write the page of an evaluation.

    Args:
        folder: The folder to which `hafrm evaluate` wrote `results.json`, `scores.jsonl` and maybe `tokens.jsonl`.
        title: The page's title, as plain text.
        texts: The evaluated pairs by id, for the inspector; without them it only shows rewards and lengths.
        intro: A paragraph below the title, as plain text.
        max_pairs: Maximum number of pairs in the inspector, worst mistakes first. Tables and plots use all scores.

    Returns:
        The page's path: `index.html` in the folder.

    Raises:
        DataError: the folder does not have a complete evaluation.
        ValueError: `max_pairs` is negative.
    """
    if max_pairs < 0:
        raise ValueError(f"max_pairs must not be negative, got {max_pairs}")
    folder = Path(folder)
    evaluation = read_evaluation(folder)
    path = folder / PAGE_FILE
    context = _context(evaluation, texts or {}, max_pairs, read_tokens(folder / TOKENS_FILE))
    atomic.write_text(path, _render(title=title, intro=intro, **context))
    return path


def _context(
    evaluation: Evaluation,
    texts: Mapping[str, PreferencePair],
    max_pairs: int,
    tokens: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    inspector = inspector_data(evaluation, texts, max_pairs, tokens)
    total = len({(score.data, score.id) for score in evaluation.scores})
    return {
        "models": models,
        "data": data,
        "suites": suite_tables(evaluation),
        "table": accuracy_table(evaluation),
        "forests": forest_plots(evaluation),
        "comparisons": comparison_rows(evaluation.comparisons),
        "comparison_count": len(evaluation.comparisons),
        "groups": plot_groups(evaluation),
        "inspector": inspector,
        "inspector_json": embedded_json(inspector),
        "pairs_held": count(len(inspector["pairs"]), "pair"),
        "pairs_in_all": f"{total:,}" if total > len(inspector["pairs"]) else "",
    }


def _render(**context: Any) -> str:
    environment = Environment(
        loader=PackageLoader("hafrm", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(style=style, script=script, policy=policy, **context)


def _asset(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _digest(content: str) -> str:
    """Return the hash with which a content security policy allows one inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
