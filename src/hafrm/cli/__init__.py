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
    "demo": "end-to-end demo on built-in simulated data (about 5 minutes)",
    "pretrain": "train a small causal language model from scratch, as a base model",
    "train": "train one model: --method haf, baseline or dpo",
    "evaluate": "accuracy of reward models, with confidence intervals",
    "score": "add rewards to a file of responses or pairs",
    "sample": "sample several responses per prompt from a causal language model",
    "best-of-n": "select the best of several responses with each reward model, and measure the gain",
    "judge": "ask a judge which of two, four or eight responses is better",
    "rlhf": "train a policy on any reward: PPO, or GRPO and RLOO through TRL",
    "serve": "serve rewards over HTTP, in the protocols of OpenRLHF, LLaMA-Factory and vLLM",
    "export": "write plain reward/ and policy/ checkpoints for other programs",
    "data": "list, show and check data sets",
    "reproduce": "reproduce a table or figure of the paper",
}

STOPPED = {
    "demo": "the same command resumes from the last checkpoint",
    "pretrain": "the same command resumes from the last checkpoint",
    "train": "the same command resumes from the last checkpoint",
    "evaluate": "the same command resumes after the last scored pairs",
    "score": "no --out file was written, and the same command starts over",
    "sample": "the same command resumes after the last batch",
    "best-of-n": "the same command resumes after the last scored prompts",
    "judge": "the same command resumes after the last verdict, and asks nothing that was answered",
    "rlhf": "the same command resumes from the last checkpoint",
    "serve": "requests in flight were answered",
    "export": "no folder was left half written, and the same command starts over",
    "data": "nothing was changed",
    "reproduce": "the same command resumes where it stopped",
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
