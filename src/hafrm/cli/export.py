"""`hafrm export`: write pure stock checkpoints of a run's two heads, with model cards."""

from __future__ import annotations

from functools import cache

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.cli.parser import Parser
from hafrm.models.options import ExportConfig


@cache
def parser() -> Parser:
    """Build the command's parser."""
    return command_parser(ExportConfig, positional="run")


def run(args: Namespace) -> None:
    """Export, and list what was written."""
    config = options_of(ExportConfig, parser(), args, models=("run",))
    from hafrm.models.export import export

    console = Console()
    for folder in export(config):
        console.print(f"wrote {folder}", highlight=False)
