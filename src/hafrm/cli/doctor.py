"""`hafrm doctor`: signs in a run's metrics that it does not learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from hafrm.atomic import json_text
from hafrm.cli.options import options_of, parser_of


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look for signs in a run's metrics that it does not learn, each with the likely cause and the option to try."""

    run: str
    """The run's folder, finished or not."""

    json: bool = False
    """Print the findings as JSON: a list of check, step and text."""


parser = parser_of(DoctorConfig, positional="run", flags=("json",))


def run(args: Namespace) -> None:
    """Print the findings, one line each."""
    config = options_of(DoctorConfig, parser(), args, models=("run",))
    from hafrm.training.doctor import FIRST_LOOK, examine

    watch = examine(Path(config.run))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if config.json:
        print(json_text([each.as_dict() for each in watch.found.values()], indent=2))  # noqa: T201
        return
    for each in watch.found.values():
        console.print(f"step {each.step}: {each.check}: {each.text}.")
    if watch.found:
        return
    if watch.pairs < FIRST_LOOK:
        console.print(
            f"{config.run} has trained on {watch.pairs} pairs so far: at least {FIRST_LOOK} are needed for a verdict."
        )
    else:
        console.print(f"No sign that {config.run} does not learn, in {watch.pairs:,} pairs.")
