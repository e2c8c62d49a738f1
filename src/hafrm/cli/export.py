"""`hafrm export`: write pure stock checkpoints of a run's two heads, with model cards."""

from __future__ import annotations

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import options_of, parser_of
from hafrm.models.options import ExportConfig

parser = parser_of(ExportConfig, positional="run")


def run(args: Namespace) -> None:
    """Export, and list what was written."""
    config = options_of(ExportConfig, parser(), args, models=("run",))
    from hafrm.models.export import export

    console = Console()
    for folder in export(config):
        console.print(f"wrote {folder}", highlight=False)
