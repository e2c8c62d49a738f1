"""`hafrm export`: write pure stock checkpoints of a run's two heads, with model cards."""

from __future__ import annotations

from jsonargparse import Namespace

from hafrm.cli.options import options_of, parser_of
from hafrm.models.options import ExportConfig

parser = parser_of(ExportConfig, positional="run")


def run(args: Namespace) -> None:
    """Export, and list what was written."""
    config = options_of(ExportConfig, parser(), args, models=("run",))
    from hafrm.models.export import export

    for folder in export(config):
        print(f"wrote {folder}")  # noqa: T201
