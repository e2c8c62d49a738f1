"""Rules of options: ranges, words, and options without effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from hafrm.errors import ConfigError
from hafrm.options import check, option, refuse_unread


@dataclass(frozen=True, kw_only=True)
class Inner:
    clip: float = option(0.2, above=0, only=("a",))
    plain: int = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    kind: Literal["a", "b"] = "a"
    share: float | None = option(0.5, least=0, most=1)
    count: int = option(1, least=1, below=10)
    free: float = 0.0
    switch: bool = option(True, only=("b",))
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "values",
    [{}, {"share": None}, {"share": 0}, {"share": 1}, {"count": 9}, {"free": -1e9}, {"kind": "b"}, {"switch": False}],
    ids=str,
)
def test_values_at_the_limits_are_valid(values: dict[str, Any]) -> None:
    check(Options(**values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": -0.1}, "x.share must be at least 0 and at most 1, got -0.1"),
        ({"share": 1.1}, "at most 1"),
        ({"share": float("nan")}, "x.share must be a finite number"),
        ({"free": float("inf")}, "x.free must be a finite number"),
        ({"count": 10}, "below 10"),
        ({"kind": "c"}, "x.kind must be one of a, b, got 'c'"),
    ],
    ids=str,
)
def test_values_outside_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(Options(**values), "x.")


def test_the_end_above_which_a_value_must_be_is_excluded() -> None:
    with pytest.raises(ConfigError, match="clip must be above 0"):
        check(Inner(clip=0.0))


def test_options_without_effect_are_refused_also_in_nested_ones() -> None:
    refuse_unread(Options(inner=Inner(clip=0.3)), "a", "--kind a")
    refuse_unread(Options(switch=False), "b", "--kind b")
    refuse_unread(Options(inner=Inner(plain=4)), "b", "--kind b")
    with pytest.raises(ConfigError, match=r"inner\.clip has no effect with --kind b"):
        refuse_unread(Options(inner=Inner(clip=0.3)), "b", "--kind b")
    with pytest.raises(ConfigError, match=r"^x\.switch has no effect"):
        refuse_unread(Options(switch=False), "a", "--kind a", "x.")
