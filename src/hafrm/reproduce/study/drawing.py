"""The study's figures, from `results.json` alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from hafrm.reproduce.figures import Bar, BarGroup, Curve, Panel, accuracy_bars, curve_panels
from hafrm.reproduce.study.labels import ROWS, TITLES
from hafrm.reproduce.study.trials import SHARES

__all__ = ["figures_of"]


def figures_of(results: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    """The figures by name: accuracies in domain and on mixtures, and the curves over shares and ratios.

    Args:
        results: What `collect` gave, or what was read from its file.
    """
    legend = tuple((method, ROWS[method]) for method in ("dpo", "baseline", "haf"))
    for part in ("table2", "mixed"):
        for backbone, grid in results["parts"].get(part, {}).items():
            groups = [_bars(column, row) for column, row in grid.items()]
            yield f"{part}-{backbone}", accuracy_bars(f"{TITLES[part]}, {backbone}, with 95% intervals", groups, legend)
    for part, label in (("sizes", "percent of the training pairs"), ("ratios", "policy ratio")):
        for backbone, grid in results["parts"].get(part, {}).items():
            curves = _size_curves(grid) if part == "sizes" else _ratio_curves(grid)
            if curves:
                panel = Panel("accuracy, mean over sets", curves, label)
                yield f"{part}-{backbone}", curve_panels(f"{TITLES[part]}, {backbone}", [panel])


def _bars(column: str, row: Mapping[str, Mapping[str, Any]]) -> BarGroup:
    shown = [(method, row[method]) for method in ("dpo", "baseline", "haf") if method in row]
    return BarGroup(column, tuple(Bar(method, cell["accuracy"], _ends(cell)) for method, cell in shown))


def _ends(cell: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if cell["ci95"] is None else (cell["ci95"][0], cell["ci95"][1])


def _mean_over_sets(grid: Mapping[str, Mapping[str, Mapping[str, Any]]], row: str) -> float | None:
    found = [column[row]["accuracy"] for column in grid.values() if row in column]
    return statistics.fmean(found) if len(found) == len(grid) else None


def _size_curves(grid: Mapping[str, Any]) -> tuple[Curve, ...]:
    kinds = {"haf": "positive", "baseline": "negative", "dpo": "dpo dash1"}
    curves = []
    for method, kind in kinds.items():
        at = [(100 / share, _mean_over_sets(grid, f"{method} 1/{share}")) for share in SHARES]
        known = tuple((share, value) for share, value in at if value is not None)
        if known:
            curves.append(Curve(ROWS[method], kind, known))
    return tuple(curves)


def _ratio_curves(grid: Mapping[str, Any]) -> tuple[Curve, ...]:
    rows = dict.fromkeys(row for column in grid.values() for row in column)
    known = sorted(
        (float(row), value) for row in rows if (value := _mean_over_sets(grid, row)) is not None and float(row) >= 0
    )
    return (Curve("HAF", "positive", tuple(known)),) if known else ()
