"""Whether a shared reward head favours the responses of its own policy head (the paper's Figure 2, Appendix E.1).

For a pair of like checkpoints, one of a hybrid run and one of a DPO run, both policy heads answer the same prompts.
x is by how much an oracle prefers the hybrid's answers, y by how much the hybrid's own reward head does. Points above
the diagonal say that the reward head likes its sibling's answers more than their quality warrants.

x and y must be in one unit for the diagonal to mean something. A Bradley-Terry reward is in logits; the simulated
world's oracle is too, up to its annotators' sharpness. `share_above_scaled` divides either by the standard deviation
of all rewards that it gave, which needs no common unit.

Shape letters: P points, Q prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hafrm.errors import DataError
from hafrm.paper.probes.checkpoints import Match, Matching
from hafrm.stats import FEWEST_GROUPS, Floats, Interval

__all__ = ["Consistency", "Point", "Share", "consistency"]

Rewards = Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One matched pair of checkpoints in Figure 2."""

    matching: Matching
    haf_step: int
    dpo_step: int
    gap: float
    """By how much the two differ in what they are matched by."""
    x: float
    """Mean over prompts of oracle(HAF's response) - oracle(DPO's response)."""
    y: float
    """Mean over prompts of HAF's reward(HAF's response) - HAF's reward(DPO's response)."""
    prompts: int
    """Prompts whose responses all had rewards."""


@dataclass(frozen=True)
class Share:
    """A share of points, with the 95% interval that resampling prompts gives.

    The points share checkpoints and responses, so they are not independent; the prompts are.
    """

    value: float
    interval: Interval | None
    """None where a point has rewards for fewer than six prompts."""


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Figure 2: the points, and how many lie above the diagonal y = x."""

    points: list[Point]
    share_above: Share
    share_above_scaled: Share
    """The same once x and y are divided by the standard deviations of the rewards they are differences of."""
    by_matching: dict[Matching, Share]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def consistency(
    matches: Sequence[Match],
    oracle: Mapping[str, Rewards],
    own: Mapping[tuple[int, str], Rewards],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Consistency:
    """The points of Figure 2 from the rewards of all responses.

    Args:
        matches: The matched checkpoints, hybrid first.
        oracle: The oracle's rewards of a checkpoint's responses, by the checkpoint's folder, [Q]; None where a
            response could not be scored.
        own: The rewards that the reward head of the hybrid's checkpoint (by step) gave to the responses of a
            checkpoint (by folder), [Q].
        resamples: How often to draw as many prompts as there are.
        seed: Seed of the draws.

    Raises:
        DataError: there is no match, or a pair of checkpoints has no prompt whose responses all have rewards.
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
    """X and y of each prompt, [Q]; NaN in both where a reward is missing."""
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
    """Standard deviation of all rewards that one judge gave; 1 where they are all equal."""
    return float(np.nanstd(np.concatenate([_numbers(each) for each in rewards]))) or 1.0


def _drawn_means(values: Floats, draws: Any) -> Floats:
    """Means over resampled prompts, [draws, P].

    NaN where a draw holds no prompt with rewards, and for a point that has rewards for few prompts.
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Floats = (draws @ np.where(known, values, 0).T) / (draws @ known.T)
    means[:, known.sum(axis=1) < FEWEST_GROUPS] = np.nan
    return means


def _share(here: Floats, means: tuple[Floats, ...], scales: tuple[float, float]) -> Share:
    """The share of points above the diagonal; one on it counts half."""

    def above(x: Floats, y: Floats) -> Floats:
        return np.asarray((1 + np.sign(y / scales[1] - x / scales[0])) / 2)

    drawn = above(*means).mean(axis=1)
    whole = drawn[~np.isnan(drawn)]  # a draw can lack every prompt of a point whose rewards are few
    ends = np.quantile(whole, [0.025, 0.975]).tolist() if len(whole) else None
    return Share(float(above(*here).mean()), Interval(*ends) if ends else None)
