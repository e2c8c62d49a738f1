"""Results recomputed from the record that `hafrm reproduce` writes next to them, with resampling of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy import stats


def recorded_accuracies(folder: Path) -> dict[str, float]:
    """Accuracy of each run on each test set, by "RUN on SET"."""
    found = {}
    for line in map(json.loads, (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()):
        if "scores" in line:
            seen = set(line["seen"])
            margins = [each for place, each in enumerate(line["margins"]) if place not in seen and each is not None]
            found[line["scores"]] = fmean(0.5 if each == 0 else float(each > 0) for each in margins)
    return found


def reported_accuracies(results: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Yield the accuracies by seed of Table 2, Figure 3 or Table 3, by "RUN{seed} on SET"."""
    for part in ("accuracy", "single", "mixed", "internal"):
        for backbone, columns in results.get(part, {}).items():
            for trained, cells in columns.items():
                for tested, row in cells.items() if part == "internal" else [(trained, cells)]:
                    sets = "+".join(columns) if part == "mixed" else trained
                    for method, cell in row.items():
                        yield f"{backbone}/{sets}/{method}-seed{{seed}} on {tested}", cell["by_seed"]


def require_results_of_the_record(folder: Path) -> None:
    """Fail unless every reported accuracy follows from the recorded margins."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    recorded, reported = recorded_accuracies(folder), list(reported_accuracies(results))
    assert reported
    for name, by_seed in reported:
        for seed, value in zip(results["seeds"], by_seed, strict=True):
            assert value == pytest.approx(recorded[name.format(seed=seed)], abs=1e-9), name


Interval = list[float] | None


def require_intervals_of_the_record(folder: Path) -> None:
    """Fail unless the means, differences and intervals of a study beyond the paper follow from its record alone."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    record = _Lines([json.loads(line) for line in (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()])
    checks = {
        "runs": _require_accuracies,
        "errors": _require_coverage,
        "length": _require_length,
        "steps": _require_steps,
        "gold": _require_best_of_n,
        "at_equal_kl": _require_equal_kl,
    }
    kinds = [kind for kind in checks if kind in results]
    assert kinds
    for kind in kinds:
        checks[kind](results, record)


class _Lines:
    """A record's lines."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.tests = {line["test"]: line for line in lines if "test" in line}
        self.scores = {line["scores"]: line for line in lines if "scores" in line}
        self._values = [line for line in lines if "values" in line]

    def column(self, column: str, row: str, **of: Any) -> np.ndarray:
        """The values of one column, of the only line that has it."""
        wanted = {"values": row, **of}
        (found,) = (line for line in self._values if column in line and wanted.items() <= line.items())
        return np.array(found[column], dtype=float)

    def seeds(self, column: str, row: str, seeds: Sequence[int], **of: Any) -> np.ndarray:
        """The values of one column, [seeds, prompts or pairs]."""
        return np.array([self.column(column, row, seed=seed, **of) for seed in seeds])

    def answered(self, row: str) -> list[int]:
        """The steps after which a policy answered."""
        return sorted({line["step"] for line in self._values if line["values"] == row})


def bootstrap(values: np.ndarray, groups: Sequence[int] | None = None, resamples: int = 2000) -> Interval:
    """95% percentile interval of the mean; resamples groups, by default each value its own."""
    index = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    size = int(index.max()) + 1
    if size < 6:
        return None
    drawn = np.random.default_rng(0).integers(size, size=(resamples, size))
    weights = np.stack([np.bincount(each, minlength=size) for each in drawn])[:, index]
    return np.quantile((weights @ values) / weights.sum(1), [0.025, 0.975]).tolist()


def _require_close(found: Any, expected: Any, within: float = 1e-9) -> None:
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=within)


def _hits(margins: np.ndarray) -> np.ndarray:
    return (np.sign(margins) + 1) / 2


def _require_accuracies(results: dict[str, Any], record: _Lines) -> None:
    """Accuracies by labels and in the true order; differences by 20,000 resamples."""
    for column, rows in results["accuracy"].items():
        tested, _, in_true_order = column.partition(", ")
        lead = np.sign(record.column("lead", "true", on=tested)) if in_true_order else 1
        lines = {row: [record.scores[f"{run} on {tested}"] for run in results["runs"][row]] for row in rows}
        (seen,) = {tuple(line["seen"]) for of_row in lines.values() for line in of_row}
        margins = {row: np.array([line["margins"] for line in of_row], np.float64) for row, of_row in lines.items()}
        used = ~np.isnan(np.concatenate(list(margins.values()))).any(0)  # texts that are too long have no rewards
        used[list(seen)] = False
        prompts = np.array(record.tests[tested]["prompts"])[used]
        hits = {row: _hits(lead * of_row)[:, used] for row, of_row in margins.items()}
        for row, found in rows.items():
            _require_close(hits[row].mean(1), found["by_seed"])
            _require_close(hits[row].mean(), found["accuracy"])
            _require_close(bootstrap(hits[row].mean(0), prompts), found["ci95"])
        for rivals, found in results["differences"][column].items():
            a, b = rivals.split(" - ")
            difference = hits[a] - hits[b]
            _require_close(difference.mean(), found["difference"])
            _require_close(difference.mean(1), list(found["by_seed"].values()))
            _require_close(bootstrap(difference.mean(0), prompts, 20_000), found["ci95"])


def _require_coverage(results: dict[str, Any], record: _Lines) -> None:
    tested = next(iter(results["accuracy"]))
    true = record.column("log_odds", "true", on=tested)
    for row, found in results["errors"].items():
        differences, stated = (
            record.seeds(column, row, results["seeds"], on=tested) for column in ("difference", "error")
        )
        errors = abs(differences - true)
        _require_close(np.sqrt((errors**2).mean()), found["true"], 1e-4)
        _require_close(np.sqrt((stated**2).mean()), found["stated"], 1e-4)
        ranks = [stats.spearmanr(*each).statistic for each in zip(stated, errors, strict=True)]
        _require_close(ranks, found["rank_correlation"], 1e-4)
        for level, covered in found["covered"].items():
            inside = (errors <= stats.norm.ppf((1 + float(level)) / 2) * stated).mean(0)
            _require_close(inside.mean(), covered["share"])
            _require_close(bootstrap(inside, record.tests[tested]["prompts"]), covered["ci95"])


def _require_length(results: dict[str, Any], record: _Lines) -> None:
    """The slope on the log of the ratio of lengths, and how often a response beats one to another prompt."""
    tested = next(iter(results["accuracy"]))
    lengths = np.log(np.array(record.tests[tested]["lengths"], dtype=float)) @ [1, -1]
    features = np.stack([record.column("log_odds", "true", on=tested), lengths], 1)
    for row, found in results["length"].items():
        margins = [record.scores[f"{run} on {tested}"]["margins"] for run in results["runs"][row]]
        slopes = [np.linalg.solve(features.T @ features, features.T @ np.array(each))[1] for each in margins]
        _require_close(slopes, found["pays"], 1e-4)
        on_topic = record.seeds("on_topic", row, results["seeds"])
        _require_close((on_topic > 0).mean(1), found["on_topic"])


def _require_steps(results: dict[str, Any], record: _Lines) -> None:
    """The judge's reward after each number of steps; gains, or differences of means over all but the first."""
    within, seeds = 1e-4, results["seeds"]
    gold = {}
    for row, steps in results["steps"].items():
        assert list(map(str, record.answered(row))) == list(steps)
        for step, found in steps.items():
            for column, of in (("gold", "gold"), ("kl", "kl"), ("tokens", "length")):
                _require_close(record.seeds(column, row, seeds, step=int(step)).mean(), found[of], 1e-3)
            _require_close(record.seeds("gold", row, seeds, step=int(step)).mean(1), found["gold_by_seed"], within)
        gold[row] = np.array([record.seeds("gold", row, seeds, step=int(step)) for step in steps])
    for row, found in results.get("learnt", {}).items():
        _require_difference(gold[row][-1], gold[row][0], found | {"mean": found["gain"]})
    for rivals, found in results.get("differences", {}).items():
        one, other = (gold[row][1:].mean(0) for row in rivals_of(rivals, gold))
        _require_difference(one, other, found)


def _require_difference(one: np.ndarray, other: np.ndarray, found: dict[str, Any]) -> None:
    """Compare two rows' values, [seeds, prompts], with a published difference."""
    difference = one - other
    _require_close(difference.mean(), found["mean"], 1e-4)
    _require_close(difference.mean(1), found["by_seed"], 1e-4)
    _require_close(bootstrap(difference.mean(0)), found["ci95"], 1e-4)


def _require_best_of_n(results: dict[str, Any], record: _Lines) -> None:
    seeds, last = results["seeds"], len(next(iter(results["gold"].values())))
    for row, curve in results["gold"].items():
        for n in (1, last):
            _require_close(record.seeds("gold", row, seeds, n=n).mean(), curve[n - 1], 1e-4)
    for rivals, found in results["differences"].items():
        one, other = rivals_of(rivals, results["gold"])
        _require_difference(*(record.seeds("gold", row, seeds, n=last) for row in (one, other)), found)


def rivals_of(words: str, rows: Iterable[str]) -> tuple[str, str]:
    """Split "a - b" where names contain " - " themselves."""
    ((one, other),) = ((a, b) for a in rows for b in rows if words == f"{a} - {b}")
    return one, other


def _require_equal_kl(results: dict[str, Any], record: _Lines) -> None:
    """Measures at equal KL, each run interpolated between its checkpoints, by weights of resampled prompts."""
    steps = {row: [int(each["step"]) for each in points] for row, points in results["checkpoints"].items()}
    size = results["prompts"]
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=2000).astype(float)

    def measure(row: str, seed: int, step: int, name: str, weights: np.ndarray) -> np.ndarray:
        if name == "win rate, %":
            gold, start = (record.column("judge's reward", row, seed=seed, step=each) for each in (step, 0))
            return weights @ _hits(gold - start) / size
        above = weights @ record.column(name, row, seed=seed, step=step)
        has_words = name.startswith(("distinct", "perplexity"))
        below = weights @ record.column(f"{name} of", row, seed=seed, step=step) if has_words else size
        ratio = above / np.maximum(below, 1)
        return np.exp(ratio) if name == "perplexity" else ratio

    def at(row: str, seed: int, name: str, kl: float, weights: np.ndarray) -> np.ndarray:
        x, y = (np.stack([measure(row, seed, step, of, weights) for step in steps[row]], 1) for of in ("kl", name))
        order = np.argsort(x, 1)
        both = zip(np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1), strict=True)
        return np.array([np.interp(kl, *each) for each in both])

    for rivals, levels in results["at_equal_kl"].items():
        one, other = rivals_of(rivals, steps)
        for level in levels:
            for name in set(level) - {"kl"}:
                within = 1e-4 * max(1, abs(results["checkpoints"][one][0][name]))  # a tiny model's perplexity is large
                for weights, key in ((np.ones((1, size)), "difference"), (drawn, "ci95")):
                    each = [
                        at(one, s, name, level["kl"], weights) - at(other, s, name, level["kl"], weights)
                        for s in results["seeds"]
                    ]
                    mean = np.mean(each, 0)
                    found = mean[0] if key == "difference" else np.quantile(mean, [0.025, 0.975])
                    _require_close(found, level[name][key], within)
