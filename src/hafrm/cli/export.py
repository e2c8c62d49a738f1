"""`hafrm export`: write pure stock checkpoints of a run's two heads, with model cards."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.models.export import ExportConfig, export


def parser() -> ArgumentParser:
    """Build the command's parser."""
    return command_parser(ExportConfig, positional="run")


def run(args: Namespace) -> None:
    """Export, and list what was written."""
    console = Console()
    for folder in export(options_of(ExportConfig, parser(), args)):
        console.print(f"wrote {folder}", highlight=False)
