"""Figure 7: a reward model's outputs against those of a DPO model that was trained apart on the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from hafrm import atomic
from hafrm.data import ReadOptions
from hafrm.evaluation.run import EvaluateConfig, evaluate
from hafrm.evaluation.scoring import SCORES_FILE, read_scores
from hafrm.models.scorers import ScoreOptions
from hafrm.paper.probes.agreement import Agreement, Output, agreement
from hafrm.report.figures import standalone
from hafrm.report.scatter import Series, StraightLine, scatter

__all__ = ["AgreementConfig", "agreement_figure", "run_agreement"]


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
