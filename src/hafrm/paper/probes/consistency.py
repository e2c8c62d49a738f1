"""Figure 2: does a shared reward head favour the responses of its own policy head (Appendix E.1)?

For a matched pair of checkpoints, one of a hybrid run and one of a DPO run, both policy heads answer the same prompts.
x is the lead that an oracle gives to the hybrid's answers, y the lead that the hybrid's own reward head gives them. In
points above the diagonal, the reward head rates its own policy's answers higher than their quality warrants.

The diagonal is meaningful only if x and y have the same unit. A Bradley-Terry reward is in logits; so is the simulated
world's oracle, up to its annotators' sharpness. `share_above_scaled` needs no common unit: it divides each by the
standard deviation of all rewards from the same judge. The paper does not name the data set; we use the job's first set
(by default Helpful).

Shape letters: P points, Q prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from markupsafe import Markup

from hafrm.data import load_pairs
from hafrm.errors import DataError
from hafrm.models.checkpoints import load_run
from hafrm.models.identity import model_identity
from hafrm.models.loading import load_scorer
from hafrm.models.options import Method, ScoreOptions, ScorerChoice
from hafrm.models.runinfo import RunInfo
from hafrm.models.scorers import Scorer
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.probes import remembered
from hafrm.paper.probes.checkpoints import (
    MATCHINGS,
    Checkpoint,
    Match,
    Matching,
    generate_responses,
    match_checkpoints,
    prompts_that_fit,
    run_checkpoints,
)
from hafrm.paper.runs import Run
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.paper.world import WORLD_SETS, oracle_reward
from hafrm.report.figures import Series, StraightLine, scatter
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import percent, with_interval
from hafrm.sampling.options import SampleOptions
from hafrm.stats import FEWEST_GROUPS, Floats, Interval

Rewards = Sequence[float | None]

_PROMPTS = 200
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One matched pair of checkpoints in Figure 2."""

    matching: Matching
    haf_step: int
    dpo_step: int
    gap: float
    """Difference in the criterion by which they are matched."""
    x: float
    """Mean over prompts of oracle(HAF's response) - oracle(DPO's response)."""
    y: float
    """Mean over prompts of HAF's reward(HAF's response) - HAF's reward(DPO's response)."""
    prompts: int
    """Prompts for which all responses have rewards."""


@dataclass(frozen=True)
class Share:
    """A share of points, with the 95% interval from resampling prompts.

    The points share checkpoints and responses, so they are not independent; the prompts are.
    """

    value: float
    interval: Interval | None
    """None if a point has rewards for fewer than six prompts."""


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Figure 2: the points, and the share above the diagonal y = x."""

    points: list[Point]
    share_above: Share
    share_above_scaled: Share
    """Share above the diagonal with x and y divided by the standard deviations of the underlying rewards."""
    by_matching: dict[Matching, Share]
    too_long: int = 0
    """Test prompts that leave no room for a response."""


def consistency(
    matches: Sequence[Match], oracle: Mapping[str, Rewards], own: Mapping[tuple[int, str], Rewards]
) -> Consistency:
    """Compute the points of Figure 2 from the rewards of all responses.

    Args:
        matches: Matched checkpoints, hybrid first.
        oracle: The oracle's rewards of a checkpoint's responses by the checkpoint's folder, [Q]; None for responses
            that could not be scored.
        own: Rewards by (step of the hybrid's checkpoint whose reward head judges, folder of the checkpoint whose
            responses it judges), [Q].

    Raises:
        DataError: there are no matches, or a pair of checkpoints has no prompt whose responses all have rewards.
    """
    if not matches:
        raise DataError("There are no matched checkpoints.")
    x, y = (np.stack(rows) for rows in zip(*(_differences(match, oracle, own) for match in matches), strict=True))
    points = [
        Point(
            matching=match.by,
            haf_step=match.first.step,
            dpo_step=match.second.step,
            gap=match.gap,
            x=float(np.nanmean(of_oracle)),
            y=float(np.nanmean(of_haf)),
            prompts=int((~np.isnan(of_oracle)).sum()),
        )
        for match, of_oracle, of_haf in zip(matches, x, y, strict=True)
    ]
    prompts = x.shape[1]
    draws = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=_RESAMPLES)
    means = _drawn_means(x, draws), _drawn_means(y, draws)
    here = np.array([[point.x, point.y] for point in points]).T

    def share(chosen: Any = slice(None), scales: tuple[float, float] = (1.0, 1.0)) -> Share:
        return _share(here[:, chosen], [each[:, chosen] for each in means], scales)

    names = np.array([match.by for match in matches])
    return Consistency(
        points=points,
        share_above=share(),
        share_above_scaled=share(scales=(_spread(oracle.values()), _spread(own.values()))),
        by_matching={match.by: share(names == match.by) for match in matches},
    )


def _differences(
    match: Match, oracle: Mapping[str, Rewards], own: Mapping[tuple[int, str], Rewards]
) -> tuple[Floats, Floats]:
    """Return x and y for each prompt, [Q]; both are NaN if a reward is missing."""
    first, second, step = str(match.first.folder), str(match.second.folder), match.first.step
    x = _numbers(oracle[first]) - _numbers(oracle[second])
    y = _numbers(own[step, first]) - _numbers(own[step, second])
    missing = np.isnan(x) | np.isnan(y)
    if missing.all():
        raise DataError(f"No prompt has rewards for the responses of both {first} and {second}.")
    return np.where(missing, np.nan, x), np.where(missing, np.nan, y)


def _numbers(rewards: Rewards) -> Floats:
    return np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float64)


def _spread(rewards: Iterable[Rewards]) -> float:
    """Return the standard deviation of all rewards from one judge; 1 if they are all equal."""
    return float(np.nanstd(np.concatenate([_numbers(each) for each in rewards]))) or 1.0


def _drawn_means(values: Floats, draws: Any) -> Floats:
    """Return means over resampled prompts, [draws, P].

    NaN if a resample contains no prompt with rewards, and for points with rewards for few prompts.
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Floats = (draws @ np.where(known, values, 0).T) / (draws @ known.T)
    means[:, known.sum(axis=1) < FEWEST_GROUPS] = np.nan
    return means


def _share(here: Floats, means: Sequence[Floats], scales: tuple[float, float]) -> Share:
    """Return the share of points above the diagonal; points on it count one half."""

    def above(x: Floats, y: Floats) -> Floats:
        return np.asarray((1 + np.sign(y / scales[1] - x / scales[0])) / 2)

    drawn = above(*means).mean(axis=1)
    whole = drawn[~np.isnan(drawn)]  # a resample can miss all prompts of a point with few rewards
    ends = np.quantile(whole, [0.025, 0.975]).tolist() if len(whole) else None
    return Share(float(above(*here).mean()), Interval(*ends) if ends else None)


def run_consistency(
    haf: str,
    dpo: str,
    data: str,
    oracle: str,
    out: Path,
    *,
    prompts: int = _PROMPTS,
    sampling: SampleOptions | None = None,
) -> Consistency:
    """Answer prompts with all checkpoints, score and match them.

    Responses and rewards are stored per checkpoint, so that an interrupted call resumes.

    Args:
        haf: Run of `--method haf` that kept all checkpoints (`--training.save_total_limit null`).
        dpo: Run of `--method dpo` on the same data that kept all checkpoints.
        data: Pairs that provide the prompts: a file or a data name.
        oracle: `world/NAME` for that set's true reward; otherwise a run or stock reward model trained on the same data.
        out: Folder of the stored values.
        prompts: Maximum number of distinct prompts.
        sampling: How the checkpoints answer.

    Raises:
        HafrmError: a run kept no checkpoints, or a model or the data can't be read.
    """
    sampling = sampling or _SAMPLING
    distinct = list(dict.fromkeys(pair.prompt for pair in load_pairs(data, split="test").pairs))[:prompts]
    limit = min(RunInfo.load(Path(run)).max_length for run in (haf, dpo))
    fitting = prompts_that_fit(distinct, load_tokenizer(haf), sampling, limit)
    if len(fitting) < 2:
        raise DataError(
            f"{len(fitting)} of {len(distinct)} prompts leave room for {sampling.max_new_tokens} new tokens within "
            f"{limit}. Lower sampling.max_new_tokens."
        )
    answers = _Answers(fitting, sampling, out)
    first, second = (
        [_with_reward(each, answers.judged(oracle, each)) for each in run_checkpoints(Path(run))] for run in (haf, dpo)
    )
    matches = [match for by in MATCHINGS for match in match_checkpoints(first, second, by)]
    both = {(m.first.step, str(each.folder)): (m.first, each) for m in matches for each in (m.first, m.second)}
    own = {key: answers.judged(str(both[key][0].folder), both[key][1]) for key in sorted(both)}
    gold = {str(each.folder): answers.judged(oracle, each) for each in (*first, *second)}
    return replace(consistency(matches, gold, own), too_long=len(distinct) - len(fitting))


def _figure(backbone: str, found: Consistency) -> Markup:
    """Draw five kinds of points and the diagonal."""
    series = []
    for by in MATCHINGS:
        points = [point for point in found.points if point.matching == by]
        series.append(Series(by, np.array([p.x for p in points]), np.array([p.y for p in points])))
    share = f"{100 * found.share_above.value:.0f}% of {len(found.points)} points"
    label = f"{share} are above the diagonal, {backbone}"
    x_label, y_label = "oracle: HAF's response − DPO's", "HAF's reward: HAF's response − DPO's"
    return scatter(label, series, x_label, y_label, [StraightLine("y = x", 1.0)])


def _with_reward(checkpoint: Checkpoint, rewards: Rewards) -> Checkpoint:
    """Add the oracle's mean reward of its responses to the checkpoint's values."""
    known = [reward for reward in rewards if reward is not None]
    if not known:
        raise DataError(f"The oracle could score none of the responses of {checkpoint.folder}.")
    return replace(checkpoint, values={**checkpoint.values, "reward": float(np.mean(known))})


class _Answers:
    """Answers of checkpoints and their rewards, each computed once and stored in a folder."""

    def __init__(self, prompts: Sequence[Prompt], sampling: SampleOptions, folder: Path) -> None:
        self.prompts, self.sampling, self.folder, self.options = prompts, sampling, folder, ScoreOptions()
        self._loaded: tuple[str, Scorer] | None = None

    def of(self, checkpoint: Checkpoint) -> list[Conversation]:
        """Return the prompts with the checkpoint's answers."""
        depends_on = {
            "model": self._identity(str(checkpoint.folder)),
            "sampling": asdict(self.sampling),
            "prompts": [prompt.as_row() for prompt in self.prompts],
        }

        def compute() -> list[str]:
            model, tokenizer, _ = load_run(checkpoint.folder, dtype=self.options.torch_dtype())
            causal_lm = model.causal_lm.to(self.options.torch_device())
            return generate_responses(causal_lm, tokenizer, self.prompts, self.sampling)

        answers = remembered(self.folder, "responses", depends_on, compute)
        both = zip(self.prompts, answers, strict=True)
        return [Conversation(prompt, (Message("assistant", answer),)) for prompt, answer in both]

    def judged(self, judge: str, checkpoint: Checkpoint) -> Rewards:
        """Return the rewards of a checkpoint's answers by a set of the world, a run, or a stock reward model."""
        conversations, name = self.of(checkpoint), judge.removeprefix("world/")
        if name in WORLD_SETS and name != judge:
            return [oracle_reward(conversation, name) for conversation in conversations]

        def compute() -> list[float | None]:
            if self._loaded is None or self._loaded[0] != judge:
                self._loaded = None  # free the memory before loading another model
                self._loaded = judge, load_scorer(judge, head="reward", options=self.options.as_in_training())
            return self._loaded[1].score(conversations)

        texts = [[asdict(message) for message in conversation.turns] for conversation in conversations]
        depends_on = {"model": self._identity(judge), "conversations": texts}
        return cast(Rewards, remembered(self.folder, "rewards", depends_on, compute))

    def _identity(self, model: str) -> dict[str, Any]:
        return model_identity(model, ScorerChoice(head="reward"), self.options)


_SAMPLING = SampleOptions(max_new_tokens=128)


def plan(job: Job) -> Plan:
    """Plan HAF and DPO with all checkpoints, and a baseline as oracle at scales other than `world`."""
    answers = (
        Responses(
            made="figure2/results.json",
            backbone=backbone,
            sets=job.sets[:1],
            prompts=_PROMPTS,
            draws=2 * job.scale.evaluations(kept=True),
            new_tokens=_SAMPLING.max_new_tokens,
            # the oracle reads all; each of HAF's checkpoints reads its own answers and those of its matches
            readers=1 + (1 + len(MATCHINGS)) // 2,
        )
        for backbone in job.backbones
    )
    return Plan(
        tuple(run for backbone in job.backbones for run in _runs(job, backbone).values()), responses=tuple(answers)
    )


def _runs(job: Job, backbone: str) -> dict[Method, Run]:
    methods: tuple[Method, ...] = ("haf", "dpo") if job.in_world else ("haf", "dpo", "baseline")
    return {
        method: Run(
            backbone=backbone,
            sets=job.sets[:1],
            method=method,
            seed=job.seeds[0],
            keep_checkpoints=method != "baseline",
        )
        for method in methods
    }


def find(job: Job) -> Findings:
    """Build a plot per backbone and the shares of points above the diagonal."""
    data = job.scale.sets[job.sets[0]].test
    found = {}
    for backbone in job.backbones:
        folders = {method: str(run.folder(job)) for method, run in _runs(job, backbone).items()}
        out, oracle = job.root / "consistency" / backbone, folders.get("baseline", data)
        found[backbone] = run_consistency(folders["haf"], folders["dpo"], data, oracle, out, sampling=_SAMPLING)
    return build_findings(
        job,
        "figure2",
        results={"consistency": {name: asdict(each) for name, each in found.items()}},
        tables=[_table(found)],
        figures={f"figure2-{backbone}": _figure(backbone, each) for backbone, each in found.items()},
        left_out={f"Prompts ({name})": {"too_long": each.too_long} for name, each in found.items() if each.too_long},
    )


def _table(found: Mapping[str, Consistency]) -> Table:
    rows = []
    for backbone, each in found.items():
        both = share_text(each.share_above), share_text(each.share_above_scaled)
        rows.append((backbone, "all", str(len(each.points)), *both))
        for by, share in each.by_matching.items():
            number = sum(point.matching == by for point in each.points)
            rows.append((backbone, by, str(number), share_text(share), "–"))
    columns = ("backbone", "matched by", "points", "above the diagonal, %", "the same, scaled, %")
    return Table("Ours", columns, rows)


def share_text(share: Share) -> str:
    """Format a share in percent, with its interval if it has one."""
    return with_interval(share.value, share.interval, percent)
