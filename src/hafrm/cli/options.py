"""Convert a frozen dataclass of options to a command's parser and back; its field docstrings are the help."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, Namespace, set_parsing_settings  # type: ignore[attr-defined]

from hafrm.cli.parser import Parser
from hafrm.data import require_source
from hafrm.data.simulated import is_simulated
from hafrm.errors import ConfigError
from hafrm.models.remote import is_server
from hafrm.models.sources import require_place

Options = TypeVar("Options")

_ADDRESS = re.compile(r"[\w.-]+:\d+(/.*)?")
"""Matches a server's address without its protocol, such as `localhost:8000`, which can't be a model's name."""

_THE_PAPER = "In this help, the paper is HAF-RM (Liu et al., ACL 2025)."

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _ConfigFile(ActionConfigFile):
    """The `--config` option: a file, or a pipe that is already open."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if _may_wait(Path(values)):
            raise TypeError(f"--config {values} is not a regular file. Give the path of a YAML or JSON file.")
        try:
            super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        except UnicodeDecodeError as error:
            raise TypeError(f"--config {values} is not a text file. Give the path of a YAML or JSON file.") from error


def _may_wait(path: Path) -> bool:
    """Return whether reading may block forever; an open pipe, as in `--config <(command)`, already has a writer."""
    try:
        opened = path.parent in (Path("/dev/fd"), Path("/proc/self/fd")) or path == Path("/dev/stdin")
        return path.exists() and not path.is_file() and not opened
    except OSError:  # a config given as text, longer than any name
        return False


def command_parser(
    options: type[Any], *, positional: str | None = None, lists: Sequence[str] = (), flags: Sequence[str] = ()
) -> Parser:
    """Build the parser of a command whose options are a dataclass.

    Args:
        options: The dataclass.
        positional: The field that is the command's positional argument.
        lists: Fields that take several values: `--data A B`.
        flags: Fields that a bare `--name` sets.
    """
    parser = Parser(description=(options.__doc__ or "").partition("Example:")[0].strip())
    parser.add_argument(
        "--config", action=_ConfigFile, help="Read options from a YAML file; later options override it."
    )
    docs = {item.arg_name: item.description or "" for item in parse_from_object(options).params}
    by_name = {field.name: field for field in fields(options)}
    hints = get_type_hints(options)
    if positional:
        several = "+" if _required(by_name[positional]) else "*"
        parser.add_argument(positional, nargs=several if positional in lists else None, help=docs.get(positional))
    for name in (name for name in lists if name != positional):
        kind = _item_type(hints[name])
        if _required(by_name[name]):
            parser.add_argument(f"--{name}", nargs="+", type=kind, required=True, help=docs.get(name))
        else:
            default = by_name[name].default_factory()  # type: ignore[operator]
            parser.add_argument(f"--{name}", nargs="+", type=kind, default=default, help=docs.get(name))
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=docs.get(name))
    parser.add_class_arguments(options, skip={*lists, *flags, *([positional] if positional else [])})
    if any("paper" in (text or "") for text in (parser.description, *(each.help for each in parser._actions))):
        parser.description = f"{parser.description} {_THE_PAPER}"
    return parser


def parser_of(options: type[Any], **arguments: Any) -> Callable[[], Parser]:
    """Return a function that returns a command's parser, built at the first call; see `command_parser`."""
    return cache(partial(command_parser, options, **arguments))


def _item_type(hint: Any) -> Any:
    """Return the type of a list's items; the Python API may take other values than lists too."""
    return next(get_args(each)[0] for each in (hint, *get_args(hint)) if get_origin(each) is list)


def options_of(
    options: type[Options],
    parser: Parser,
    args: Namespace,
    *,
    models: Sequence[str] = ("model",),
    data: Sequence[str] = (),
    made: Mapping[str, Any] | None = None,
) -> Options:
    """The dataclass that a parsed command line describes; its own checks raise `ConfigError`.

    Args:
        options: The dataclass.
        parser: The command's parser.
        args: What it parsed.
        models: Fields that name models: folders that don't exist are refused before torch is loaded.
        data: Fields with data names, which are also checked before torch is loaded.
        made: Values of fields that were not parsed.
    """
    parser.require_values(args)
    _refuse_nameless(args, [*models, *data, "out"])
    for name in _named(args, data):
        require_source(name)
    for name in _named(args, models):
        if _ADDRESS.fullmatch(name) and not Path(name).exists():
            raise ConfigError(f"{name} is neither a folder nor a hub id. For a server, write http://{name}.")
        if not is_server(name) and not is_simulated(name):
            require_place(name)
    values = parser.instantiate(args)
    return options(**{field.name: values[field.name] for field in fields(options)} | dict(made or {}))  # type: ignore[arg-type]


def _named(args: Namespace, options: Sequence[str]) -> Iterator[str]:
    """Yield the names in these options, each of which has one or several."""
    for option in options:
        value = args.get(option)
        yield from [value] if isinstance(value, str) else value or []


def _refuse_nameless(args: Namespace, places: Sequence[str]) -> None:
    """Raise for values with a zero byte, and for options that name models, data or folders (`places`) but are empty."""
    for name, value in vars(args.as_flat()).items():
        if "\0" in str(value):
            raise ConfigError(f"--{name} contains a zero byte. Remove it.")
    for option in places:
        if any(not str(name).strip() for name in _named(args, [option])):
            raise ConfigError(f"{option} is empty. Give a name or a path.")


def config_files(args: Namespace) -> list[str]:
    """The files that a parsed command line names with `--config`."""
    return [str(path) for path in args.config or [] if path is not None]


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
