"""`hafrm score`: add rewards to rows."""

from __future__ import annotations

import sys

from jsonargparse import Namespace

from hafrm.cli.options import config_files, options_of, parser_of
from hafrm.errors import DataError
from hafrm.evaluation.options import ScoreConfig

parser = parser_of(ScoreConfig, positional="model", flags=("tokens",))


def run(args: Namespace) -> None:
    """Score, and print how many rows have no reward, and why."""
    config = options_of(ScoreConfig, parser(), args, models=("model", "reference"), data=("data",))
    from hafrm.evaluation.bulk import score_rows

    counts = score_rows(config, config_files=config_files(args))
    lost = ", ".join(f"{count} {reason}" for reason, count in counts.unscored.items())
    print(f"{counts.scored} rows scored" + (f"; without a reward: {lost}" if lost else ""), file=sys.stderr)  # noqa: T201
    if counts.altered:
        print(f"{counts.altered} rows have NaN or infinity, which JSON lacks: written as null", file=sys.stderr)  # noqa: T201
    if counts.note:
        print(counts.note, file=sys.stderr)  # noqa: T201
    empty_part = config.shard is not None and not lost  # there are more shards than rows
    if not counts.scored and not empty_part:
        raise DataError(f"No row of {config.data} has a reward{f': {lost}' if lost else ', as it has no rows'}.")
