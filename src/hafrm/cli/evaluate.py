"""`hafrm evaluate`: measure how often the better response gets the higher reward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hafrm.cli.options import command_parser, options_of
from hafrm.evaluation.results import shortfalls
from hafrm.evaluation.run import EvaluateConfig, evaluate, load_sets, readings
from hafrm.report import write_page
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.tables import Grid, accuracy_table, cell_text, comparison_rows, suite_tables, write_markdown
from hafrm.report.wording import short_names
from hafrm.stats import FEWEST_GROUPS


def parser() -> ArgumentParser:
    """Build the command's parser."""
    return command_parser(EvaluateConfig, positional="models", lists=("models", "data", "suites"))


def run(args: Namespace) -> None:
    """Evaluate, print the table, and write the page."""
    run_evaluation(options_of(EvaluateConfig, parser(), args), Console())


def run_evaluation(config: EvaluateConfig, console: Console, intro: str = "") -> Path:
    """Evaluate, print the table and the comparisons, and write the page and `table.md`.

    Args:
        config: What to evaluate.
        console: Console for the results; progress goes to standard error.
        intro: A paragraph for the page.

    Returns:
        The page's path.
    """
    folder = Path(config.out)
    sets = load_sets(config)
    errors = Console(stderr=True)
    for text in readings(sets):
        errors.print(text, markup=False, highlight=False, soft_wrap=True)
    with errors.status("loading") as line:
        results = evaluate(
            config,
            sets=sets,
            progress=lambda what, done: line.update(escape(f"{what}: {done} done")),
            say=lambda text: errors.print(text, markup=False, highlight=False, soft_wrap=True),
        )
    texts = {pair.id: pair for pair_set in sets.values() for pair in pair_set.pairs}
    page = write_page(folder, title="Evaluation", texts=texts, intro=intro)
    write_markdown(folder)
    evaluation = read_evaluation(folder)
    for text in shortfalls(results):
        errors.print(text, markup=False, highlight=False, soft_wrap=True)
    if evaluation.data:
        _print_accuracies(evaluation, console)
    for suite in suite_tables(evaluation):
        console.print(_table(suite.title, suite.scores, evaluation))
        for note in suite.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    for comparison in _comparisons(evaluation):
        console.print(comparison, highlight=False, soft_wrap=True)
    console.print(f"Scores, results and a page to look at: {page}", highlight=False, soft_wrap=True)
    return page


def _print_accuracies(evaluation: Evaluation, console: Console) -> None:
    worded = accuracy_table(evaluation)
    console.print(_table("Accuracy", worded, evaluation))
    if worded.few:
        names = short_names(evaluation.data)
        listed = ", ".join(names[data] for data in worded.few)
        console.print(
            f"No interval and no p on {listed}: pairs from fewer than {FEWEST_GROUPS} prompts can't be resampled.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _table(title: str, grid: Grid, evaluation: Evaluation) -> Table:
    """Return scores with their 95% intervals, above the length-only and random baselines."""
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    table = Table(title=f"{title} in %, with 95% intervals over prompts")
    table.add_column("model", overflow="fold")
    for name, size in grid.columns:
        table.add_column(f"{data.get(name, name)}\n{size}".strip(), overflow="fold")
    for row in grid.models:
        table.add_row(models[row.name], *map(cell_text, row.cells))
    table.add_section()
    for row in grid.baselines:
        table.add_row(row.name, *map(cell_text, row.cells))
    return table


def _comparisons(evaluation: Evaluation) -> Iterator[str]:
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    for name, rows in comparison_rows(evaluation.results.comparisons).items():
        for row in rows:
            yield (
                f"{data[name]}: {models[row.a]} - {models[row.b]}: {row.difference} points "
                f"{row.interval}, p {row.p_holm} corrected for all comparisons (Holm), McNemar p {row.p_mcnemar} "
                f"(n {row.n})"
            )
