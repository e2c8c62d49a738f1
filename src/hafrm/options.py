"""Declare ranges of options, and the choices for which they have an effect, with their fields; and check them.

Types are checked too: a dataclass built in Python is refused in the same words as a command line.

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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hafrm.errors import ConfigError

T = TypeVar("T")

_RULE = "hafrm.rule"

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
    list: "a list",
}
_NUMBERS: Mapping[Any, Any] = {int: Integral, float: Real}
"""What fits an annotation, including numpy's numbers."""

_MANY = 20
"""Number of words above which a message does not list them, if it can suggest one."""

_LISTS = (list, tuple, Sequence)


@dataclass(frozen=True)
class Rule:
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
    return field(default=default, metadata=limits(least=least, above=above, most=most, below=below, only=only))


def limits(**rule: Any) -> dict[str, Rule]:
    """Return the rules of a field, or of its items, as metadata; see `option`."""
    return {_RULE: Rule(**rule)}


def check(options: Any, prefix: str = "") -> None:
    """Raise ConfigError for a value that is not of its field's type, or outside the limits of its field.

    A path becomes a text where one is expected.

    Args:
        options: A dataclass; nested ones check themselves.
        prefix: Prefix of names in messages, such as "sampling.".
    """
    types = types_of(type(options))
    for each in (each for each in fields(options) if each.init):
        value, kind = getattr(options, each.name), types[each.name]
        if isinstance(value, Path) and _fits("", kind):
            object.__setattr__(options, each.name, value := str(value))
        if wrong := problem(value, kind, each.metadata.get(_RULE, Rule())):
            raise ConfigError(f"{prefix}{each.name} {wrong}")


types_of: Any = cache(get_type_hints)
"""Returns the types of a dataclass's fields."""


def problem(value: Any, kind: Any, rule: Rule | None = None) -> str:
    """Return, as a clause, what is wrong with a value or an item of it; empty if nothing is.

    A whole number is also a number; `true` and `false` are neither. Unusual annotations, such as protocols, fit any
    value.

    Args:
        value: The value.
        kind: Its annotation, or a tuple of words.
        rule: The limits of numbers, which must be finite in any case.
    """
    items = [get_args(each)[0] for each in choices(kind) if get_origin(each) in _LISTS]
    if items and isinstance(value, list | tuple):
        return next(filter(None, (problem(item, items[0], rule) for item in value)), "")
    if not _fits(value, kind):
        near = nearest(kind, value)
        if near and len(_literals(kind)) > _MANY:
            return f"can't be {value!r:.80}{near}"
        return f"must be {described(kind)}, got {value!r:.80}{near}"
    if not _fits(value, float):
        return ""
    if not is_finite(value):
        return f"must be a finite number, got {value!r:.80}"
    return "" if rule is None or rule.allows(value) else f"must be {rule}, got {value}"


def is_finite(value: float | Decimal) -> bool:
    """Return whether a number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if words := _words_of(kind):
        return any(isinstance(value, type(word)) and value == word for word in words)
    if origin in _LISTS:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if origin is dict:
        inner = get_args(kind)[1:]
        return isinstance(value, Mapping) and all(_fits(item, each) for each in inner for item in value.values())
    if kind is Any or not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True
    return isinstance(value, _NUMBERS.get(origin, origin)) and (origin is bool or not isinstance(value, bool))


def choices(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union without None, or the type itself."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(each for each in members if each is not NoneType)


def described(kind: Any) -> str:
    """Describe an option's values: its words, or "a number"."""
    if words := _literals(kind):
        return listed(words)
    names = (_KINDS.get(get_origin(each) or each, getattr(each, "__name__", str(each))) for each in choices(kind))
    return " or ".join(names)


def listed(words: Sequence[str]) -> str:
    """Join words: "a, b or c"."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def nearest(kind: Any, value: Any) -> str:
    """Suggest the word of an option that is similar to a value, as the end of a message; empty if there is none."""
    words = _literals(kind)
    starts = [word for word in words if value and word.startswith(str(value))]
    near = starts or get_close_matches(str(value), words, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def _literals(kind: Any) -> list[str]:
    return [str(word) for each in choices(kind) for word in _words_of(each)]


def _words_of(kind: Any) -> tuple[Any, ...]:
    """Return the words of a tuple, a `Literal` or an enumeration; empty for other types."""
    if isinstance(kind, tuple):
        return kind
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(each.value for each in kind)
    return get_args(kind) if get_origin(kind) is Literal else ()


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
        value, only = getattr(options, each.name), each.metadata.get(_RULE, Rule()).only
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
