"""Figure 5: policies trained on HAF's rewards compared with policies trained on the baseline's, at the same steps.

Section 4.2.2 trains a Safety reward model (BS and Harmless) and a Chat one (AHP, CA and Helpful), and GPT-4 compares
the policies' answers. Here the world's oracle compares them by the true reward of the prompt's own set. Knowing the
true reward also shows over-optimisation: how it diverges from the trained reward as a policy leaves its start.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from markupsafe import Markup

from hafrm.errors import ConfigError
from hafrm.paper.judged import (
    Judged,
    Point,
    held_out_prompts,
    judged_answers,
    learning_table,
    learnt,
    mean_over_seeds,
    points_of,
    reward_curve,
)
from hafrm.paper.plans import Job, Plan
from hafrm.paper.policies import PolicyRun
from hafrm.paper.scales import in_paper_order
from hafrm.paper.table2 import scale_notes
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Cell, Findings, Table
from hafrm.report.wording import interval, percent
from hafrm.stats import Interval, bootstrap_interval

CATEGORIES: Mapping[str, tuple[str, ...]] = {"Safety": ("BS", "Harmless"), "Chat": ("AHP", "CA", "Helpful")}
"""Training sets of the paper's two reward models."""

_Rival = Literal["haf", "baseline"]
_RIVALS: tuple[_Rival, ...] = ("haf", "baseline")
_LABELS: Mapping[_Rival, str] = {"haf": "HAF", "baseline": "baseline"}
_REWARDS: Mapping[Literal["proxy", "gold"], str] = {"proxy": "reward trained on", "gold": "true reward"}
_PROMPTS = 240
"""Test prompts per category, divided evenly among its sets."""


@dataclass(frozen=True)
class _Duel:
    """Policies of the two methods on one category."""

    points: Mapping[_Rival, tuple[Point, ...]]
    wins: Mapping[int, tuple[float, ...]]
    """By step: per prompt, the share of seeds in which HAF's answer has the larger true reward; ties count one half."""

    @cached_property
    def win_rates(self) -> dict[int, tuple[float, Interval | None]]:
        """HAF's win rate by step, with its interval over prompts."""
        return {
            step: (statistics.fmean(hits), bootstrap_interval(hits, range(len(hits))))
            for step, hits in self.wins.items()
        }


def plan(job: Job) -> Plan:
    """Plan HAF and the baseline for each category and seed, and a policy for each.

    Raises:
        ConfigError: the scale is not `world`, so there is no oracle.
    """
    if job.scale.name != "world":
        raise ConfigError(
            "figure5 is judged by the world's oracle: use --scale world. Elsewhere train policies with `hafrm rlhf` on "
            "two reward models, sample from checkpoints of the same step and compare with `hafrm judge`; docs/rlhf.md "
            "has the commands."
        )
    policies = tuple(
        _policy(job, backbone, category, rival, seed)
        for backbone in job.backbones
        for category in _categories(job)
        for seed in job.seeds
        for rival in _RIVALS
    )
    return Plan(tuple(policy.reward for policy in policies if policy.reward), policies=policies)


def find(job: Job) -> Findings:
    """Report win rates over steps, true rewards over steps, and both rewards over KL."""
    duels = {backbone: {name: _duel(job, backbone, name) for name in _categories(job)} for backbone in job.backbones}
    return Findings(
        title="Figure 5: policies trained on HAF's rewards and on the baseline's",
        intro=(
            f"PPO from the reward models' own backbone. Scale {job.scale.name}, backbones {', '.join(job.backbones)}, "
            f"seeds {', '.join(map(str, job.seeds))}. Each checkpoint answers {_PROMPTS} test prompts of a category "
            "once; the world's oracle compares, a tie counting one half. In brackets 95% intervals over prompts of "
            "the mean over seeds."
        ),
        results={
            "scale": job.scale.name,
            "seeds": list(job.seeds),
            "duels": {backbone: {name: _json(duel) for name, duel in each.items()} for backbone, each in duels.items()},
        },
        tables=tuple(
            table for backbone, each in duels.items() for table in (_learning(backbone, each), *_tables(backbone, each))
        ),
        figures={name: figure for backbone, each in duels.items() for name, figure in _figures(backbone, each)},
        notes=(
            "The paper's Figure 5 prints no numbers. It says that HAF's win rate rises through training on Chat, and "
            "that on Safety HAF leads in the middle of training.",
            "Two reward models' rewards share no unit: compare the shape of their curves. KL is estimated from the "
            "answers themselves, under the whole distribution, though top-p cuts what is drawn.",
            *scale_notes(job),
        ),
    )


def _categories(job: Job) -> list[str]:
    """Return the categories with at least one of the job's sets."""
    return [name for name, sets in CATEGORIES.items() if set(sets) & set(job.sets)]


def _sets(job: Job, category: str) -> tuple[str, ...]:
    return in_paper_order([name for name in CATEGORIES[category] if name in job.sets])


def _policy(job: Job, backbone: str, category: str, rival: _Rival, seed: int) -> PolicyRun:
    return PolicyRun(backbone=backbone, sets=_sets(job, category), rewarded_by=rival, seed=seed)


def _duel(job: Job, backbone: str, category: str) -> _Duel:
    prompts = held_out_prompts(job, backbone, _sets(job, category), _PROMPTS)
    seeds: dict[_Rival, list[list[Judged]]] = {
        rival: [judged_answers(job, _policy(job, backbone, category, rival, seed), prompts) for seed in job.seeds]
        for rival in _RIVALS
    }
    points = {rival: points_of(found) for rival, found in seeds.items()}
    pairs = [list(zip(ours, theirs, strict=True)) for ours, theirs in zip(*seeds.values(), strict=True)]
    wins = {
        point.step: mean_over_seeds([_hits(*pair[place]) for pair in pairs])
        for place, point in enumerate(points["haf"])
    }
    return _Duel(points, wins)


def _hits(ours: Judged, theirs: Judged) -> list[float]:
    return [0.5 if a == b else float(a > b) for a, b in zip(ours.gold, theirs.gold, strict=True)]


def _json(duel: _Duel) -> dict[str, Any]:
    return {
        "win_rate": {str(step): {"value": value, "ci95": ends} for step, (value, ends) in duel.win_rates.items()},
        "policies": {
            rival: {str(point.step): point.as_dict() for point in points} for rival, points in duel.points.items()
        },
        "learnt": {rival: learnt(points).as_dict() for rival, points in duel.points.items()},
    }


def _learning(backbone: str, duels: Mapping[str, _Duel]) -> Table:
    return learning_table(
        f"Does PPO learn? ({backbone})",
        {
            f"{category}, {label}": duel.points[rival]
            for category, duel in duels.items()
            for rival, label in _LABELS.items()
        },
    )


def _tables(backbone: str, duels: Mapping[str, _Duel]) -> Iterator[Table]:
    """Tabulate each category's policies by step."""
    header: tuple[Cell, ...] = ("step", "HAF wins, %")
    header += tuple(
        f"{what}, {label}" for what in ("true reward", "reward", "KL", "tokens") for label in _LABELS.values()
    )
    for category, duel in duels.items():
        rows = []
        for place, (step, (rate, ends)) in enumerate(duel.win_rates.items()):
            pair = [duel.points[rival][place] for rival in _RIVALS]
            cells = (
                *(f"{statistics.fmean(point.gold):.2f}" for point in pair),
                *(f"{statistics.fmean(point.proxy):.2f}" for point in pair),
                *(f"{point.kl:.1f}" for point in pair),
                *(f"{point.length:.1f}" for point in pair),
            )
            rows.append((str(step), f"{percent(rate)} {interval(ends, percent)}".strip(), *cells))
        yield Table(f"{category}, {backbone}", header, tuple(rows))


def _figures(backbone: str, duels: Mapping[str, _Duel]) -> Iterator[tuple[str, Markup]]:
    yield (
        f"figure5-{backbone}",
        curve_panels(
            f"Share of prompts that HAF's policy answers better, {backbone}",
            [Panel(f"{category}: HAF wins, %", tuple(_win_curves(duel))) for category, duel in duels.items()],
        ),
    )
    yield (
        f"figure5-gold-{backbone}",
        curve_panels(
            f"True reward over steps, {backbone}",
            [
                Panel(f"{category}: true reward", tuple(_reward_curves(duel, "gold", "step")))
                for category, duel in duels.items()
            ],
        ),
    )
    yield (
        f"figure5-over-optimisation-{backbone}",
        curve_panels(
            f"The reward that is trained on and the true one over KL, {backbone}",
            [
                Panel(f"{category}: {title}", tuple(_reward_curves(duel, reward, "kl")), "KL from the start, nats")
                for category, duel in duels.items()
                for reward, title in _REWARDS.items()
            ],
        ),
    )


def _win_curves(duel: _Duel) -> Iterator[Curve]:
    rates = duel.win_rates.items()
    yield Curve("win rate", "haf", tuple((float(step), 100 * value) for step, (value, _) in rates))
    if intervals := [(float(step), ends) for step, (_, ends) in rates if ends is not None]:
        yield Curve("95% interval", "haf dash3", tuple((step, 100 * ends.low) for step, ends in intervals))
        yield Curve("", "haf dash3", tuple((step, 100 * ends.high) for step, ends in intervals))
    yield Curve("even", "zero dash2", tuple((float(step), 50.0) for step, _ in rates))


def _reward_curves(duel: _Duel, reward: Literal["gold", "proxy"], by: Literal["step", "kl"]) -> Iterator[Curve]:
    for rival, label in _LABELS.items():
        yield Curve(label, rival, reward_curve(duel.points[rival], reward, by))
