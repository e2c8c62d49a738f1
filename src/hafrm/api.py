"""The Python API: the commands as functions, which take their options as a dataclass or as a dictionary.

A dictionary is checked like the command line: unknown names and wrong types or values raise the same errors, and
missing paths are found before torch is loaded. Calls from several threads run one after another, since torch and
transformers keep settings per process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup

from hafrm.cli.options import command_parser, options_of
from hafrm.evaluation.options import EvaluateConfig, ScoreConfig
from hafrm.evaluation.results import Results
from hafrm.models.options import ExportConfig
from hafrm.training.config import TrainConfig

if TYPE_CHECKING:
    from hafrm.evaluation.bulk import ScoreCounts
    from hafrm.training.run import TrainResult

Config = TypeVar("Config")

_PARSING = threading.Lock()
"""Held while options are parsed: docstrings are read with `ast`, which Python 3.11 can't do in several threads."""

_IN_MEMORY = "rows in memory"
"""A placeholder that is parsed in place of rows."""


def train(config: TrainConfig | Mapping[str, Any], **options: Any) -> TrainResult:
    """Train a model, or resume an interrupted run in the same folder, as `hafrm train` does.

    Args:
        config: The options, or a dictionary of them.
        options: `callbacks`, `model` and `tokenizer`, as in `hafrm.training.run.train`.

    Raises:
        HafrmError: options, data or model are unusable; the message says why and what to do.

    Example:
        >>> result = hafrm.train({"model": "Qwen/Qwen3-0.6B", "data": ["train.jsonl"], "out": "runs/mine"})
        >>> result.folder, result.metrics
    """
    from hafrm.report.training import train_with_page as run

    if isinstance(config, Mapping) and "model" not in config and options.get("model") is not None:
        config = {**config, "model": "."}  # replaced by the argument
    checked = config_of(TrainConfig, config, data=("data", "eval_data"))
    with _one_thread():
        return run(checked, **options)


def evaluate(config: EvaluateConfig | Mapping[str, Any], **options: Any) -> EvaluationResults:
    """Score models on pairs and compare them, as `hafrm evaluate` does, without its page.

    Args:
        config: The options, or a dictionary of them.
        options: `sets`, `progress` and `say`, as in `hafrm.evaluation.run.evaluate`.

    Returns:
        The results; a notebook shows them as a table.

    Raises:
        HafrmError: options, data or a model are unusable; the message says why and what to do.

    Example:
        >>> results = hafrm.evaluate({"models": ["runs/mine"], "data": ["test.jsonl"], "out": "eval"})
        >>> results.cells["runs/mine", "test.jsonl"].measured.accuracy
    """
    from hafrm.evaluation.run import evaluate as run

    checked = config_of(EvaluateConfig, config, models=("models", "reference"), data=("data", "calibration_data"))
    with _one_thread():
        return EvaluationResults(**vars(run(checked, **options)))


def score(config: ScoreConfig | Mapping[str, Any]) -> ScoreCounts:
    """Add rewards to the rows of a file, as `hafrm score` does.

    Raises:
        HafrmError: options, data or the model are unusable; the message says why and what to do.

    Example:
        >>> hafrm.score({"model": "runs/mine", "data": "answers.jsonl", "out": "scored.jsonl"}).scored
        1000
    """
    from hafrm.evaluation.bulk import score_rows

    checked = config_of(ScoreConfig, config, models=("model", "reference"), data=("data",))
    with _one_thread():
        return score_rows(checked)


def export(config: ExportConfig | Mapping[str, Any]) -> list[Path]:
    """Write a run's heads as plain checkpoints, as `hafrm export` does.

    Returns:
        The folders written.

    Raises:
        HafrmError: the run or the folder is unusable; the message says why and what to do.

    Example:
        >>> hafrm.export({"run": "runs/mine"})
        [PosixPath('runs/mine/export/reward'), PosixPath('runs/mine/export/policy')]
    """
    from hafrm.models.export import export as run

    checked = config_of(ExportConfig, config, models=("run",))
    with _one_thread():
        return run(checked)


def _one_thread() -> AbstractContextManager[Any]:
    """Return the lock with which calls from several threads run one after another."""
    from hafrm.models.stock import ONE_THREAD

    return ONE_THREAD


def config_of(
    kind: type[Config],
    given: Config | Mapping[str, Any],
    *,
    models: tuple[str, ...] = ("model",),
    data: tuple[str, ...] = (),
) -> Config:
    """Return options as their dataclass, checked as on the command line if they are a dictionary.

    Args:
        kind: The dataclass.
        given: The options. Groups of options may be dictionaries or dataclasses, and data rows in memory.
        models: Fields that name models.
        data: Fields with data names.

    Raises:
        ConfigError: an option does not exist, or its value is invalid.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"config must be {kind.__name__} or a dictionary, got {type(given).__name__}")
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    as_they_are = {name: value for name, value in given.items() if name in names and _is_made(name, value, data)}
    with _PARSING:
        parser = command_parser(kind)
    parser.raises = True
    written: dict[str, Any] = {name: (_IN_MEMORY if name in data else {}) for name in as_they_are}
    for name, value in given.items():
        if name not in as_they_are:
            written[name] = str(value) if isinstance(value, Path) else value
    with _PARSING:
        args = parser.parse_object(written)
    named = [name for name in data if name not in as_they_are]
    return options_of(kind, parser, args, models=models, data=named, made=as_they_are)


def _is_made(name: str, value: Any, data: tuple[str, ...]) -> bool:
    """Return whether an options file can't contain a value, which is a dataclass or rows in memory."""
    if is_dataclass(value):
        return True
    if name not in data or isinstance(value, str):
        return False
    return not isinstance(value, list) or not all(isinstance(each, str) for each in value)


class EvaluationResults(Results):
    """The results of an evaluation, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        from hafrm.report.loading import Evaluation
        from hafrm.report.tables import Grid, accuracy_table, cell_text, suite_tables
        from hafrm.report.wording import short_names

        evaluation = Evaluation(results=self, scores=())
        names = short_names(evaluation.models) | short_names(evaluation.data)
        grids: list[tuple[str, Grid]] = [("accuracy, %", accuracy_table(evaluation))] if evaluation.data else []
        grids += [(f"{suite.title}, %", suite.scores) for suite in suite_tables(evaluation)]
        tables = []
        for title, grid in grids:
            lines = [[title, *(names.get(name, name) for name, _ in grid.columns)]]
            lines += [
                [names.get(row.name, row.name), *map(cell_text, row.cells)] for row in (*grid.models, *grid.baselines)
            ]
            cells = (map(Markup("<td>{}</td>").format, line) for line in lines)  # `format` escapes the texts
            rows = (Markup("<tr>{}</tr>").format(Markup().join(line)) for line in cells)
            tables.append(Markup("<table>{}</table>").format(Markup().join(rows)))
        return str(Markup().join(tables))
