"""Draw the study's figures from `results.json` alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hafrm.paper.study.labels import ROWS, TITLES
from hafrm.paper.study.trials import SHARES
from hafrm.report.figures import Bar, BarGroup, Curve, Panel, accuracy_bars, curve_panels

_Grid = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Cells by column and row."""


def figures_of(results: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    """Yield the figures by name: accuracies in domain and on mixtures, and the curves over shares and ratios.

    Args:
        results: Results of `collect`, or its file's contents.
    """
    legend = tuple((method, ROWS[method]) for method in _METHODS)
    for part in ("table2", "mixed"):
        for backbone, grid in results["parts"].get(part, {}).items():
            groups = [_bars(column, row) for column, row in grid.items()]
            yield f"{part}-{backbone}", accuracy_bars(_bars_said(part, backbone, grid, results), groups, legend)
    for part, label in (("sizes", "percent of the training pairs"), ("ratios", "policy ratio")):
        for backbone, grid in results["parts"].get(part, {}).items():
            seeds = _shared_seeds(grid)
            curves = _size_curves(grid, seeds) if part == "sizes" else _ratio_curves(grid, seeds)
            if curves:
                said = f"{TITLES[part]}, {backbone}: the mean over {', '.join(grid)} and {_named(seeds)}"
                yield f"{part}-{backbone}", curve_panels(said, [Panel("accuracy, %", curves, label)])


_METHODS = ("dpo", "baseline", "haf")


def _bars_said(part: str, backbone: str, grid: _Grid, results: Mapping[str, Any]) -> str:
    """Describe the bars: which seeds they average, and where there are no intervals."""
    cells = [cell for row in grid.values() for method, cell in row.items() if method in _METHODS]
    fewer = "" if all(len(cell["seeds"]) == len(results["seeds"]) for cell in cells) else ", where they are there"
    bare = [column for column, row in grid.items() if any(cell["ci95"] is None for cell in row.values())]
    without = f" ({', '.join(bare)}: too few prompts for one)" if bare else ""
    return (
        f"{TITLES[part]}, {backbone}: the mean over {_named(results['seeds'])}{fewer}, with 95% intervals over "
        f"prompts{without}"
    )


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _bars(column: str, row: Mapping[str, Mapping[str, Any]]) -> BarGroup:
    shown = [(method, row[method]) for method in _METHODS if method in row]
    return BarGroup(column, tuple(Bar(method, cell["accuracy"], _ends(cell)) for method, cell in shown))


def _ends(cell: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if cell["ci95"] is None else (cell["ci95"][0], cell["ci95"][1])


def _shared_seeds(grid: _Grid) -> tuple[int, ...]:
    """Return the seeds that all cells have, since points of different seeds would show seed effects as a trend."""
    return tuple(sorted(set.intersection(*(set(cell["seeds"]) for row in grid.values() for cell in row.values()))))


def _mean_over_sets(grid: _Grid, row: str, seeds: Sequence[int]) -> float | None:
    """Return a row's accuracy in percent, averaged over sets and seeds; None if a set or all seeds are missing."""
    cells = [column[row] for column in grid.values() if row in column]
    if len(cells) < len(grid) or not seeds:
        return None
    by_seed = [dict(zip(cell["seeds"], cell["by_seed"], strict=True)) for cell in cells]
    return 100 * statistics.fmean(each[seed] for each in by_seed for seed in seeds)


def _size_curves(grid: _Grid, seeds: Sequence[int]) -> tuple[Curve, ...]:
    kinds = {"haf": "positive", "baseline": "negative", "dpo": "dpo dash1"}
    curves = []
    for method, kind in kinds.items():
        at = [(100 / share, _mean_over_sets(grid, f"{method} 1/{share}", seeds)) for share in SHARES]
        known = tuple((share, value) for share, value in at if value is not None)
        if known:
            curves.append(Curve(ROWS[method], kind, known))
    return tuple(curves)


def _ratio_curves(grid: _Grid, seeds: Sequence[int]) -> tuple[Curve, ...]:
    rows = dict.fromkeys(row for column in grid.values() for row in column)
    known = sorted((float(row), value) for row in rows if (value := _mean_over_sets(grid, row, seeds)) is not None)
    return (Curve("HAF", "positive", tuple(known)),) if known else ()
