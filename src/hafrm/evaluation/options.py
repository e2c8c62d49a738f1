"""Options of `hafrm evaluate` and `hafrm score`, without importing torch or transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hafrm import atomic
from hafrm.data import ReadOptions, data_names_of
from hafrm.data.rowfiles import has_known_suffix
from hafrm.errors import ConfigError
from hafrm.models.options import ScoreOptions, ScorerChoice, require_server_options
from hafrm.models.remote import endpoint_of, is_server
from hafrm.options import option

Probe = Literal[
    "length", "list", "bold", "flattery", "self-praise", "refusal", "contractions", "line break", "sycophancy"
]
"""Changes of pairs; see `hafrm.evaluation.probes`."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScorerChoice):
    """Evaluate reward models on preference pairs, on published benchmarks, or on both."""

    models: list[str]
    """Runs, stock reward models, causal models with their reference, or addresses of reward servers."""

    data: list[str] | Any = field(default_factory=list)
    """Held-out pairs: files or names (`hafrm data list`). In Python also rows in memory; see `hafrm.load_pairs`."""

    suites: list[str] = field(default_factory=list)
    """Benchmarks: rewardbench, rewardbench-2, rm-bench, judgebench, ppe, ppe-correctness or rewardmath from the hub, or
    NAME@PATH for their files on disk.
    """

    out: str
    """The folder for scores.jsonl, results.json and the page. Scores of an earlier evaluation in it are reused."""

    split: str = "test"
    """Split of named sets; files are used whole."""

    calibration_data: str | None = None
    """Pairs to fit each model's temperature on, for the calibrated error; a named set's validation split is used."""

    token_log_ratios: int = option(20, least=0)
    """Number of pairs per model and data set, worst mistakes first, whose tokens the page colours by log pi - log
    pi_ref, with the reward of the response so far if the reward head was trained too. Needs a model with a policy head,
    and its reference on this machine. 0 turns it off.
    """

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", data_names_of(self.data))
        if self.calibration_data is not None:
            object.__setattr__(self, "calibration_data", _one_name("calibration_data", self.calibration_data))
        super().__post_init__()
        for name, values in (("models", self.models), ("data", [*self.data, *self.suites])):
            if not values:
                raise ConfigError(f"{name}: give at least one{', or a suite' if name == 'data' else ''}.")
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {', '.join(values)} contains a name twice.")
        for model in filter(is_server, self.models):
            endpoint_of(model)  # check the URL before the model's name, which may contain a password, is in any message
            if all(map(is_server, self.models)):  # otherwise the options apply to the other models
                require_server_options(model, self, self.score)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ScorerChoice):
    """Find out whether reward models like length, markdown, flattery, self-praise, refusals or the user's own opinion,
    or react to rewrites.
    """

    models: list[str]
    """What to probe: anything that `hafrm evaluate` accepts, or `world/NAME`, the true reward of a simulated set."""

    data: list[str] | Any
    """Pairs, whose worse responses are changed: files or names (`hafrm data list`)."""

    probes: list[Probe] = field(default_factory=list)
    """The probes to run. Default: all."""

    out: str | None = None
    """A folder for results.json, table.md and a page."""

    pairs: int = option(500, least=1)
    """Number of pairs to use, the first ones."""

    split: str = "test"
    """Split of named sets; files are used whole."""

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    needed: ClassVar[tuple[str, ...]] = ("models", "data")
    """Fields of which at least one value must be given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", data_names_of(self.data))
        super().__post_init__()
        for name in self.needed:
            if not getattr(self, name):
                raise ConfigError(f"{name}: give at least one.")
        for model in filter(is_server, self.models):
            require_server_options(model, self, self.score)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScorerChoice):
    """Give every row of a file its reward."""

    model: str
    """A run, a stock reward model, a causal model with its reference, or the address of a reward server."""

    data: str
    """The rows to score, each a prompt with a response or a pair: a file in any format that training reads, a pattern
    of files, or the name of a data set (its test split, unless the name ends in #SPLIT). Of a folder all files are
    read, in the order of their paths; FILE[:1000] and other slices select rows. In Python also rows in memory; see
    `hafrm.load_pairs`.
    """

    out: str | None = None
    """The output file of JSON lines, compressed if its name ends in .gz. Default: standard output."""

    tokens: bool = False
    """Add `token_rewards` to each row: the reward divided among the response's tokens, by the policy head's log-ratios
    or, for the reward head alone, by its rewards of the response so far. docs/bulk-scoring.md describes the format.
    """

    shard: str | None = None
    """`I/N` scores only the I-th of N equal parts of the rows, counted from 1. The concatenated outputs of all parts
    equal the output without this option.
    """

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _one_name("data", self.data))
        super().__post_init__()
        if is_server(self.model):
            require_server_options(self.model, self, self.score)
        if self.out is not None and (atomic.resolved(Path(self.out)).is_dir() or _is_of_other_format(self.out)):
            raise ConfigError(f"--out {self.out}: the output is JSON lines. Give a file such as scored.jsonl.")
        if self.tokens and is_server(self.model):
            raise ConfigError("tokens: score with the model itself, or request them from the server with `tokens`.")
        self.shard_bounds(0)

    def shard_bounds(self, rows: int) -> tuple[int, int]:
        """Return the index of the shard's first row and of the first row after it, counted from 0.

        Raises:
            ConfigError: `shard` is not of the form I/N with 1 <= I <= N.
        """
        if self.shard is None:
            return 0, rows
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"shard must be I/N with I from 1 to N, such as 1/4, got {self.shard!r}")
        return rows * (int(number) - 1) // int(count), rows * int(number) // int(count)


def _one_name(option: str, data: Any) -> str:
    """Return the data name of an option that takes a single one."""
    names = data_names_of(data, option)
    if len(names) != 1:
        raise ConfigError(f"{option}: give one file, one folder or one list of rows, got {len(names)}.")
    return names[0]


def _is_of_other_format(name: str) -> bool:
    """Return whether a file would be read as something else than JSON lines, plain or packed with gzip."""
    return has_known_suffix(name.lower()) and not name.lower().endswith((".jsonl", ".jsonl.gz"))
