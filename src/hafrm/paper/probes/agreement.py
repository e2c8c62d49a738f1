"""Agreement of a reward model with a DPO model trained separately on the same data (the paper's Figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from hafrm import atomic
from hafrm.data import ReadOptions
from hafrm.errors import DataError
from hafrm.evaluation.run import EvaluateConfig, evaluate
from hafrm.evaluation.scoring import SCORES_FILE, PairScore, read_scores
from hafrm.models.scorers import ScoreOptions
from hafrm.report.charts import standalone
from hafrm.report.figures import Series, StraightLine, scatter
from hafrm.stats import (
    Correlation,
    Floats,
    Interval,
    LinearFit,
    few_groups,
    linear_fit,
    pearson,
    pearson_interval,
    spearman,
)

Output = Literal["margins", "rewards"]
"""Outputs to compare: one margin per pair, or the rewards of both responses. The paper only says "outputs"."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Outputs of two models on the same pairs: x is the reward model's, y the DPO model's implicit reward."""

    data: str
    reward_model: str
    dpo_model: str
    output: Output
    pairs: int
    groups: int
    left_out: int
    """Pairs that at least one of the models could not score."""
    pearson: Correlation
    interval: Interval | None
    """95% interval, resampling prompt groups; None with fewer than `FEWEST_GROUPS` groups."""
    spearman: Correlation
    fit: LinearFit
    """Least-squares line of y over x."""
    same_sign: float | None
    """Share of pairs whose two margins have the same sign; None for rewards."""
    x: Floats
    y: Floats

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, including the points."""
        values = asdict(self) | {"x": self.x.tolist(), "y": self.y.tolist()}
        return values | {"p_value_note": "p-values suppose independent points; the interval does not."}


def agreement(reward: Sequence[PairScore], dpo: Sequence[PairScore], *, output: Output = "margins") -> Agreement:
    """Correlate a reward model's scores with a DPO model's on the same pairs.

    Args:
        reward: The reward model's scores on one data set.
        dpo: The DPO model's implicit rewards on the same pairs.
        output: What to compare.

    Raises:
        DataError: fewer than three pairs were scored by both, or one model's outputs are all equal.
    """
    theirs = {score.id: score for score in dpo if score.margin is not None}
    both = [(score, theirs[score.id]) for score in reward if score.margin is not None and score.id in theirs]
    if len(both) < 3:
        raise DataError(f"{len(both)} pairs were scored by both models; a correlation needs three or more.")
    x, y = (
        np.array([value for score in side for value in _outputs(score, output)]) for side in zip(*both, strict=True)
    )
    names = [score.group for score, _ in both for _ in _outputs(score, output)]
    groups = len(set(names))
    try:
        found = pearson(x, y)
    except ValueError as error:
        raise DataError(f"The outputs of {reward[0].model} and {dpo[0].model} can't be related: {error}.") from error
    return Agreement(
        data=reward[0].data,
        reward_model=reward[0].model,
        dpo_model=dpo[0].model,
        output=output,
        pairs=len(both),
        groups=groups,
        left_out=len({score.id for score in (*reward, *dpo)}) - len(both),
        pearson=found,
        interval=None if few_groups(names) else pearson_interval(x, y, names),
        spearman=spearman(x, y),
        fit=linear_fit(x, y),
        same_sign=float((np.sign(x) == np.sign(y)).mean()) if output == "margins" else None,
        x=x,
        y=y,
    )


def _outputs(score: PairScore, output: Output) -> list[float]:
    if output == "margins":
        assert score.margin is not None
        return [score.margin]
    assert score.reward_chosen is not None
    assert score.reward_rejected is not None
    return [score.reward_chosen, score.reward_rejected]


@dataclass(frozen=True, kw_only=True)
class AgreementConfig:
    """Options for measuring the agreement of a reward model and a DPO model on test pairs (the paper's Figure 7)."""

    reward: str
    """Run with a trained reward head, or a stock reward model."""

    dpo: str
    """Run of `--method dpo`."""

    data: str
    """Test pairs: a file or a data name."""

    out: str
    """Output folder for agreement.json and agreement.svg, with the scores in `agreement/`."""

    split: str = "test"
    output: Output = "margins"
    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)


def run_agreement(config: AgreementConfig, *, say: Callable[[str], None] = lambda line: None) -> Agreement:
    """Score the pairs with both models and write `agreement.json` and `agreement.svg`; resumes an interrupted call.

    Raises:
        HafrmError: a model or the data can't be read, or too few pairs were scored by both.
    """
    folder = Path(config.out)
    both = EvaluateConfig(
        models=[config.reward, config.dpo],
        data=[config.data],
        out=str(folder / "agreement"),
        split=config.split,
        data_options=config.data_options,
        score=config.score,
    )
    evaluate(both, say=say)
    scores = read_scores(folder / "agreement" / SCORES_FILE)
    reward, dpo = ([score for score in scores if score.model == model] for model in both.models)
    found = agreement(reward, dpo, output=config.output)
    atomic.write_json(folder / "agreement.json", {"source": "Figure 7"} | found.as_dict())
    atomic.write_text(folder / "agreement.svg", standalone(agreement_figure(found)))
    return found


def agreement_figure(found: Agreement) -> Markup:
    """Draw Figure 7 as inline SVG: the points and the least-squares line."""
    interval = f" [{found.interval.low:.2f}, {found.interval.high:.2f}]" if found.interval else ""
    label = f"Pearson r = {found.pearson.value:.2f}{interval}, Spearman {found.spearman.value:.2f}"
    kind = found.output.removesuffix("s")
    line = StraightLine("least squares", found.fit.slope, found.fit.intercept, "fit")
    name = f"{found.data}: {label}"
    return scatter(name, [Series(label, found.x, found.y)], f"reward model's {kind}", f"DPO's implicit {kind}", [line])
