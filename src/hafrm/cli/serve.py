"""`hafrm serve`: serve a model with the protocols of trainers and rerankers."""

from __future__ import annotations

from jsonargparse import Namespace

from hafrm.cli.options import command_parser, options_of
from hafrm.cli.parser import Parser
from hafrm.serving.config import ServeConfig


def parser() -> Parser:
    """Build the command's parser."""
    return command_parser(ServeConfig, positional="model")


def run(args: Namespace) -> None:
    """Serve until interrupted."""
    config = options_of(ServeConfig, parser(), args, models=("model", "reference"))
    from hafrm.serving.run import serve

    serve(config)
