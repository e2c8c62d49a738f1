"""`hafrm judge`: ask a judge which of several responses it prefers.

A run in which no row was judged is an error, with the reason and a reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hafrm.cli.options import options_of, parser_of
from hafrm.errors import ConfigError, ModelError
from hafrm.judging.options import JudgeConfig
from hafrm.progress import ProgressLine
from hafrm.report.wording import percent, with_interval

parser = parser_of(JudgeConfig, positional="data", lists=("data",))


def run(args: Namespace) -> None:
    """Judge; print the table, the unscored rows and the cost."""
    files = [args.data] if isinstance(args.data, str) else args.data
    if len(files) > 2 or (len(files) == 2 and args.against is not None):
        raise ConfigError(f"data: {', '.join(files)}: judge a file, or compare two models' samples.")
    args.data, args.against = files[0], files[1] if len(files) == 2 else args.against
    config = options_of(JudgeConfig, parser(), args, data=("data",))
    from hafrm.cli.printing import say
    from hafrm.judging.run import RESULTS_FILE, judge_rows
    from hafrm.judging.verdicts import nothing_judged

    console = Console()
    with ProgressLine("judging") as line:
        results = judge_rows(
            config, progress=lambda done, rows: line.show(f"judging: {done:,} of {rows:,} rows"), say=line.say
        )
    console.print(_table(results))
    for text in _lines(results):
        say(console, text)
    say(console, f"Verdicts and results: {config.out}/{RESULTS_FILE}")
    if not results["judged"]:
        raise ModelError(nothing_judged(results))


def _table(results: Mapping[str, Any]) -> Table:
    """Return a table with one row per model that gave responses."""
    table = Table(title=f"{results['judged']} rows judged, in % with 95% intervals over prompts")
    table.add_column("response", overflow="fold")
    if results["mode"] == "pair":
        for name in ("win rate", "wins", "ties", "losses"):
            table.add_column(name)
        for model, cell in results["responses"].items():
            counts = [str(cell[name]) for name in ("wins", "ties", "losses")]
            table.add_row(Text(model), _percent(cell, "win_rate"), *counts)
    else:
        table.add_column("first")
        table.add_column("among the best two")
        for model, cell in results["responses"].items():
            table.add_row(Text(model), _percent(cell["first"]), _percent(cell["best_two"]))
    return table


def _percent(rate: Mapping[str, Any], name: str = "value") -> str:
    return with_interval(rate[name], rate["ci95"], percent)


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on agreement, flips, unscored rows with reasons, and costs."""
    from hafrm.judging.judges import Unscored

    if agreement := results["agreement"]:
        yield (
            f"Agreement with the labels: {_percent(agreement)} (n {agreement['n']}, ties {agreement['ties']} count "
            f"half); the longer response: {100 * agreement['length_agreement']:.1f}"
        )
    if flips := results["flip_rate"]:
        yield f"The two orders disagree on {_percent(flips)} of the pairs, which count as ties"
    if lost := sum(results["unscored"].values()):
        asked = results["rows"] - results["not_asked"]
        yield f"Not scored: {lost} of {asked} rows ({percent(lost / asked)} %), left out of all rates"
    for reason, count in results["unscored"].items():
        yield f"Unscored: {count} {reason} ({Unscored(reason).explanation})"
        if reply := results["unscored_replies"].get(reason):
            yield f"  for example the reply: {reply}"
    for reason, count in results["skipped"].items():
        yield f"Skipped rows: {count} {reason}"
    yield (
        f"Asked {results['requests']} questions with {results['responses_shown']} responses, "
        f"{results['prompt_tokens']} + {results['completion_tokens']} tokens"
    )
    yield from _run_lines(results["run"], results["not_asked"])


def _run_lines(run: Mapping[str, Any], not_asked: int) -> Iterator[str]:
    from hafrm.judging.judges import Unscored

    if "requests_sent" in run:
        cost = "" if run["cost"] is None else f", cost {run['cost']:.4f}"
        yield f"This run: {run['requests_sent']} requests, {run['from_cache']} replies from the cache{cost}"
        for reason, count in run["requests_failed"].items():
            yield f"Failed requests: {count} {reason} ({Unscored(reason).explanation})"
    if run["stopped"]:
        yield f"Stopped: {run['stopped']}; {not_asked} rows were not judged, and the same command resumes with them"
