"""`hafrm pretrain`: a small causal language model from text, to study reward models on."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from hafrm.cli.options import command_parser, options_of
from hafrm.training.pretrain import RECIPE_FILE, PretrainConfig, pretrain

__all__ = ["parser", "run"]


def parser() -> ArgumentParser:
    """The command's options."""
    return command_parser(PretrainConfig, lists=("data",))


def run(args: Namespace) -> None:
    """Train, and say how well the model predicts."""
    config = options_of(PretrainConfig, parser(), args)
    told = Console(stderr=True)
    recipe = pretrain(config, lambda line: told.print(line, highlight=False, soft_wrap=True))
    console = Console()
    console.print(
        f"{recipe['parameters']:,} parameters, {recipe['tokens']:,} tokens, perplexity {recipe['perplexity']:.2f} on "
        f"held-out text. The model is in {config.out}, its losses in {config.out}/{RECIPE_FILE}.",
        highlight=False,
        soft_wrap=True,
    )
