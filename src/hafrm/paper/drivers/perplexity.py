"""Table 6: variances of token-wise perplexity, from models and pairs to `perplexity.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hafrm import atomic
from hafrm.data import PairSet, ReadOptions, load_pairs
from hafrm.errors import ConfigError
from hafrm.evaluation.parts import Part
from hafrm.evaluation.scoring import PairScore, score_pairs
from hafrm.models.identity import model_identity
from hafrm.models.loading import ScorerChoice, load_log_prob_scorer
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.paper.probes.perplexity import PerplexityVariance, perplexity_variance
from hafrm.templates import DEFAULT_CHAT_TEMPLATE

__all__ = ["PERPLEXITY_FILE", "PerplexityConfig", "run_perplexity"]

PERPLEXITY_FILE = "perplexity.json"


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """Variances of token-wise perplexity (the paper's Table 6)."""

    models: list[str]
    """Causal LMs: the backbones before training, or runs, whose policy head is then read."""

    data: list[str]
    """Files or names of pairs."""

    out: str
    """The folder for perplexity.json. Scores in it of an earlier call are used again."""

    split: str = "test"
    trust_remote_code: bool = False
    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)


def run_perplexity(
    config: PerplexityConfig, *, say: Callable[[str], None] = lambda line: None
) -> list[PerplexityVariance]:
    """Score all data sets under all models and write `perplexity.json`; goes on where it was stopped.

    Returns:
        One cell a model and data set, models outermost.

    Raises:
        HafrmError: a model or data set can't be read, or fewer than two pairs fit.
    """
    if not config.models or not config.data:
        raise ConfigError("models, data: name at least one of each.")
    sets = {name: load_pairs(name, split=config.split, options=config.data_options) for name in config.data}
    cells = [
        perplexity_variance(scores) for model in config.models for scores in _score_model(model, sets, config, say)
    ]
    written = {
        "source": "Table 6",
        "definition": "pp = -log p(response | prompt) / response tokens, in nats; sample variance (ddof = 1)",
        "cells": [cell.as_dict() for cell in cells],
    }
    atomic.write_json(Path(config.out) / PERPLEXITY_FILE, written)
    return cells


def _score_model(
    model: str, sets: dict[str, PairSet], config: PerplexityConfig, say: Callable[[str], None]
) -> list[list[PairScore]]:
    """The mean log-probs of each data set's pairs under one model, which is loaded only if some are missing."""
    choice = ScorerChoice(trust_remote_code=config.trust_remote_code)
    identity = model_identity(model, choice, config.score) | {"score": "mean log-prob"}
    scorer: Scorer | None = None
    scores: list[list[PairScore]] = []
    for name, pair_set in sets.items():
        depends_on = identity | {"the pairs": " ".join(report.sha256 for report in pair_set.reports)}
        ids = [pair.id for pair in pair_set.pairs]
        part = Part(Path(config.out) / "perplexity", model, name, depends_on, ids, PairScore)
        on_bad_row = config.data_options.on_bad_row
        kept = part.resume(say, on_bad_row=on_bad_row)
        if missing := pair_set.pairs[len(kept) :]:
            scorer = scorer or load_log_prob_scorer(
                model,
                config.score.as_in_training(),
                per_token=True,
                template=DEFAULT_CHAT_TEMPLATE,  # as training renders for this backbone
                trust_remote_code=config.trust_remote_code,
            )
            kept = kept + part.extend(score_pairs(scorer, missing, model=model, data=name, on_bad_row=on_bad_row))
        scores.append(kept)
    return scores
