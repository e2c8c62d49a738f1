"""`hafrm score`: add rewards to rows."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser, Namespace

from hafrm.cli.options import command_parser, config_files, options_of
from hafrm.errors import DataError
from hafrm.evaluation.bulk import ScoreConfig, score_rows


def parser() -> ArgumentParser:
    """Build the command's parser."""
    return command_parser(ScoreConfig, positional="model")


def run(args: Namespace) -> None:
    """Score, and print how many rows have no reward, and why."""
    config = options_of(ScoreConfig, parser(), args)
    counts = score_rows(config, config_files=config_files(args))
    lost = ", ".join(f"{count} {reason}" for reason, count in counts.unscored.items())
    print(f"{counts.scored} rows scored" + (f"; without a reward: {lost}" if lost else ""), file=sys.stderr)  # noqa: T201
    if counts.note:
        print(counts.note, file=sys.stderr)  # noqa: T201
    if not counts.scored:
        raise DataError(f"No row of {config.data} has a reward{f': {lost}' if lost else ', as it has no rows'}.")
