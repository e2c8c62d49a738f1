"""Rules of options: ranges, words, and options without effect."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest

from hafrm.cli.demo import DemoConfig
from hafrm.cli.reproduce import ReproduceConfig
from hafrm.data.options import DataOptions, ReadOptions
from hafrm.errors import ConfigError
from hafrm.evaluation.options import EvaluateConfig, ProbeConfig, ScoreConfig
from hafrm.judging.options import JudgeConfig, JudgeOptions
from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions, ScorerChoice
from hafrm.options import check, option, refuse_unread
from hafrm.paper.scales import Overrides
from hafrm.paper.world.backbone import BackboneRecipe
from hafrm.pretraining.shape import LlamaShape
from hafrm.rlhf.options import GroupOptions, KlOptions, PpoOptions, RlhfConfig, SamplingOptions
from hafrm.sampling.options import BestOfNConfig, SampleConfig, SampleOptions
from hafrm.serving.config import ServeConfig
from hafrm.training.config import PretrainConfig, TrainConfig
from hafrm.training.loss import LossConfig


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
    names: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    path: str | None = None


@pytest.mark.parametrize(
    "values",
    [
        *({}, {"share": None}, {"share": 0}, {"share": 1}, {"count": 9}, {"free": -1e9}, {"kind": "b"}),
        *({"switch": False}, {"names": ["a"]}, {"names": ("a",)}, {"rates": {"a": 1}}, {"path": "p"}),
        *({"count": np.int64(3)}, {"free": np.float32(0.1)}, {"free": np.int64(3)}),
    ],
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
        ({"free": 10**400}, "x.free must be a finite number"),
        ({"kind": "c"}, "x.kind must be a or b, got 'c'"),
        ({"kind": None}, "x.kind must be a or b, got None"),
        ({"share": "0.5"}, "x.share must be a number, got '0.5'"),
        ({"share": True}, "x.share must be a number, got True"),
        ({"count": 2.0}, "x.count must be a whole number, got 2.0"),
        ({"count": True}, "x.count must be a whole number, got True"),
        ({"switch": 1}, "x.switch must be true or false, got 1"),
        ({"switch": "no"}, "x.switch must be true or false, got 'no'"),
        ({"inner": {"clip": 1}}, "x.inner must be Inner"),
        ({"names": "a"}, "x.names must be a list, got 'a'"),
        ({"names": ["a", 2]}, "x.names must be a text, got 2"),
        ({"rates": {"a": "b"}}, "x.rates must be a mapping"),
        ({"path": 3}, "x.path must be a text, got 3"),
    ],
    ids=str,
)
def test_values_outside_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(Options(**values), "x.")


def test_a_path_becomes_a_text() -> None:
    options = Options(path=Path("a/b"))  # type: ignore[arg-type]
    check(options)
    assert options.path == str(Path("a/b"))


REQUIRED: dict[type[Any], dict[str, Any]] = {
    TrainConfig: {"model": "m", "data": ["d"], "out": "o"},
    PretrainConfig: {"data": ["d"], "out": "o"},
    EvaluateConfig: {"models": ["m"], "data": ["d"], "out": "o"},
    ProbeConfig: {"models": ["m"], "data": ["d"]},
    ScoreConfig: {"model": "m", "data": "d"},
    ExportConfig: {"run": "r"},
    JudgeOptions: {"kind": "local", "model": "m"},
    JudgeConfig: {"data": "d", "out": "o", "judge": JudgeOptions(kind="local", model="m")},
    SampleConfig: {"model": "m", "data": ["d"], "out": "o"},
    BestOfNConfig: {"models": ["m"], "samples": "s", "out": "o"},
    RlhfConfig: {"model": "m", "reward": "r", "data": ["d"], "out": "o"},
    ServeConfig: {"models": ["m"]},
    ReproduceConfig: {"name": "table2"},
}
"""Options of commands that need values, with these."""
PLAIN = (
    *(LossConfig, LoraOptions, DataOptions, ReadOptions, ScoreOptions, ScorerChoice, LlamaShape, BackboneRecipe),
    *(SampleOptions, SamplingOptions, KlOptions, PpoOptions, GroupOptions, Overrides, DemoConfig),
)


@pytest.mark.parametrize("kind", [*PLAIN, *REQUIRED], ids=lambda kind: kind.__name__)
def test_every_option_refuses_values_of_other_types(kind: type[Any]) -> None:
    required = REQUIRED.get(kind, {})
    kind(**required)
    for each in fields(kind):
        if "Any" not in str(get_type_hints(kind)[each.name]):
            with pytest.raises(ConfigError, match=rf"^(\w+\.)?{each.name}( must be|: can't read rows)"):
                kind(**required | {each.name: object()})


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
