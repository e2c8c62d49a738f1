"""Tables 6 and 7: variances of token-wise perplexity under untrained backbones, and their correlation with DPO's gain.

The paper's pp is -log Prob(sequence) / Length(sequence): the mean negative log-prob in nats per token, without an
exponential. Here the sequence is the response given its prompt, including the token that ends its turn; the paper does
not say whether the prompt counts. Variances are sample variances (ddof = 1) over pairs whose two responses fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hafrm.data import load_pairs
from hafrm.errors import ConfigError, DataError
from hafrm.evaluation.parts import Part
from hafrm.evaluation.scoring import PairScore, score_pairs
from hafrm.models.identity import model_identity
from hafrm.models.loading import load_log_prob_scorer
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import Scorer
from hafrm.paper import numbers
from hafrm.paper.accuracy import own_grid
from hafrm.paper.plans import Plan, single_sets
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.report.findings import Findings, Table
from hafrm.stats import Correlation, pearson
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


def run_perplexity(
    model: str, data: Sequence[str], out: Path, *, score: ScoreOptions | None = None
) -> list[PerplexityVariance]:
    """Score all data sets under a model, which is loaded only if scores are missing; resumes an interrupted call.

    Args:
        model: Causal LM: an untrained backbone, or a run (its policy head is used).
        data: Files or data names of pairs, of which the test split is used.
        out: Folder of the scores; those of earlier calls are reused.
        score: Options of scoring.

    Returns:
        One cell per data set.

    Raises:
        HafrmError: the model or a data set can't be read, or fewer than two pairs fit.
    """
    options = score or ScoreOptions()
    identity = model_identity(model, ScorerChoice(), options) | {"score": "mean log-prob"}
    scorer: Scorer | None = None
    cells = []
    for name in data:
        pairs = load_pairs(name, split="test")
        depends_on = identity | {"the pairs": " ".join(report.sha256 for report in pairs.reports)}
        part = Part(out / "perplexity", model, name, depends_on, [pair.id for pair in pairs.pairs], PairScore)
        kept = part.resume(lambda line: None, on_bad_row="error")
        if missing := pairs.pairs[len(kept) :]:
            scorer = scorer or load_log_prob_scorer(
                model,
                options.as_in_training(),
                per_token=True,
                template=DEFAULT_CHAT_TEMPLATE,  # as training renders for this backbone
            )
            kept = kept + part.extend(score_pairs(scorer, missing, model=model, data=name, on_bad_row="error"))
        cells.append(perplexity_variance(kept))
    return cells


@dataclass(frozen=True, kw_only=True)
class VarianceCorrelation:
    """Table 7: Pearson correlations over data sets of perplexity variances with accuracy(DPO) - accuracy(baseline)."""

    data: list[str]
    accuracy_differences: list[float]
    """accuracy(DPO) - accuracy(baseline) on each data set, as shares."""
    pp_win: Correlation
    pp_lose: Correlation
    pp_difference: Correlation
    """Correlation with the variance of pp_win - pp_lose, our reading of the paper's undefined "pp_win - pp_lose"."""
    variances: list[dict[str, Any]]

    @property
    def warning(self) -> str:
        """Caveats to show with the correlations; empty if there are enough data sets."""
        n = len(self.data)
        if n >= 10:
            return ""
        return (
            f"n = {n} data sets: a correlation of so few points has a wide interval, its p-value supposes normal "
            "variables, and three columns are three tests."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self) | {"n": len(self.data), "warning": self.warning}


def variance_correlation(
    variances: Mapping[str, PerplexityVariance], accuracies: Mapping[str, tuple[float, float]]
) -> VarianceCorrelation:
    """Correlate perplexity variances with DPO's gain over the baseline.

    Args:
        variances: Perplexities of each data set under one backbone.
        accuracies: Accuracies of DPO and of the baseline on the same data sets, as shares.

    Raises:
        DataError: the data sets differ, are fewer than three, or have no variation.
    """
    if set(variances) != set(accuracies):
        odd = sorted(set(variances) ^ set(accuracies))
        raise DataError(f"perplexities and accuracies are of different data sets: {', '.join(odd)} in one alone.")
    names = list(variances)
    gains = [accuracies[name][0] - accuracies[name][1] for name in names]
    cells = [variances[name] for name in names]
    try:
        win, lose, difference = (
            pearson([getattr(cell, field) for cell in cells], gains)
            for field in ("var_win", "var_lose", "var_difference")
        )
    except ValueError as error:
        raise DataError(f"Variances and accuracies of {len(names)} data sets can't be correlated: {error}.") from error
    return VarianceCorrelation(
        data=names,
        accuracy_differences=gains,
        pp_win=win,
        pp_lose=lose,
        pp_difference=difference,
        variances=[asdict(cell) for cell in cells],
    )


_COLUMNS = {"win": "pp_win", "lose": "pp_lose", "win - lose": "pp_difference"}
"""Table 7's columns, mapped to our field names."""


def find(job: Job) -> Findings:
    """Build Table 6, ours above the paper's."""
    cells = {backbone: _variances(job, backbone) for backbone in job.backbones}
    rows = [
        (f"{backbone}, {row}", *(f"{getattr(each, field):.3f}" for each in table.values()))
        for backbone, table in cells.items()
        for row, field in (("pp win", "var_win"), ("pp lose", "var_lose"))
    ]
    printed = tuple(
        (f"{backbone}, pp {side}", *(f"{getattr(table[name], side):.2f}" for name in job.sets))
        for backbone, table in numbers.TABLE_6.items()
        for side in ("win", "lose")
    )
    variances = {backbone: {name: asdict(each) for name, each in table.items()} for backbone, table in cells.items()}
    ours = Table("Ours", ("sample variance", *job.sets), rows)
    papers = Table("The paper's", ("variance", *job.sets), printed)
    return build_findings(
        job, "table6", results={"variances": variances}, tables=(ours, papers), left_out=_left_out(variances)
    )


def _left_out(variances: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """Return the pairs without a perplexity by backbone and set, and by reason."""
    return {
        f"{backbone}, {name}": each["unscored"] for backbone, table in variances.items() for name, each in table.items()
    }


def _variances(job: Job, backbone: str) -> dict[str, PerplexityVariance]:
    data = [job.scale.sets[name].test for name in job.sets]
    score = ScoreOptions(chat_template=job.scale.backbone(backbone).chat_template, max_length=job.scale.max_length)
    found = run_perplexity(job.model(backbone), data, job.root / "perplexity" / backbone, score=score)
    return dict(zip(job.sets, found, strict=True))


def plan_correlation(job: Job) -> Plan:
    """Plan the runs and evaluations of Table 2.

    Raises:
        ConfigError: fewer than three sets, too few for a correlation.
    """
    if len(job.sets) < 3:
        raise ConfigError("sets: table7 correlates over sets, so it needs three or more.")
    return single_sets(job)


def find_correlation(job: Job) -> Findings:
    """Build Table 7, ours above the paper's."""
    found = {}
    for backbone in job.backbones:
        rows_of = own_grid(job, backbone).items()
        accuracies = {name: (row["dpo"].accuracy, row["baseline"].accuracy) for name, row in rows_of}
        found[backbone] = variance_correlation(_variances(job, backbone), accuracies)
    values = (("corr", "value"), ("p", "p_value"))
    rows = [
        (f"{backbone}, {name}", *(f"{getattr(getattr(each, field), value):.4f}" for field in _COLUMNS.values()))
        for backbone, each in found.items()
        for name, value in values
    ]
    printed = [
        (name, *(f"{getattr(numbers.TABLE_7[column], value):.4f}" for column in _COLUMNS)) for name, value in values
    ]
    columns = ("Pearson", *(f"pp {column}" for column in _COLUMNS))
    return build_findings(
        job,
        "table7",
        results={"correlations": {name: each.as_dict() for name, each in found.items()}},
        tables=(Table("Ours", columns, rows), Table("The paper's, Mistral-Instruct", columns, printed)),
        warnings=list(dict.fromkeys(each.warning for each in found.values() if each.warning)),
        left_out=_left_out({name: dict(zip(each.data, each.variances, strict=True)) for name, each in found.items()}),
    )
