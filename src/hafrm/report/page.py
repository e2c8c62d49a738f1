"""Write the page of an evaluation: verdict, tables, plots and an inspector of pairs, in one self-contained file.

The data are JSON that browsers don't execute, so markup in responses is shown as text, and the file can be mailed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from hafrm import atomic
from hafrm.evaluation.scoring import RESULTS_FILE
from hafrm.evaluation.tokens import TOKENS_FILE, read_tokens
from hafrm.pairs import PreferencePair
from hafrm.report.cards import data_card, model_card
from hafrm.report.diagnostics import forest_plots, plot_groups
from hafrm.report.html import asset, render
from hafrm.report.inspector import embedded_json, held_words, inspector_data
from hafrm.report.loading import read_evaluation
from hafrm.report.tables import accuracy_table, comparison_rows, suite_tables
from hafrm.report.verdict import title_of, verdicts
from hafrm.report.wording import moment, short_names

PAGE_FILE = "index.html"


def write_page(
    folder: Path,
    *,
    title: str | None = None,
    texts: Mapping[str, PreferencePair] | None = None,
    intro: str = "",
    command: str = "",
) -> Path:
    """Write the page of an evaluation.

    Args:
        folder: The folder to which `hafrm evaluate` wrote `results.json`, `scores.jsonl` and maybe `tokens.jsonl`.
        title: The page's title, as plain text; by default the names of models and data.
        texts: The evaluated pairs by id, for the inspector; without them it only shows rewards and lengths.
        intro: A paragraph below the title, as plain text.
        command: The command that made the evaluation.

    Returns:
        The page's path: `index.html` in the folder.

    Raises:
        DataError: the folder does not have a complete evaluation.
    """
    folder = Path(folder)
    evaluation = read_evaluation(folder)
    path = folder / PAGE_FILE
    made = datetime.fromtimestamp((folder / RESULTS_FILE).stat().st_mtime, UTC)
    inspector = inspector_data(evaluation, texts or {}, read_tokens(folder / TOKENS_FILE))
    comparisons = evaluation.results.comparisons
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    html = render(
        "page.html.j2",
        script=asset("page.js"),
        title=title or title_of(evaluation),
        when=f"hafrm {version('hafrm')} evaluation, {moment(made)}",
        intro=intro,
        command=command,
        models=models,
        model_numbers={model: number for number, model in enumerate(models)},
        data=data,
        verdicts=verdicts(evaluation),
        suites=suite_tables(evaluation),
        table=accuracy_table(evaluation),
        forests=forest_plots(evaluation),
        comparisons=comparison_rows(comparisons, evaluation.scores),
        comparison_count=len(comparisons),
        cards=[
            *(model_card(model, models[model], evaluation.results.servers.get(model)) for model in models),
            *(data_card(name, data.get(name, name), found) for name, found in evaluation.results.sources.items()),
        ],
        groups=plot_groups(evaluation),
        inspector=inspector,
        inspector_json=embedded_json(inspector),
        held=held_words(evaluation, inspector),
    )
    atomic.write_text(path, html)
    return path
