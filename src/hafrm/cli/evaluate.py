"""`hafrm evaluate`: measure how often the better response gets the higher reward."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import options_of, parser_of
from hafrm.evaluation.options import EvaluateConfig
from hafrm.options import command_line
from hafrm.progress import ProgressLine

parser = parser_of(EvaluateConfig, positional="models", lists=("models", "data", "suites"))


def run(args: Namespace) -> None:
    """Evaluate, print the table, and write the page."""
    config = options_of(
        EvaluateConfig, parser(), args, models=("models", "reference"), data=("data", "calibration_data")
    )
    run_evaluation(config, Console())


def run_evaluation(config: EvaluateConfig, console: Console, intro: str = "") -> Path:
    """Evaluate, print the table and the comparisons, and write the page and `table.md`; return the page's path.

    `intro` is a paragraph for the page. Progress goes to standard error.
    """
    from hafrm.cli.printing import print_evaluation, say
    from hafrm.evaluation.results import shortfalls
    from hafrm.evaluation.run import evaluate, load_sets, readings
    from hafrm.report.loading import read_evaluation
    from hafrm.report.page import write_page
    from hafrm.report.tables import write_markdown

    folder = Path(config.out)
    with ProgressLine("reading pairs") as line:
        sets = load_sets(config)
        for text in readings(sets):
            line.say(text)
        line.show("loading")
        results = evaluate(
            config, sets=sets, progress=lambda what, done: line.show(f"{what}: {done:,} done"), say=line.say
        )
    texts = {pair.id: pair for pair_set in sets.values() for pair in pair_set.pairs}
    command = command_line("hafrm evaluate", EvaluateConfig, asdict(config), positional="models")
    page = write_page(folder, texts=texts, intro=intro, command=command)
    write_markdown(folder)
    for text in shortfalls(results):
        line.say(text)
    print_evaluation(read_evaluation(folder), console)
    say(console, f"Scores, results and a page to look at: {page}")
    return page
