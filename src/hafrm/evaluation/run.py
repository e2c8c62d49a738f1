"""Evaluate models on data sets: load, score, write raw scores, compute results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data import PairSet, ReadOptions, load_pairs
from hafrm.errors import ConfigError
from hafrm.evaluation.results import summarise
from hafrm.evaluation.scoring import PairScore, score_pairs, write_scores
from hafrm.models.loading import ScorerChoice
from hafrm.models.scorers import ScoreOptions

__all__ = ["EvaluateConfig", "evaluate", "load_sets"]

SCORES_FILE = "scores.jsonl"
RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScorerChoice):
    """Evaluate reward models on preference pairs."""

    models: list[str]
    """Runs, stock reward models, or causal models with their reference."""

    data: list[str]
    """Held-out pairs: files or names (`hafrm data list`)."""

    out: str
    """The folder for scores.jsonl, results.json and the page."""

    split: str = "test"
    """Which split of named sets to use; a file is used whole."""

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        for name in ("models", "data"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"{name}: name at least one.")
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {', '.join(values)} names one twice.")


def load_sets(config: EvaluateConfig) -> dict[str, PairSet]:
    """The held-out pairs, by data name."""
    return {name: load_pairs(name, split=config.split, options=config.data_options) for name in config.data}


def evaluate(
    config: EvaluateConfig,
    *,
    sets: dict[str, PairSet] | None = None,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> dict[str, Any]:
    """Score every model on every data set and write `scores.jsonl` and `results.json`.

    Args:
        config: What to evaluate.
        sets: What `load_sets` gave for these options, where it was called before.
        progress: Called with "MODEL on DATA" and the number of pairs done.

    Returns:
        The contents of `results.json`; see `summarise`.
    """
    folder = Path(config.out)
    sets = load_sets(config) if sets is None else sets
    scores: list[PairScore] = []
    for model in config.models:
        scorer = config.load(model, config.score)
        for name, pair_set in sets.items():
            scores += score_pairs(
                scorer,
                pair_set.pairs,
                model=model,
                data=name,
                on_bad_row=config.data_options.on_bad_row,
                progress=partial(progress, f"{model} on {name}"),
            )
    write_scores(scores, folder / SCORES_FILE)
    results = summarise(scores)
    results["sources"] = {name: [report.as_dict() for report in s.reports] for name, s in sets.items()}
    atomic.write_json(folder / RESULTS_FILE, results)
    return results
