"""Does a shared reward head favour the responses of its own policy head (the paper's Figure 2, Appendix E.1)?

For a matched pair of checkpoints, one of a hybrid run and one of a DPO run, both policy heads answer the same prompts.
x is the lead that an oracle gives to the hybrid's answers, y the lead that the hybrid's own reward head gives them. In
points above the diagonal, the reward head rates its own policy's answers higher than their quality warrants.

The diagonal is meaningful only if x and y have the same unit. A Bradley-Terry reward is in logits; so is the simulated
world's oracle, up to its annotators' sharpness. `share_above_scaled` needs no common unit: it divides each by the
standard deviation of all rewards from the same judge.

Shape letters: P points, Q prompts.

`run_consistency` samples and scores the responses of two runs' checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from markupsafe import Markup

from hafrm import atomic
from hafrm.data import ReadOptions, load_pairs
from hafrm.errors import ConfigError, DataError
from hafrm.models.checkpoints import load_run
from hafrm.models.identity import model_identity
from hafrm.models.loading import ScorerChoice, load_scorer
from hafrm.models.runinfo import RunInfo
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Conversation, Message
from hafrm.paper.probes.checkpoints import MATCHINGS, Checkpoint, Match, Matching, match_checkpoints, run_checkpoints
from hafrm.paper.probes.generation import generate_responses, prompts_that_fit
from hafrm.paper.probes.memory import remembered
from hafrm.paper.world import WORLD_SETS, oracle_reward
from hafrm.report.charts import standalone
from hafrm.report.figures import Series, StraightLine, scatter
from hafrm.sampling.engines import SampleOptions
from hafrm.stats import FEWEST_GROUPS, Floats, Interval

Rewards = Sequence[float | None]


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

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self)


def consistency(
    matches: Sequence[Match],
    oracle: Mapping[str, Rewards],
    own: Mapping[tuple[int, str], Rewards],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Consistency:
    """Compute the points of Figure 2 from the rewards of all responses.

    Args:
        matches: Matched checkpoints, hybrid first.
        oracle: The oracle's rewards of a checkpoint's responses by the checkpoint's folder, [Q]; None for responses
            that could not be scored.
        own: Rewards by (step of the hybrid's checkpoint whose reward head judges, folder of the checkpoint whose
            responses it judges), [Q].
        resamples: Number of bootstrap resamples of the prompts.
        seed: Seed of the resampling.

    Raises:
        DataError: there are no matches, or a pair of checkpoints has no prompt whose responses all have rewards.
    """
    if not matches:
        raise DataError("There are no matched checkpoints.")
    x, y = (np.stack(rows) for rows in zip(*(_differences(match, oracle, own) for match in matches), strict=True))
    points = [_point(match, *row) for match, *row in zip(matches, x, y, strict=True)]
    scales = _spread(oracle.values()), _spread(own.values())
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(x.shape[1], np.full(x.shape[1], 1 / x.shape[1]), size=resamples)
    means = _drawn_means(x, draws), _drawn_means(y, draws)
    here = np.array([[point.x, point.y] for point in points]).T
    names = np.array([match.by for match in matches])
    return Consistency(
        points=points,
        share_above=_share(here, means, (1.0, 1.0)),
        share_above_scaled=_share(here, means, scales),
        by_matching={
            match.by: _share(here[:, names == match.by], tuple(m[:, names == match.by] for m in means), (1.0, 1.0))
            for match in matches
        },
    )


def _differences(
    match: Match, oracle: Mapping[str, Rewards], own: Mapping[tuple[int, str], Rewards]
) -> tuple[Floats, Floats]:
    """Return x and y for each prompt, [Q]; both are NaN if a reward is missing."""
    first, second = str(match.first.folder), str(match.second.folder)
    step = match.first.step
    x = _numbers(oracle[first]) - _numbers(oracle[second])
    y = _numbers(own[step, first]) - _numbers(own[step, second])
    missing = np.isnan(x) | np.isnan(y)
    if missing.all():
        raise DataError(f"No prompt has rewards for the responses of both {first} and {second}.")
    return np.where(missing, np.nan, x), np.where(missing, np.nan, y)


def _numbers(rewards: Rewards) -> Floats:
    return np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float64)


def _point(match: Match, x: Floats, y: Floats) -> Point:
    return Point(
        matching=match.by,
        haf_step=match.first.step,
        dpo_step=match.second.step,
        gap=match.gap,
        x=float(np.nanmean(x)),
        y=float(np.nanmean(y)),
        prompts=int((~np.isnan(x)).sum()),
    )


def _spread(rewards: Any) -> float:
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


def _share(here: Floats, means: tuple[Floats, ...], scales: tuple[float, float]) -> Share:
    """Return the share of points above the diagonal; points on it count one half."""

    def above(x: Floats, y: Floats) -> Floats:
        return np.asarray((1 + np.sign(y / scales[1] - x / scales[0])) / 2)

    drawn = above(*means).mean(axis=1)
    whole = drawn[~np.isnan(drawn)]  # a resample can miss all prompts of a point with few rewards
    ends = np.quantile(whole, [0.025, 0.975]).tolist() if len(whole) else None
    return Share(float(above(*here).mean()), Interval(*ends) if ends else None)


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Options for testing whether a shared reward head favours its own policy's responses (the paper's Figure 2)."""

    haf: str
    """Run of `--method haf` that kept all checkpoints (`--training.save_total_limit null`)."""

    dpo: str
    """Run of `--method dpo` on the same data that kept all checkpoints."""

    data: str
    """Pairs that provide the prompts: a file or a data name."""

    oracle: str
    """`world/NAME` for that set's true reward; otherwise a run or stock reward model trained on the same data."""

    out: str
    """Output folder for consistency.json and consistency.svg, with responses and rewards in `consistency/`."""

    split: str = "test"
    prompts: int = 200
    """Maximum number of distinct prompts."""

    sampling: SampleOptions = field(default_factory=lambda: SampleOptions(max_new_tokens=128))
    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ConfigError(f"prompts must be at least 2, got {self.prompts}")


def run_consistency(config: ConsistencyConfig, *, say: Callable[[str], None] = lambda line: None) -> Consistency:
    """Answer prompts with all checkpoints, score, match, and write `consistency.json` and `consistency.svg`.

    Responses and rewards are stored per checkpoint, so that an interrupted call resumes.

    Raises:
        HafrmError: a run kept no checkpoints, or a model or the data can't be read.
    """
    probe = _Probe(config, say)
    haf, dpo = (
        [_with_reward(each, probe.oracle(each)) for each in run_checkpoints(Path(run))]
        for run in (config.haf, config.dpo)
    )
    matches = [match for by in MATCHINGS for match in match_checkpoints(haf, dpo, by)]
    both = {(m.first.step, str(each.folder)): (m.first, each) for m in matches for each in (m.first, m.second)}
    own = {key: probe.own(*both[key]) for key in sorted(both)}
    oracle = {str(each.folder): probe.oracle(each) for each in (*haf, *dpo)}
    found = consistency(matches, oracle, own)
    account = {"source": "Figure 2", "prompts": len(probe.prompts), "prompts_too_long": probe.too_long}
    account |= {"sampling": asdict(config.sampling), "oracle": config.oracle}
    atomic.write_json(Path(config.out) / "consistency.json", account | found.as_dict())
    atomic.write_text(Path(config.out) / "consistency.svg", standalone(consistency_figure(found)))
    return found


def consistency_figure(found: Consistency) -> Markup:
    """Draw Figure 2 as inline SVG: five kinds of points and the diagonal."""
    series = []
    for by in MATCHINGS:
        points = [point for point in found.points if point.matching == by]
        series.append(Series(by, np.array([p.x for p in points]), np.array([p.y for p in points])))
    share = found.share_above
    label = f"{100 * share.value:.0f}% of {len(found.points)} points lie above the diagonal"
    x_label, y_label = "oracle: HAF's response − DPO's", "HAF's reward: HAF's response − DPO's"
    return scatter(label, series, x_label, y_label, [StraightLine("y = x", 1.0)])


def _with_reward(checkpoint: Checkpoint, rewards: list[float | None]) -> Checkpoint:
    """Add the oracle's mean reward of its responses to the checkpoint's values."""
    known = [reward for reward in rewards if reward is not None]
    if not known:
        raise DataError(f"The oracle could score none of the responses of {checkpoint.folder}.")
    return replace(checkpoint, values={**checkpoint.values, "reward": float(np.mean(known))})


class _Probe:
    """Responses and rewards of checkpoints, each computed once and stored."""

    def __init__(self, config: ConsistencyConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self._loaded: tuple[str, Scorer] | None = None
        self.kept = Path(config.out) / "consistency"
        pairs = load_pairs(config.data, split=config.split, options=config.data_options).pairs
        distinct = list(dict.fromkeys(pair.prompt for pair in pairs))[: config.prompts]
        tokenizer = load_tokenizer(config.haf)
        limit = min(RunInfo.load(Path(run)).max_length for run in (config.haf, config.dpo))
        self.prompts = prompts_that_fit(distinct, tokenizer, config.sampling, limit)
        self.too_long = len(distinct) - len(self.prompts)
        if len(self.prompts) < 2:
            raise DataError(
                f"{len(self.prompts)} of {len(distinct)} prompts leave room for {config.sampling.max_new_tokens} new "
                f"tokens within {limit}. Lower sampling.max_new_tokens."
            )

    def responses(self, checkpoint: Checkpoint) -> list[str]:
        """Return the checkpoint's answers to all prompts."""
        depends_on = {
            "model": self._identity(str(checkpoint.folder)),
            "sampling": asdict(self.config.sampling),
            "prompts": [prompt.as_row() for prompt in self.prompts],
        }

        def compute() -> list[str]:
            self.say(f"{checkpoint.folder}: answering {len(self.prompts)} prompts")
            model, tokenizer, _ = load_run(checkpoint.folder, dtype=self.config.score.torch_dtype())
            device = self.config.score.torch_device()
            return generate_responses(model.causal_lm.to(device), tokenizer, self.prompts, self.config.sampling)

        return cast(list[str], remembered(self.kept, "responses", depends_on, compute))

    def oracle(self, checkpoint: Checkpoint) -> list[float | None]:
        """Return the oracle's rewards of a checkpoint's answers."""
        name = self.config.oracle.removeprefix("world/")
        if name in WORLD_SETS and name != self.config.oracle:
            return [oracle_reward(conversation, name) for conversation in self._conversations(checkpoint)]
        return self._scored(self.config.oracle, checkpoint)

    def own(self, judge: Checkpoint, checkpoint: Checkpoint) -> list[float | None]:
        """Return the rewards that one checkpoint's reward head gives to another checkpoint's answers."""
        return self._scored(str(judge.folder), checkpoint)

    def _scored(self, model: str, checkpoint: Checkpoint) -> list[float | None]:
        conversations = self._conversations(checkpoint)
        texts: list[Any] = [[asdict(message) for message in c.turns] for c in conversations]
        depends_on = {"model": self._identity(model), "conversations": texts}
        score = partial(self._score, model, conversations)
        return cast(list[float | None], remembered(self.kept, "rewards", depends_on, score))

    def _score(self, model: str, conversations: Sequence[Conversation]) -> list[float | None]:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None  # free the memory before loading another model
            self._loaded = model, load_scorer(model, head="reward", options=self.config.score.as_in_training())
        return self._loaded[1].score(conversations)

    def _conversations(self, checkpoint: Checkpoint) -> list[Conversation]:
        answers = self.responses(checkpoint)
        return [
            Conversation(prompt, (Message("assistant", answer),))
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]

    def _identity(self, model: str) -> dict[str, Any]:
        return model_identity(model, ScorerChoice(head="reward"), self.config.score)
