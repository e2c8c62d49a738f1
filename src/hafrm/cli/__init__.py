"""The command line: `hafrm COMMAND`, with one thin module per command.

A command's module has `parser()`, which builds its jsonargparse parser once, and `run(args)`, which does the work.
Errors that hafrm raises on purpose become one clear line on standard error and exit status 2, without a traceback.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec

from hafrm.cli.parser import Parser
from hafrm.errors import HafrmError

__all__ = ["main"]

COMMANDS = {
    "demo": "end-to-end demo on built-in simulated data (about 4 minutes)",
    "pretrain": "train a small causal language model from scratch, as a base model",
    "train": "train one model: --method haf, baseline, dpo or grm",
    "evaluate": "accuracy of reward models, with confidence intervals",
    "score": "add rewards to a file of responses or pairs",
    "probe": "biases of reward models and judges: length, markdown, flattery, sycophancy, refusals, rewrites",
    "sample": "sample several responses per prompt from a causal language model",
    "best-of-n": "select the best of several responses with each reward model, and measure the gain",
    "judge": "ask a judge which of two, four or eight responses is better",
    "rlhf": "train a policy on any reward: PPO, or GRPO and RLOO through TRL",
    "serve": "serve rewards over HTTP, in the protocols of OpenRLHF, LLaMA-Factory and vLLM",
    "doctor": "find signs that a training run does not learn, with the likely cause",
    "export": "write plain reward/ and policy/ checkpoints for other programs",
    "data": "list, show and check data sets",
    "reproduce": "reproduce a table or figure of the paper",
}

_SHELLS = ("bash", "zsh", "tcsh")

_DESCRIPTION = "Train and compare reward models: plain, DPO, or the hybrid of the paper HAF-RM (Liu et al., ACL 2025)."

_EPILOG = (
    "`hafrm COMMAND --help` explains a command. Names of options may have dashes or underscores. For example: "
    "hafrm train --model MODEL --data train.jsonl --eval-data valid.jsonl --out runs/mine"
)

STOPPED = {
    "demo": "the same command resumes from the last checkpoint",
    "pretrain": "the same command resumes from the last checkpoint",
    "train": "the same command resumes from the last checkpoint",
    "evaluate": "the same command resumes after the last scored pairs",
    "score": "no --out file was written, and the same command starts over",
    "probe": "nothing was written, and the same command starts over",
    "sample": "the same command resumes after the last batch",
    "best-of-n": "the same command resumes after the last scored prompts",
    "judge": "the same command resumes after the last verdict, and asks nothing that was answered",
    "rlhf": "the same command resumes from the last checkpoint",
    "serve": "requests in flight were answered",
    "doctor": "nothing was changed",
    "export": "no folder was left half written, and the same command starts over",
    "data": "nothing was changed",
    "reproduce": "the same command resumes where it stopped",
}
"""Message after Ctrl-C: what remains of a command's work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv else ""
    if command not in COMMANDS:
        return _without_command(argv)
    _escape_unprintable()
    try:
        module = importlib.import_module(f"hafrm.cli.{command.replace('-', '_')}")
        parser: Parser = module.parser()
        parser.prog = f"hafrm {command}"
        args = parser.parse_args(parser.words(argv[1:]))  # exits with status 2 if the command line is invalid
        status: int = module.run(args) or 0
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


def _escape_unprintable() -> None:
    """Let output show characters that the terminal's encoding lacks, and bytes of file names, as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error does so by default
        sys.stdout.reconfigure(errors="backslashreplace")


def _without_command(argv: Sequence[str]) -> int:
    """Print what was asked of hafrm itself: help, the version, or a shell's completions."""
    parser = Parser(prog="hafrm", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"hafrm {version('hafrm')}")
    parser.add_argument(
        "--completion", choices=_SHELLS, default=SUPPRESS, help="Print a script that completes commands and options."
    )
    commands = parser.add_subcommands(required=False, dest="command")
    wanted = "--completion" in " ".join(argv)
    for command, text in COMMANDS.items():  # a command's own parser is only built if its options are printed
        made = importlib.import_module(f"hafrm.cli.{command.replace('-', '_')}").parser() if wanted else Parser()
        commands.add_subcommand(command, made, help=text)
    if argv and not argv[0].startswith("-"):
        near = get_close_matches(argv[0], COMMANDS, n=1)
        parser.error(f"there is no command {argv[0]}.{f' Did you mean {near[0]}?' if near else ''}")
    shell = parser.parse_args(argv).get("completion")
    if shell is None:
        parser.print_help()
        return 0 if argv else 2
    if find_spec("shtab") is None:
        parser.error("--completion needs shtab: pip install shtab")
    print(parser.get_completion_script(f"shtab-{shell}"))  # noqa: T201
    return 0
