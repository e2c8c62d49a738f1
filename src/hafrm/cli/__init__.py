"""The command line: `hafrm COMMAND`, with one thin module per command.

A command's module has `parser()`, which builds its jsonargparse parser, and `run(args)`, which does the work. Errors
that hafrm raises on purpose become one clear line on standard error and exit status 2, without a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from hafrm.errors import HafrmError

__all__ = ["main"]

COMMANDS = {
    "demo": "the whole story on the embedded world, in minutes, on a laptop",
    "pretrain": "a small causal language model from text, to start from",
    "train": "train one model: --method haf, baseline or dpo",
    "evaluate": "accuracy with intervals, beside length-only and random",
    "score": "JSON lines in, rewards out",
    "sample": "several responses to each prompt from a causal language model",
    "best-of-n": "the best of several responses by each scorer, and what selection is worth",
    "judge": "verdicts of a judge on two, four or eight responses",
    "rlhf": "train a policy against any reward model: PPO, or GRPO and RLOO by TRL",
    "serve": "a model's rewards over HTTP, in the protocols that trainers speak",
    "export": "pure reward/ and policy/ checkpoints that other programs load",
    "data": "list, show and check data sets",
    "reproduce": "a table or figure of the paper, and its claims",
}

STOPPED = {
    "demo": "the same command goes on from the last checkpoint",
    "pretrain": "the same command goes on from the last checkpoint",
    "train": "the same command goes on from the last checkpoint",
    "evaluate": "the same command goes on after the last scored pairs",
    "score": "no --out file was written, and the same command begins again",
    "sample": "the same command goes on after the last batch",
    "best-of-n": "the same command goes on after the last scored prompts",
    "judge": "the same command goes on after the last verdict, and asks nothing that was answered",
    "rlhf": "the same command goes on from the last checkpoint",
    "serve": "requests in flight were answered",
    "export": "no folder was left half written, and the same command begins again",
    "data": "nothing was changed",
    "reproduce": "the same command goes on where it stopped",
}
"""Message after Ctrl-C: what remains of a command's work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in argv if not word.startswith("-")), None)
    parser = ArgumentParser(prog="hafrm", description="Reward models by hybrid alignment.")
    commands = parser.add_subcommands(required=True, dest="command")
    for command, text in COMMANDS.items():
        if command == name:  # only import the command that runs, since the import loads torch
            module = importlib.import_module(f"hafrm.cli.{command.replace('-', '_')}")
            commands.add_subcommand(command, module.parser(), help=text)
        else:
            commands.add_subcommand(command, ArgumentParser(), help=text)
    args = parser.parse_args(argv)  # exits with status 2 and the usage if the command line is invalid
    command = str(args.command)
    try:
        status: int = module.run(args[command]) or 0
        sys.stdout.flush()  # raises here if the reader has closed the pipe
        return status
    except HafrmError as error:
        print(f"hafrm {command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print(f"hafrm {command}: stopped; {STOPPED[command]}", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"hafrm {command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
