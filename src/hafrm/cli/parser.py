"""The parser of a command: dashes or underscores in names, flags without values, and usage and errors in one line.

jsonargparse does the parsing; this module prepares its input and rewrites its error messages.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from hafrm.errors import ConfigError
from hafrm.options import choices, described, listed, nearest

_BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")

_VALUE = re.compile(r'Parser key "(?P<key>[\w.]+)"(?: element \d+)?:.*(?:Got|Given) value: (?P<value>.*)', re.DOTALL)
_UNEXPECTED = re.compile(r"(?:does not accept option|Option|[Kk]ey) '(?P<key>[\w.-]+)'")
_UNREAD = re.compile(r"Parser key \"(?P<key>[\w.]+)\":\s+Unable to load config '(?P<value>.*?)'")
_CHOICE = re.compile(r"argument (?P<name>\S+): invalid choice: '(?P<given>.*?)' \(choose from (?P<known>.*)\)")

_LARGEST = 100_000
"""Maximum number of nodes of a YAML text whose aliases are written out."""

_SHORT = {"lr": "learning_rate", "epochs": "num_train_epochs", "steps": "max_steps"}
"""Usual short names of options."""


def _load(text: str) -> Any:
    """Read YAML; raise YAMLError if it is invalid, repeats a key, whose last value would silently be kept, or can't be
    written without aliases in reasonable length.
    """
    try:
        _expanded_size(yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {})
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from None
    return _lenient(text)


def _expanded_size(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """Return the number of nodes under a node, counting what an alias refers to each time; raise as `_load` does."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # until its children are counted: one of them may be an alias of the node
        if isinstance(node, yaml.MappingNode):
            _require_unique_keys(node)
        children = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_expanded_size(each, sizes) for each in children)
    if sizes[id(node)] > _LARGEST:
        problem = "its aliases contain themselves or make it too large"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return sizes[id(node)]


def _require_unique_keys(node: yaml.MappingNode) -> None:
    names: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in names:
            problem = f"{key.value} is given twice; remove one, such as that"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        names.add(key.value)


_lenient = get_loader("yaml")
set_loader("yaml", _load, (yaml.YAMLError,))  # jsonargparse reads nested options only in its own modes


class _Formatter(DefaultHelpFormatter):
    """A help whose usage names only what a command needs; the help lists its options anyway."""

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None = None
    ) -> None:
        if usage is None and prefix is None:  # a prefix other than argparse's own: the name of a subcommand
            actions = list(actions)
            positional = [each for each in actions if not each.option_strings]
            required = [each for each in actions if each.option_strings and each.required]
            usage = " ".join(["%(prog)s", *map(_written_argument, positional + required), "[options]"])
        super().add_usage(usage, actions, groups, prefix)


class Parser(ArgumentParser):
    """A parser whose usage and errors are one line each, with a suggestion for an unknown option.

    Attributes:
        raises: Whether errors are raised, for options from Python, rather than printed with exit status 2.
    """

    raises = False

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, **options)

    def words(self, argv: Sequence[str]) -> list[str]:
        """Prepare a command's words for parsing: underscores in names, and `true` for flags without a value.

        Exits with status 2 if an option is unknown.
        """
        words: list[str] = []
        rest = [*argv]
        while rest:
            word = rest.pop(0)
            if not re.match(r"--[A-Za-z]", word):
                words.append(word)
                continue
            name, equals, value = word.partition("=")
            if name not in self._option_string_actions:
                name = name.replace("-", "_").replace("__", "--", 1)
                self._require_known(name)
            if self._is_list(name):
                items = [value] if equals else self._values(rest)
                words += [name, *([_written_list(items)] if items else [])]
            elif not equals and self._is_flag(name, rest[0] if rest else None):
                words.append(f"{name}=true")
            else:
                words.append(f"{name}{equals}{value}")
        return words

    def _groups(self) -> set[str]:
        """Return the names of options whose values are mappings."""
        opened = {name.removeprefix("--") for name, kind in self.names().items() if kind and _is_open(kind)}
        return opened | {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}

    def _has_positionals(self) -> bool:
        return any(not action.option_strings for action in self._actions)

    def _is_list(self, name: str) -> bool:
        """Return whether an option's value is one word that is a list: `[a, b]`."""
        action = self._option_string_actions.get(name)
        return action is not None and action.nargs is None and _has_list(action)

    def _values(self, rest: list[str]) -> list[str]:
        """Take a list's words, `a b`; only the first if the next one may be a positional argument."""
        items: list[str] = []
        while rest and not rest[0].startswith("--") and not (items and self._has_positionals()):
            items.append(rest.pop(0))
        return items

    def _is_flag(self, name: str, following: str | None) -> bool:
        """Return whether an option has no value: a boolean, or a field of an open mapping before the next option."""
        action = self._option_string_actions.get(name)
        if action is not None:
            is_boolean = bool in choices(getattr(action, "_typehint", None))
            is_alone = following is None or following.startswith("--") or self._has_positionals()
            return is_boolean and is_alone and (following or "--").lower() not in _BOOLEANS
        return name not in self.names() and (following is None or following.startswith("--"))

    def names(self) -> dict[str, Any]:
        """Return all options, such as `--loss.beta`, with their types; open mappings accept additional names."""
        found: dict[str, Any] = {}
        for name, action in self._option_string_actions.items():
            if name.startswith("--") and action.help != argparse.SUPPRESS and ".help" not in name:
                kind = getattr(action, "_typehint", None)
                found[name] = kind
                for each in filter(is_dataclass, choices(kind)):
                    found |= _nested(each, name)
        return found

    def require_values(self, args: Any) -> None:
        """Exit with status 2 if an option is null that needs a value, as jsonargparse allows."""
        for name, kind in self.names().items():
            dest = name.removeprefix("--")
            if kind is not None and type(None) not in get_args(kind) and args.get(dest, kind) is None:
                self.error(f"{name} must be {described(kind)}, got null")

    def _require_known(self, name: str) -> None:
        names = self.names()
        parent, _, field = name.partition(".")
        opened = any(name.startswith(f"{each}.") and _is_open(kind) for each, kind in names.items())
        if name in names or (opened and (parent != "--training" or field.partition(".")[0] in training_fields())):
            return
        self.error(f"there is no option {name}.{self._suggestion(name.removeprefix('--'))}")

    def _suggestion(self, name: str) -> str:
        """Suggest options whose whole name or last part is similar to an unknown one; empty if there are none."""
        known = [each.removeprefix("--") for each in self.names() if not each.endswith("+")]  # `--name+` appends
        if "training" in known:
            known += [f"training.{field}" for field in training_fields()]
        name = _SHORT.get(name, name)
        last = name.rpartition(".")[2]
        near = [each for each in known if each.rpartition(".")[2] == last]
        near = near or get_close_matches(name, known, n=3, cutoff=0.75)
        near = near or [each for each in known if each.endswith(f"_train_{last}")]
        if not near:
            parts = {each.rpartition(".")[2]: each for each in known}
            near = [parts[each] for each in get_close_matches(last, parts, n=2, cutoff=0.7)]
        return f" Did you mean {' or '.join(f'--{each}' for each in near[:3])}?" if near else ""

    def _apply_actions(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Read `data: train.jsonl`, in a file or dictionary, as a list of one if the option takes several values, and
        `score:` without a value as no options of this group.
        """
        if isinstance(cfg, dict):
            groups = self._groups()
            cfg = {name: value for name, value in cfg.items() if value is not None or name not in groups}
            several = {action.dest for action in self._actions if action.nargs == "+" or _has_list(action)}
            for name, value in cfg.items():
                wrong = dict | int | float if name in several else list | int | float
                if name in several | groups and isinstance(value, wrong):
                    raise TypeError(f'Parser key "{name}": Got value: {value}')  # jsonargparse would fail unclearly
            cfg = {
                name: [value] if name in several and isinstance(value, str) else value for name, value in cfg.items()
            }
        return super()._apply_actions(cfg, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print an error as one line and exit with status 2."""
        text = self._reworded(message)
        if self.raises:
            raise ConfigError(f"{text.removeprefix('--')}{'' if text.endswith(('?', '.')) else '.'}") from ex
        text += "" if text.endswith(("?", ".")) else "."
        print(f"{self.prog}: {text} `{self.prog} --help` lists the options.", file=sys.stderr)  # noqa: T201
        self.exit(2)

    def _reworded(self, message: str) -> str:
        if refused := _VALUE.search(message):
            key, value = refused["key"], refused["value"].strip().splitlines()[0]
            kinds = self.names() | {f"--{group}": dict for group in self._groups()}
            kinds |= {action.dest: str for action in self._actions if not action.option_strings}
            name = key if key in kinds else f"--{key}"
            if (kind := kinds.get(name)) is not None:
                return f"{name} must be {described(kind)}, got {value}{nearest(kind, value)}"
        if unread := _UNREAD.search(message):
            return f"--{unread['key']} must be a mapping, or the path of a file with one, got {unread['value']}"
        if unexpected := _UNEXPECTED.search(message):
            key = unexpected["key"]
            return f"--config has {key}, which is not an option.{self._suggestion(key)}".rstrip(".")
        if "required" in message:
            return f"missing: {', '.join(self._required(message))}"
        if message.startswith("unrecognized arguments:"):
            left = message.removeprefix("unrecognized arguments:").strip()
            if left[0] != "-":
                return f"{left} is left over"
            name = left.split()[0].partition("=")[0]
            return f"there is no option {name}.{self._suggestion(name.lstrip('-'))}".rstrip(".")
        if choice := _CHOICE.search(message):
            words = re.findall(r"'([^']*)'", choice["known"])
            return f"{choice['name']} must be {listed(words)}, got {choice['given']}"
        if missing := re.search(r"File does not exist: '(.*)'", message):
            return f"--config {missing[1]}: no such file"
        if "Unexpected config:" in message:
            return "--config must contain options as `name: value`, such as `model: MODEL`"
        message = message.replace("Problems parsing config", "--config can't be read")
        message = message.replace('in "<unicode string>", ', "at ")
        message = re.sub(r"^argument ([^\s/]+)\S*: expected .*argument", r"\1 needs a value", message)
        lines = (line.strip() for line in message.removeprefix("argument ").splitlines())
        return " ".join(filter(None, lines)).rstrip(".")

    def _required(self, message: str) -> Iterator[str]:
        """Yield the missing options as they are written."""
        positional = {action.dest for action in self._actions if not action.option_strings}
        for name in re.findall(r"[\w.]+", message.partition(":")[2]):
            yield name.upper() if name in positional else f"--{name}"


@cache
def training_fields() -> tuple[str, ...]:
    """Return the names of the fields of transformers' TrainingArguments, from its source: its import takes seconds."""
    package = find_spec("transformers")
    assert package is not None
    source = Path((package.submodule_search_locations or [""])[0]) / "training_args.py"
    body = ast.parse(source.read_text(encoding="utf-8")).body
    (found,) = (each for each in body if isinstance(each, ast.ClassDef) and each.name == "TrainingArguments")
    fields_of = (each.target for each in found.body if isinstance(each, ast.AnnAssign))
    return tuple(target.id for target in fields_of if isinstance(target, ast.Name))


def _written_argument(action: argparse.Action) -> str:
    """Write an argument as usages do: `MODEL...` or `--out OUT`."""
    name = action.dest.rpartition(".")[2].upper()
    if action.choices and action.nargs is None and not action.option_strings:
        name = f"{{{','.join(map(str, action.choices))}}}"
    if action.nargs in ("+", "*"):
        name = f"{name.removesuffix('S')}..."
    if action.nargs == "*":
        name = f"[{name}]"
    return " ".join([*action.option_strings[:1], name])


def _nested(kind: Any, name: str) -> dict[str, Any]:
    """Return the options below an optional group of options."""
    hints = get_type_hints(kind)
    return {f"{name}.{each.name}": hints[each.name] for each in fields(kind)}


def _has_list(action: argparse.Action) -> bool:
    return any(get_origin(kind) is list for kind in choices(getattr(action, "_typehint", None)))


def _is_open(kind: Any) -> bool:
    return any(get_origin(each) is dict or each is dict for each in choices(kind))


def _written_list(items: Sequence[str]) -> str:
    """Write words as the list that jsonargparse reads; a single word may already be a list, or contain commas."""
    if len(items) == 1 and items[0].lstrip().startswith("["):
        return items[0]
    return f"[{', '.join(each.strip(' ,') for each in items)}]"
