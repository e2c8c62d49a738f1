"""`hafrm data list | show | check`: list the named data sets, show their pairs, and find faults."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hafrm.atomic import json_text
from hafrm.cli.options import command_parser, options_of
from hafrm.cli.parser import Parser
from hafrm.data import (
    NAMED_SOURCES,
    DataOptions,
    Finding,
    PairStatistics,
    PairTables,
    SourceReport,
    check_pairs,
    data_names,
    encode_pairs,
    load_pairs,
    pair_statistics,
)
from hafrm.data.simulated import is_simulated
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.pairs import Message, PreferencePair


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """List the named data sets, show what data sets contain, or check them for faults."""

    split: str = "train"
    """train, validation or test; a file is read whole, and NAME#SPLIT selects its own split."""

    tokenizer: str | None = None
    """Folder or hub id of a tokenizer (or a model), for counting tokens."""

    rows: int = 3
    """show: number of pairs to print of each set."""

    against: list[str] = field(default_factory=list)
    """check: data sets that must not share prompts with the data: their test splits, or NAME#SPLIT."""

    data_options: DataOptions = field(default_factory=DataOptions)


_FEW = 0.05
"""Share of pairs over the limit on tokens above which they are a finding."""

_FILES = 4
"""Number of files that a summary names."""

_NAMES_HELP = "Data names (see `hafrm data list`), paths of files, or hub:OWNER/NAME; NAME#SPLIT for one split."


@cache
def parser() -> Parser:
    """Build the parser of `hafrm data`."""
    # One parser for the three actions: jsonargparse can't nest the subcommands of a parser that is itself a subcommand.
    command = command_parser(DataCommand, lists=["against"])
    command.add_argument("action", choices=["list", "show", "check"], help="What to do.")
    command.add_argument("names", nargs="*", default=[], help=_NAMES_HELP)
    command.add_argument("--json", action="store_true", help="check: print JSON instead of tables.")
    command.add_argument("--strict", action="store_true", help="check: exit with status 1 for warnings too.")
    return command


def run(args: Namespace) -> int:
    """Carry out `hafrm data ACTION`; the exit status is 1 if `check` finds errors, or anything with `--strict`."""
    command = options_of(DataCommand, parser(), args, models=("tokenizer",), data=("names", "against"))
    if args.action == "list":
        _console().print(_names_table())
        return 0
    if not args.names:
        raise ConfigError(f"Nothing to {args.action}: name a data set or a file. `hafrm data list` lists the names.")
    if args.action == "show":
        return _show(args.names, command)
    return _check(args.names, command, as_json=args.json, strict=args.strict)


@dataclass
class _Loaded:
    """A data set with its description."""

    pairs: list[PreferencePair]
    report: SourceReport
    statistics: PairStatistics
    encoded: PairTables | None
    """The pairs as the tokenizer encodes them, without a limit; None without a tokenizer."""
    limit: int
    """The limit on tokens."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of the longer sequence of each pair, prompt included; None if tokens are not counted."""
        return None if self.encoded is None else self.encoded.longest()

    @property
    def too_long(self) -> int | None:
        """Number of pairs over the limit; None if tokens are not counted."""
        return None if self.lengths is None else int((self.lengths > self.limit).sum())

    @property
    def overlong(self) -> Finding | None:
        """The finding that more than a few pairs are over the limit."""
        if not self.too_long or self.too_long <= _FEW * len(self.pairs):
            return None
        explanation = (
            f"training leaves out pairs of over {self.limit} tokens: raise data_options.max_length, or set "
            "data_options.overlong: truncate."
        )
        return Finding(check="overlong", severity="warning", count=self.too_long, examples=[], explanation=explanation)


def _load(name: str, command: DataCommand, options: DataOptions) -> _Loaded:
    loaded = load_pairs(name, split=command.split, options=options)
    encoded = None
    if command.tokenizer is not None:
        from hafrm.models.tokenizers import load_tokenizer  # imports torch, so only if tokens are counted

        # Without a limit, so that the length statistics cover all pairs.
        encoder = ConversationEncoder(load_tokenizer(command.tokenizer), max_length=sys.maxsize)
        encoded = encode_pairs(loaded.pairs, encoder, options)
    statistics = pair_statistics(loaded.pairs, encoded)
    return _Loaded(loaded.pairs, loaded.reports[0], statistics, encoded, options.max_length)


def _show(names: list[str], command: DataCommand) -> int:
    console = _console()
    for name in names:
        loaded = _load(name, command, command.data_options)
        _print_summary(loaded, console)
        for pair in loaded.pairs[: max(command.rows, 0)]:
            console.print(_pair_panel(pair))
    return 0


def _check(names: list[str], command: DataCommand, *, as_json: bool, strict: bool) -> int:
    # Bad rows are findings here: they are counted, and the other rows are checked.
    options = replace(command.data_options, on_bad_row="skip")
    against = {name: load_pairs(name, split="test", options=options).pairs for name in command.against}
    checked = [(loaded := _load(name, command, options), _findings(loaded, against)) for name in names]
    if as_json:
        print(json_text([_as_json(*part) for part in checked], indent=2))  # noqa: T201
    else:
        _print_findings(checked)
    return int(any(strict or finding.severity == "error" for _, findings in checked for finding in findings))


def _findings(loaded: _Loaded, against: dict[str, list[PreferencePair]]) -> list[Finding]:
    found = check_pairs(loaded.pairs, report=loaded.report, against=against, encoded=loaded.encoded)
    return [*found, *([loaded.overlong] if loaded.overlong else [])]


def _as_json(loaded: _Loaded, findings: list[Finding]) -> dict[str, Any]:
    return {
        "data": loaded.report.as_dict(),
        "statistics": loaded.statistics.as_dict(),
        "too_long": loaded.too_long,
        "findings": [finding.as_dict() for finding in findings],
    }


def _console() -> Console:
    return Console(highlight=False)


def _names_table() -> Table:
    table = Table(title="Data sets with names", show_lines=True)
    table.caption = (
        "NAME@PATH reads a copy of a set's files. Give other files and folders by their path, and hub sets as "
        "hub:OWNER/NAME. NAME#SPLIT selects a split, as in hh-harmless#test; files have none."
    )
    table.add_column("name", no_wrap=True)
    table.add_column("contents, licence, citation, source", overflow="fold")
    for source in NAMED_SOURCES.values():
        table.add_row(source.name, f"{source.title}. {source.licence}\n{source.citation}\n{source.homepage}")
    for name in data_names():
        if is_simulated(name):
            table.add_row(name, "simulated preferences, made here from a seed. Apache-2.0")
    return table


def _print_summary(loaded: _Loaded, console: Console) -> None:
    report, numbers = loaded.report, loaded.statistics
    table = Table(
        "pairs",
        "prompts",
        "words",
        title=escape(report.name),
        caption="words and tokens per prompt + response",
    )
    cells = [str(numbers.size), str(numbers.prompts), f"{numbers.words_per_qa:.1f}"]
    if numbers.tokens_per_qa is not None:
        table.add_column("tokens")
        cells.append(f"{numbers.tokens_per_qa:.1f}")
    for column in ("words chosen", "words rejected", "pick the longer"):
        table.add_column(column)
    cells += [f"{numbers.words_per_chosen:.1f}", f"{numbers.words_per_rejected:.1f}", f"{numbers.length_accuracy:.1%}"]
    table.add_row(*cells)
    console.print(table)
    for note in _notes(loaded):
        console.print(f"- {escape(note)}")


def _notes(loaded: _Loaded) -> list[str]:
    report = loaded.report
    return [
        f"{report.rows} rows read, {report.kept} {'pairs' if report.expanded else 'kept'}, of "
        f"{'; '.join(report.read_from[:_FILES])}{' and more' if len(report.read_from) > _FILES else ''}",
        *([f"read as {report.form}"] if report.form else []),
        *(f"{count} bad rows skipped: {reason}" for reason, count in report.skipped.items()),
        *([f"the first bad row: {report.first_fault}"] if report.first_fault else []),
        *(f"{count} rows left out: {reason}" for reason, count in report.dropped.items()),
        *([report.unread_columns] if report.unread else []),
        *report.notes,
        *([f"licence: {report.licence}"] if report.licence else []),
        _lengths(loaded),
    ]


def _lengths(loaded: _Loaded) -> str:
    """Describe the lengths of the pairs against the limit."""
    if loaded.lengths is None:
        return "tokens are not counted: give a --tokenizer"
    middle, most, longest = np.percentile(loaded.lengths, (50, 95, 100)).astype(int)
    share = loaded.too_long / len(loaded.lengths) if loaded.too_long else 0
    return (
        f"tokens of the longer response with its prompt: median {middle:,}, 95% up to {most:,}, at most {longest:,}; "
        f"{loaded.too_long or 0:,} pairs ({share:.1%}) are over data_options.max_length {loaded.limit:,}"
    )


def _pair_panel(pair: PreferencePair) -> Panel:
    parts = (("", pair.prompt.turns), ("chosen: ", pair.chosen), ("rejected: ", pair.rejected))
    text = Text("\n").join(_turn(label, turn) for label, turns in parts for turn in turns)
    return Panel(text, title=escape(pair.id), title_align="left")


def _turn(label: str, turn: Message) -> Text:
    style = {"chosen: ": "green", "rejected: ": "red"}.get(label, "")
    return Text.assemble((f"{label}{turn.role}: ", f"bold {style}"), turn.text)


def _print_findings(checked: list[tuple[_Loaded, list[Finding]]]) -> None:
    console = _console()
    for loaded, findings in checked:
        _print_summary(loaded, console)
        if not findings:
            console.print("Nothing found.")
            continue
        table = Table("severity", "finding", "rows", show_lines=True)
        for finding in findings:
            text = f"[bold]{escape(finding.check)}[/]: {escape(finding.explanation)}"
            examples = f"\n[dim]{escape(', '.join(finding.examples))}[/]" if finding.examples else ""
            table.add_row(finding.severity, text + examples, str(finding.count))
        console.print(table)
