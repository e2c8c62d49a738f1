"""`hafrm best-of-n`: select responses with scorers, and measure the gain."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import options_of, parser_of
from hafrm.progress import ProgressLine
from hafrm.sampling.options import BestOfNConfig

parser = parser_of(BestOfNConfig, positional="models", lists=("models",))


def run(args: Namespace) -> None:
    """Score candidates, select, run the judge, print the tables, and write the page."""
    config = options_of(BestOfNConfig, parser(), args, models=("models", "reference"))
    from hafrm.cli.printing import print_findings, say
    from hafrm.report.best_of_n import best_of_n_findings
    from hafrm.report.findings import write_findings
    from hafrm.sampling.best_of_n import best_of_n

    console = Console()
    with ProgressLine("loading") as line:
        found = best_of_n(config, progress=lambda what, done: line.show(f"{what}: {done:,} prompts done"), say=line.say)
    findings = best_of_n_findings(found.results)
    page = write_findings(findings, Path(config.out))
    print_findings(findings, console)
    say(console, f"Selections, results and a page to look at: {page}")
