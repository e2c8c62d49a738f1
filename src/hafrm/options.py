"""Declare ranges of options, and the choices for which they have an effect, with their fields; and check them.

@dataclass(frozen=True, kw_only=True)
class Options:
method: str = "ppo"
clip: float = option(0.2, above=0, only=("ppo",))

def __post_init__(self) -> None:
check(self)
refuse_unread(self, self.method, f"--method {self.method}")
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hafrm.errors import ConfigError

T = TypeVar("T")

_RULE = "hafrm.rule"


@dataclass(frozen=True)
class _Rule:
    """Limits of an option's value, and the choices for which it has an effect."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    only: Collection[str] | None = None

    def allows(self, value: float) -> bool:
        """Return whether a number is within the limits."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {limit}" for words, limit in limits.items() if limit is not None)


def option(
    default: T,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    only: Collection[str] | None = None,
) -> T:
    """Declare a dataclass field with its rules.

    Args:
        default: The default value. None is valid with any limits.
        least: Smallest number.
        above: Number that the value must exceed.
        most: Largest number.
        below: Number that the value must stay below.
        only: The choices for which the option has an effect; see `refuse_unread`.
    """
    return field(default=default, metadata={_RULE: _Rule(least, above, most, below, only)})


def check(options: Any, prefix: str = "") -> None:
    """Raise ConfigError unless every number is finite and within the limits of its field, and every `Literal` has one
    of its values.

    Args:
        options: A dataclass; nested ones check themselves.
        prefix: Prefix of names in messages, such as "sampling.".
    """
    types = get_type_hints(type(options))
    for each in fields(options):
        value, rule = getattr(options, each.name), each.metadata.get(_RULE, _Rule())
        if get_origin(types[each.name]) is Literal and value not in (words := get_args(types[each.name])):
            raise ConfigError(f"{prefix}{each.name} must be one of {', '.join(map(str, words))}, got {value!r}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise ConfigError(f"{prefix}{each.name} must be a finite number, got {value}")
        if not rule.allows(value):
            raise ConfigError(f"{prefix}{each.name} must be {rule}, got {value}")


def refuse_unread(options: Any, choice: str, where: str, prefix: str = "") -> None:
    """Raise ConfigError for an option that was changed from its default but has no effect with the user's choice.

    Args:
        options: A dataclass; nested ones are included.
        choice: The user's choice, such as an algorithm; fields declare the choices for which they have an effect.
        where: The choice in words, for messages.
        prefix: Prefix of names in messages.
    """
    for name in _unread(options, choice, prefix):
        raise ConfigError(f"{name} has no effect with {where}: leave it out.")


def _unread(options: Any, choice: str, prefix: str) -> Iterator[str]:
    for each in fields(options):
        value, only = getattr(options, each.name), each.metadata.get(_RULE, _Rule()).only
        if is_dataclass(value):
            yield from _unread(value, choice, f"{prefix}{each.name}.")
        elif only is not None and choice not in only and value != each.default:
            yield f"{prefix}{each.name}"


def command_line(command: str, kind: type[Any], values: Mapping[str, Any], *, positional: str = "") -> str:
    """Return the line for a shell that sets a command's options, without those that have their default value.

    Args:
        command: The command, such as "hafrm train".
        kind: The dataclass of its options.
        values: Their values, groups of them as dictionaries: what `asdict` returns.
        positional: The option that is the positional argument.
    """
    words = [*command.split(), *_words(values.get(positional, []))]
    given, plain = (json.loads(json.dumps(each)) for each in (values, _defaults(kind)))  # tuples become lists
    for name, value in differences(given, plain):
        if name != positional:
            words += [f"--{name}", *(_words(value) if name in values else [_word(value)])]
    return shlex.join(words)


def differences(values: Mapping[str, Any], plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options that differ between two sets of values, by their command-line names."""
    for name, value in values.items():
        before = plain.get(name, MISSING)
        if isinstance(value, dict):
            yield from differences(value, before if isinstance(before, dict) else {}, f"{prefix}{name}.")
        elif value != before:
            yield prefix + name, value


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass, groups as dictionaries; without the fields that have none."""
    made = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory() for each in fields(kind)
    }
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in made.items()
        if value is not MISSING
    }


def _words(value: Any) -> list[str]:
    return [_word(each) for each in value] if isinstance(value, list | tuple) else [_word(value)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
