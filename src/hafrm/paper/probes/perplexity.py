"""Token-wise perplexity of responses and its variance over a data set (the paper's Table 6).

The paper's pp is -log Prob(sequence) / Length(sequence): the mean negative log-prob in nats per token, without an
exponential. Here the sequence is the response given its prompt, including the token that ends its turn; the paper does
not say whether the prompt counts. Variances are sample variances (ddof = 1) over pairs whose two responses fit.

`run_perplexity` goes from models and pairs to `perplexity.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hafrm import atomic
from hafrm.data import PairSet, ReadOptions, load_pairs
from hafrm.errors import ConfigError, DataError
from hafrm.evaluation.parts import Part
from hafrm.evaluation.scoring import PairScore, score_pairs
from hafrm.models.identity import model_identity
from hafrm.models.loading import ScorerChoice, load_log_prob_scorer
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.templates import DEFAULT_CHAT_TEMPLATE


@dataclass(frozen=True, kw_only=True)
class PerplexityVariance:
    """A cell of Table 6: perplexities of one data set under one model, in nats per token."""

    model: str
    data: str
    n: int
    """Pairs used: both responses were read whole."""
    unscored: dict[str, int]
    """Pairs excluded, by reason: "overlong" or "refused_by_template"."""
    mean_win: float
    mean_lose: float
    var_win: float
    """Sample variance of pp over the better responses."""
    var_lose: float
    var_difference: float
    """Sample variance of pp_win - pp_lose over pairs: the third column of Table 7."""

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self)


def perplexity_variance(scores: Sequence[PairScore]) -> PerplexityVariance:
    """Compute the perplexities of a data set from the scores of its pairs.

    Args:
        scores: Scores of one model on one data set whose rewards are mean log-probs per response token, as from a
            per-token `load_log_prob_scorer`.

    Raises:
        DataError: fewer than two pairs were scored, too few for a variance.
    """
    scored = [score for score in scores if score.reward_chosen is not None and score.reward_rejected is not None]
    if len(scored) < 2:
        raise DataError(
            f"{len(scored)} of {len(scores)} pairs have a perplexity for both responses; a variance needs two. "
            "Raise `score.max_length`, or give more pairs."
        )
    win = -np.array([score.reward_chosen for score in scored], dtype=np.float64)
    lose = -np.array([score.reward_rejected for score in scored], dtype=np.float64)
    return PerplexityVariance(
        model=scored[0].model,
        data=scored[0].data,
        n=len(scored),
        unscored=dict(Counter(score.unscored for score in scores if score.unscored)),
        mean_win=float(win.mean()),
        mean_lose=float(lose.mean()),
        var_win=float(win.var(ddof=1)),
        var_lose=float(lose.var(ddof=1)),
        var_difference=float((win - lose).var(ddof=1)),
    )


PERPLEXITY_FILE = "perplexity.json"


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """Options for variances of token-wise perplexity (the paper's Table 6)."""

    models: list[str]
    """Causal LMs: the untrained backbones, or runs (their policy head is used)."""

    data: list[str]
    """Files or data names of pairs."""

    out: str
    """Output folder for perplexity.json. Scores of earlier calls in it are reused."""

    split: str = "test"
    trust_remote_code: bool = False
    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)


def run_perplexity(
    config: PerplexityConfig, *, say: Callable[[str], None] = lambda line: None
) -> list[PerplexityVariance]:
    """Score all data sets under all models and write `perplexity.json`; resumes an interrupted call.

    Returns:
        One cell per model and data set, models outermost.

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
    """Return the mean log-probs of each data set's pairs under one model; it is loaded only if scores are missing."""
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
