"""`hafrm serve`: serve a model with the protocols of trainers and rerankers."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from hafrm.cli.options import command_parser, options_of
from hafrm.serving.config import ServeConfig
from hafrm.serving.run import serve


def parser() -> ArgumentParser:
    """Build the command's parser."""
    return command_parser(ServeConfig, positional="model")


def run(args: Namespace) -> None:
    """Serve until interrupted."""
    serve(options_of(ServeConfig, parser(), args))
