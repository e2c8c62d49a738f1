"""Format the tables of published benchmarks: a row per model, with columns for the overall score and its sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hafrm.errors import DataError
from hafrm.report.loading import Evaluation
from hafrm.report.tables import TableCell, TableRow
from hafrm.report.wording import count, interval, percent, points

_Values = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class SuiteDifference:
    """A formatted paired difference of two models on one score, in points."""

    score: str
    a: str
    b: str
    difference: str
    interval: str
    decided: bool
    """Whether the interval excludes 0."""


@dataclass(frozen=True)
class SuiteTable:
    """One suite; the sections first, then its single subsets."""

    name: str
    title: str
    columns: tuple[str, ...]
    models: tuple[TableRow, ...]
    baselines: tuple[TableRow, ...]
    subset_columns: tuple[str, ...]
    subset_models: tuple[TableRow, ...]
    subset_baselines: tuple[TableRow, ...]
    differences: tuple[SuiteDifference, ...]
    notes: tuple[str, ...]
    """Its source, what is missing, and what each model did not score."""


def suite_tables(evaluation: Evaluation) -> tuple[SuiteTable, ...]:
    """Format the suites of an evaluation.

    Raises:
        DataError: the results of a suite are malformed.
    """
    try:
        return tuple(_suite_table(name, raw) for name, raw in evaluation.suites.items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"The results of the suites can't be read ({type(error).__name__}: {error}). Evaluate again."
        ) from error


def _suite_table(name: str, raw: Mapping[str, Any]) -> SuiteTable:
    columns, models, baselines = _rows(raw, ("overall", "sections", "pooled"))
    subset_columns, subset_models, subset_baselines = _rows(raw, ("subsets",))
    return SuiteTable(
        name=name,
        title=raw["title"],
        columns=columns,
        models=models,
        baselines=baselines,
        subset_columns=subset_columns,
        subset_models=subset_models,
        subset_baselines=subset_baselines,
        differences=tuple(_difference(row) for row in raw["comparisons"]),
        notes=_notes(raw),
    )


def _rows(
    raw: Mapping[str, Any], levels: Sequence[str]
) -> tuple[tuple[str, ...], tuple[TableRow, ...], tuple[TableRow, ...]]:
    """Return the columns of some levels, with the models' and the baselines' rows."""
    baselines = {"the longest response": raw["baselines"]["length"], "random": raw["baselines"]["random"]}
    keys = [(level, name) for level in levels for name in baselines["random"][level]]
    return (
        tuple(f"{name}, pooled" if level == "pooled" else name for level, name in keys),
        tuple(TableRow(model, tuple(_cell(found, *key) for key in keys)) for model, found in raw["models"].items()),
        tuple(TableRow(name, tuple(_baseline(found, *key) for key in keys)) for name, found in baselines.items()),
    )


def _cell(found: _Values, level: str, name: str) -> TableCell | None:
    if name not in found[level]:
        return None
    return TableCell(percent(found[level][name]["value"]), interval(found[level][name]["ci95"], percent))


def _baseline(found: _Values, level: str, name: str) -> TableCell | None:
    value = found[level].get(name)
    return None if value is None else TableCell(percent(value))


def _difference(row: Mapping[str, Any]) -> SuiteDifference:
    low, high = row["ci95"] or (0.0, 0.0)
    return SuiteDifference(
        score=row["score"],
        a=row["a"],
        b=row["b"],
        difference=points(row["difference"]),
        interval=interval(row["ci95"], points),
        decided=low > 0 or high < 0,
    )


def _all_scores(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for found in raw["models"].values():
        for level in ("overall", "sections", "pooled", "subsets"):
            yield from found[level].values()


def _notes(raw: Mapping[str, Any]) -> tuple[str, ...]:
    missing = [f"Left out, as there are no rows of it: {', '.join(raw['missing'])}."] if raw["missing"] else []
    unscored = [
        f"{model}: {count(found['unscored'], 'prompt')} without all rewards, left out."
        for model, found in raw["models"].items()
        if found["unscored"]
    ]
    unknown = [
        f"{model}: nothing scored of {', '.join(found['missing'])}, so there is no score that counts it."
        for model, found in raw["models"].items()
        if found["missing"]
    ]
    without = any(score["ci95"] is None for score in _all_scores(raw))
    few = ["No interval where a subset has fewer than six prompts: they tell nothing of others."] if without else []
    return (*missing, *unscored, *unknown, *few, f"{raw['citation']}. Licence: {raw['licence']}.")
