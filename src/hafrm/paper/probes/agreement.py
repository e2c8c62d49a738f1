"""Agreement of a reward model with a DPO model that was trained separately on the same data (the paper's Figure 7)."""

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
from hafrm.report.figures import standalone
from hafrm.report.scatter import Series, StraightLine, scatter
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

__all__ = ["Agreement", "AgreementConfig", "Output", "agreement", "agreement_figure", "run_agreement"]

Output = Literal["margins", "rewards"]
"""What is compared: one margin a pair, or the rewards of both responses. The paper says "outputs"."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two models' outputs on the same pairs: x of the reward model, y the DPO model's implicit reward."""

    data: str
    reward_model: str
    dpo_model: str
    output: Output
    pairs: int
    groups: int
    left_out: int
    """Pairs that only one of the two could score, or neither."""
    pearson: Correlation
    interval: Interval | None
    """95%, resampling prompt groups; None with fewer than `FEWEST_GROUPS` of them."""
    spearman: Correlation
    fit: LinearFit
    """The line of least squares, y over x."""
    same_sign: float | None
    """The share of pairs on which both margins have one sign; None for rewards."""
    x: Floats
    y: Floats

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the points."""
        values = asdict(self) | {"x": self.x.tolist(), "y": self.y.tolist()}
        return values | {"p_value_note": "p-values suppose independent points; the interval does not."}


def agreement(reward: Sequence[PairScore], dpo: Sequence[PairScore], *, output: Output = "margins") -> Agreement:
    """Relate a reward model's scores to a DPO model's on the same pairs.

    Args:
        reward: The reward model's scores of one data set.
        dpo: The DPO model's implicit rewards of the same pairs.
        output: What to compare.

    Raises:
        DataError: fewer than three pairs were scored by both, or one of the models gives all the same output.
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
    """How far a reward model and a DPO model agree on test pairs (the paper's Figure 7)."""

    reward: str
    """A run whose reward head was trained, or a stock reward model."""

    dpo: str
    """A run of `--method dpo`."""

    data: str
    """The test pairs: a file or a name."""

    out: str
    """The folder for agreement.json and agreement.svg, and for the scores in `agreement/`."""

    split: str = "test"
    output: Output = "margins"
    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)


def run_agreement(config: AgreementConfig, *, say: Callable[[str], None] = lambda line: None) -> Agreement:
    """Score the pairs with both models and write `agreement.json` and `agreement.svg`; goes on where it was stopped.

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
    """Figure 7 as inline SVG: the points and the line of least squares."""
    interval = f" [{found.interval.low:.2f}, {found.interval.high:.2f}]" if found.interval else ""
    label = f"Pearson r = {found.pearson.value:.2f}{interval}, Spearman {found.spearman.value:.2f}"
    kind = found.output.removesuffix("s")
    line = StraightLine("least squares", found.fit.slope, found.fit.intercept, "fit")
    name = f"{found.data}: {label}"
    return scatter(name, [Series(label, found.x, found.y)], f"reward model's {kind}", f"DPO's implicit {kind}", [line])
