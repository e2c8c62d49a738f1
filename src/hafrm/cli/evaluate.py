"""`hafrm evaluate`: measure how often the better response gets the higher reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hafrm.cli.options import command_parser, options_of
from hafrm.evaluation.results import shortfalls
from hafrm.evaluation.run import EvaluateConfig, evaluate, load_sets
from hafrm.report import write_page
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.tables import (
    AccuracyTable,
    SuiteTable,
    TableRow,
    accuracy_table,
    cell_text,
    comparison_rows,
    suite_tables,
    write_markdown,
)
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
        console.print(_suite_table(suite, short_names(evaluation.models)))
        for note in suite.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    for comparison in _comparisons(evaluation):
        console.print(comparison, highlight=False, soft_wrap=True)
    console.print(f"Scores, results and a page to look at: {page}", highlight=False, soft_wrap=True)
    return page


def _print_accuracies(evaluation: Evaluation, console: Console) -> None:
    worded = accuracy_table(evaluation)
    console.print(_table(evaluation, worded))
    if worded.few:
        names = short_names(evaluation.data)
        listed = ", ".join(names[data] for data in worded.few)
        console.print(
            f"No interval and no p on {listed}: pairs from fewer than {FEWEST_GROUPS} prompts can't be resampled.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _table(evaluation: Evaluation, worded: AccuracyTable) -> Table:
    """Return the accuracies with their 95% intervals, above the length-only and random baselines."""
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    table = Table(title="Accuracy in %, with 95% intervals over prompts")
    table.add_column("model", overflow="fold")
    for name, size in worded.columns:
        table.add_column(f"{data[name]}\n{size}", overflow="fold")
    _add_rows(table, worded.models, worded.baselines, models)
    return table


def _suite_table(suite: SuiteTable, models: Mapping[str, str]) -> Table:
    table = Table(title=f"{suite.title}, in %, with 95% intervals over prompts")
    table.add_column("model", overflow="fold")
    for name in suite.scores.columns:
        table.add_column(name, overflow="fold")
    _add_rows(table, suite.scores.models, suite.scores.baselines, models)
    return table


def _add_rows(table: Table, rows: Sequence[TableRow], baselines: Sequence[TableRow], models: Mapping[str, str]) -> None:
    for row in rows:
        table.add_row(models[row.name], *map(cell_text, row.cells))
    table.add_section()
    for row in baselines:
        table.add_row(row.name, *map(cell_text, row.cells))


def _comparisons(evaluation: Evaluation) -> Iterator[str]:
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    for name, rows in comparison_rows(evaluation.comparisons).items():
        for row in rows:
            yield (
                f"{data[name]}: {models[row.a]} - {models[row.b]}: {row.difference} points "
                f"{row.interval}, p {row.p_holm} corrected for all comparisons (Holm), McNemar p {row.p_mcnemar} "
                f"(n {row.n})"
            )
