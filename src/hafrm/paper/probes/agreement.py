"""Figure 7: does a reward model agree with a DPO model that was trained separately on the same pairs?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hafrm.errors import DataError
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.scoring import SCORES_FILE, PairScore, read_scores
from hafrm.models.options import Method
from hafrm.paper.plans import Plan
from hafrm.paper.runs import Run
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.report.figures import Series, StraightLine, scatter
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import interval, percent, with_interval
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


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Margins of two models on the same pairs: x are the reward model's, y the DPO model's.

    The paper compares "outputs", without saying which.
    """

    data: str
    reward_model: str
    dpo_model: str
    pairs: int
    groups: int
    left_out: int
    """Pairs that at least one of the models could not score."""
    pearson: Correlation
    interval: Interval | None
    """95% interval, resampling prompt groups; None for too few groups."""
    spearman: Correlation
    fit: LinearFit
    """Least-squares line of y over x."""
    same_sign: float
    """Share of pairs whose two margins have the same sign."""
    x: Floats
    y: Floats

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, including the points."""
        values = asdict(self) | {"x": self.x.tolist(), "y": self.y.tolist()}
        return values | {"p_value_note": "p-values suppose independent points; the interval does not."}


def agreement(reward: Sequence[PairScore], dpo: Sequence[PairScore]) -> Agreement:
    """Correlate a reward model's margins with a DPO model's on the same pairs.

    Args:
        reward: The reward model's scores on one data set.
        dpo: The DPO model's implicit rewards on the same pairs.

    Raises:
        DataError: fewer than three pairs were scored by both, or one model's margins are all equal.
    """
    theirs = {score.id: score.margin for score in dpo if score.margin is not None}
    both = [score for score in reward if score.margin is not None and score.id in theirs]
    if len(both) < 3:
        raise DataError(f"{len(both)} pairs were scored by both models; a correlation needs three or more.")
    x, y = np.array([score.margin for score in both]), np.array([theirs[score.id] for score in both])
    names = [score.group for score in both]
    try:
        found = pearson(x, y)
    except ValueError as error:
        raise DataError(f"The margins of {reward[0].model} and {dpo[0].model} can't be related: {error}.") from error
    return Agreement(
        data=reward[0].data,
        reward_model=reward[0].model,
        dpo_model=dpo[0].model,
        pairs=len(both),
        groups=len(set(names)),
        left_out=len({score.id for score in (*reward, *dpo)}) - len(both),
        pearson=found,
        interval=None if few_groups(names) else pearson_interval(x, y, names),
        spearman=spearman(x, y),
        fit=linear_fit(x, y),
        same_sign=float((np.sign(x) == np.sign(y)).mean()),
        x=x,
        y=y,
    )


def run_agreement(reward: str, dpo: str, data: str, out: Path) -> Agreement:
    """Score pairs with both models and compare their margins; resumes an interrupted call.

    Args:
        reward: Run with a trained reward head, or a stock reward model.
        dpo: Run of `--method dpo`.
        data: Test pairs: a file or a data name.
        out: Folder of the scores.

    Raises:
        HafrmError: a model or the data can't be read, or too few pairs were scored by both.
    """
    both = EvaluateConfig(models=[reward, dpo], data=[data], out=str(out))
    evaluate(both)
    scores = read_scores(out / SCORES_FILE)
    theirs, ours = ([score for score in scores if score.model == model] for model in both.models)
    return agreement(theirs, ours)


def _figure(what: str, found: Agreement) -> Markup:
    """Draw the points and the least-squares line."""
    pearson_r = with_interval(found.pearson.value, found.interval, "{:.2f}".format)
    label = f"Pearson r = {pearson_r}, Spearman {found.spearman.value:.2f}"
    line = StraightLine("least squares", found.fit.slope, found.fit.intercept, "fit")
    return scatter(
        f"{what}: {label}", [Series(label, found.x, found.y)], "reward model's margin", "DPO's implicit margin", [line]
    )


def _runs(job: Job, backbone: str, name: str) -> list[Run]:
    methods: tuple[Method, ...] = ("baseline", "dpo")
    return [Run(backbone=backbone, sets=(name,), method=method, seed=job.seeds[0]) for method in methods]


def plan(job: Job) -> Plan:
    """Plan the baseline and DPO for each set, shared with Table 2."""
    return Plan(tuple(run for backbone in job.backbones for name in job.sets for run in _runs(job, backbone, name)))


def find(job: Job) -> Findings:
    """Build a scatter plot and a table row for each set."""
    found: dict[tuple[str, str], Agreement] = {}
    for backbone in job.backbones:
        for name in job.sets:
            reward, dpo = (str(run.folder(job)) for run in _runs(job, backbone, name))
            out = job.root / "agreement" / backbone / name
            found[backbone, name] = run_agreement(reward, dpo, job.scale.sets[name].test, out)
    return build_findings(
        job,
        "figure7",
        results={"agreement": {f"{backbone}/{name}": each.as_dict() for (backbone, name), each in found.items()}},
        tables=[_table(found)],
        figures={
            f"figure7-{backbone}-{name}": _figure(f"{name}, {backbone}", each)
            for (backbone, name), each in found.items()
        },
    )


def _table(found: dict[tuple[str, str], Agreement]) -> Table:
    rows = []
    for (backbone, name), each in found.items():
        ends = interval(each.interval, "{:.2f}".format) or "–"
        values = f"{each.pearson.value:.2f} {ends}", f"{each.spearman.value:.2f}", percent(each.same_sign)
        rows.append((backbone, name, str(each.pairs), str(each.left_out), *values))
    columns = ("backbone", "set", "pairs", "unscored", "Pearson r, 95% interval", "Spearman", "margins of one sign, %")
    return Table("Ours", columns, rows)
