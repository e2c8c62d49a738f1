"""`hafrm sample`: sample several responses to each prompt from any causal language model."""

from __future__ import annotations

import sys

from jsonargparse import Namespace

from hafrm.cli.options import options_of, parser_of
from hafrm.progress import ProgressLine
from hafrm.sampling.options import SampleConfig

parser = parser_of(SampleConfig, positional="model", lists=("data",))


def run(args: Namespace) -> None:
    """Sample, and print the numbers of drawn and missing responses."""
    config = options_of(SampleConfig, parser(), args, data=("data",))
    from hafrm.judging.rows import SAMPLES_FILE
    from hafrm.sampling.run import sample

    with ProgressLine("loading") as line:
        made = sample(
            config,
            progress=lambda done, prompts: line.show(f"sampling: {done:,} of {prompts:,} prompts done"),
            say=line.say,
        )
    lost = {**made["skipped"], **made["unsampled"]}
    parts = [
        f"{made['responses']} responses to {made['prompts']} prompts, {made['distinct']} distinct",
        f"{made['unfinished']} cut at the limit of tokens, {made['empty']} empty",
        *(f"{count} prompts left out: {reason}" for reason, count in lost.items()),
        f"{config.out}/{SAMPLES_FILE}",
    ]
    print("; ".join(parts), file=sys.stderr)  # noqa: T201
