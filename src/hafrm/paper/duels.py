"""Figure 5: policies trained on HAF's rewards against policies trained on the baseline's.

Section 4.2.2 trains a Safety reward model (BS and Harmless) and a Chat one (AHP, CA and Helpful), and GPT-4 compares
the policies' answers. In the world its oracle compares them, by the true reward of the prompt's own set; elsewhere a
judge does. A judge that gives rewards, like the oracle, also shows over-optimisation: how its reward diverges from the
trained one as a policy leaves its start.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from markupsafe import Markup

from hafrm.errors import ConfigError
from hafrm.judging.options import Budget
from hafrm.models.options import ScoreOptions
from hafrm.pairs import Message, Prompt
from hafrm.paper import policies
from hafrm.paper.numbers import CATEGORIES
from hafrm.paper.plans import Plan
from hafrm.paper.policies import Judged, Point
from hafrm.paper.runs import Policy, seed_policies
from hafrm.paper.scales import Job, in_paper_order
from hafrm.paper.tables import build_findings
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import count, percent, with_interval
from hafrm.sampling.candidates import Candidates
from hafrm.sampling.judged import JudgeRuns
from hafrm.stats import Interval, bootstrap_interval

_Rival = Literal["haf", "baseline"]
_RIVALS: Mapping[_Rival, str] = {"haf": "HAF", "baseline": "baseline"}
"""Methods whose rewards train policies, with their display names."""


@dataclass(frozen=True)
class Duel:
    """Policies of the two methods on one category."""

    points: Mapping[_Rival, tuple[Point, ...]]
    wins: Mapping[int, tuple[float, ...]]
    """By step: per prompt, the share of seeds in which HAF's answer has the larger true reward; ties count one half."""
    undecided: Mapping[int, tuple[int, int]]
    """By step, over prompts and seeds: duels that count one half, and how many of these lack a verdict."""

    @cached_property
    def win_rates(self) -> dict[int, tuple[float, Interval | None]]:
        """HAF's win rate by step, with its interval over prompts."""
        return {
            step: (statistics.fmean(hits), bootstrap_interval(hits, range(len(hits))))
            for step, hits in self.wins.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the duel as a JSON-serialisable dict."""
        return {
            "win_rate": {
                str(step): {
                    "value": value,
                    "ci95": ends,
                    **dict(zip(("undecided", "no_verdict"), self.undecided[step], strict=True)),
                }
                for step, (value, ends) in self.win_rates.items()
            },
            "policies": {rival: policies.by_step(points) for rival, points in self.points.items()},
            "learnt": {rival: policies.learnt(points) for rival, points in self.points.items()},
        }


def plan(job: Job) -> Plan:
    """Plan HAF and the baseline for each category and seed, and a policy for each.

    Raises:
        ConfigError: outside the world, no judge is given.
    """
    if not job.in_world and (job.judge is None or job.judge.kind == "oracle"):
        raise ConfigError(
            f"judge: at scale {job.scale.name} the true reward is unknown. Name a judge with --judge.kind "
            "(openai, local or reward) and --judge.model."
        )
    planned = [
        Policy(backbone=backbone, sets=sets, rewarded_by=rival, seed=seed)
        for backbone in job.backbones
        for sets in _categories(job).values()
        for seed in job.seeds
        for rival in _RIVALS
    ]
    return Plan(tuple(policy.reward for policy in planned if policy.reward)) + policies.with_answers(job, planned)


def _categories(job: Job) -> dict[str, tuple[str, ...]]:
    """Return the job's sets by category, Safety first, as in the paper's figure."""
    found = {category: [name for name in CATEGORIES[category] if name in job.sets] for category in ("Safety", "Chat")}
    return {category: in_paper_order(sets) for category, sets in found.items() if sets}


def find(job: Job) -> Findings:
    """Report win rates over steps, true rewards over steps, and both rewards over KL."""
    duels = {
        backbone: {category: _duel(job, backbone, sets) for category, sets in _categories(job).items()}
        for backbone in job.backbones
    }
    shown = {backbone: {name: duel.as_dict() for name, duel in each.items()} for backbone, each in duels.items()}
    return build_findings(
        job,
        "figure5",
        results={"seeds": list(job.seeds), "duels": shown},
        tables=[
            table
            for backbone, each in duels.items()
            for table in _duel_tables(backbone, each, rewards=policies.gives_rewards(job))
        ],
        figures={
            name: figure
            for backbone, each in duels.items()
            for name, figure in _figures(backbone, each)
            if policies.gives_rewards(job) or name == f"figure5-{backbone}"
        },
        prompts=policies.PROMPTS,
    )


def _duel(job: Job, backbone: str, sets: tuple[str, ...]) -> Duel:
    prompts = policies.held_out_prompts(job, backbone, sets, policies.PROMPTS)
    seeds: dict[_Rival, list[list[Judged]]] = {
        rival: [
            policies.judged_answers(job, policy, prompts)
            for policy in seed_policies(job, backbone, sets, rewarded_by=rival)
        ]
        for rival in _RIVALS
    }
    missing: Counter[int] = Counter()
    if not policies.gives_rewards(job):
        seeds = _compared(job, backbone, sets, seeds, list(prompts), missing)
    points = {rival: policies.points_of(found) for rival, found in seeds.items()}
    pairs = [list(zip(ours, theirs, strict=True)) for ours, theirs in zip(*seeds.values(), strict=True)]
    hits = {
        point.step: [duel_hits(*pair[place]) for pair in pairs] for place, point in enumerate(points["haf"])
    }  # one list per seed
    return Duel(
        points,
        {step: policies.averaged(each) for step, each in hits.items()},
        {step: (sum(row.count(0.5) for row in each), missing[step]) for step, each in hits.items()},
    )


def _compared(
    job: Job,
    backbone: str,
    sets: Sequence[str],
    seeds: Mapping[_Rival, list[list[Judged]]],
    prompts: Sequence[Prompt],
    missing: Counter[int],
) -> dict[_Rival, list[list[Judged]]]:
    """Have a judge compare both policies' answers at each step.

    Answers without a verdict count as undecided, and are added to `missing` by step.
    """
    assert job.judge is not None
    found: dict[_Rival, list[list[Judged]]] = {rival: [] for rival in seeds}
    budget = Budget.of(job.judge)
    for seed, ours, theirs in zip(job.seeds, seeds["haf"], seeds["baseline"], strict=True):
        for judged in found.values():
            judged.append([])
        for haf, baseline in zip(ours, theirs, strict=True):
            folder = job.root / "duels" / backbone / "+".join(sets) / f"seed{seed}-step{haf.answers.step}"
            runs = JudgeRuns(
                judge=job.judge,
                folder=folder,
                score=ScoreOptions(),
                trust_remote_code=job.trust_remote_code,
                seed=seed,
                budget=budget,
                say=lambda line: None,
            )
            verdicts = _won(runs, prompts, haf.answers.texts, baseline.answers.texts)
            missing[haf.answers.step] += verdicts.count(None)
            won = [0.5 if verdict is None else verdict for verdict in verdicts]
            found["haf"][-1].append(replace(haf, gold=won))
            found["baseline"][-1].append(replace(baseline, gold=[1 - value for value in won]))
    return found


def _won(runs: JudgeRuns, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> list[float | None]:
    """Return for each prompt 1 if our answer wins, 0 if theirs, one half for a tie, and None without a verdict."""
    rows = [
        Candidates(
            group=str(number),
            prompt=prompt,
            responses=tuple((Message("assistant", text),) for text in pair),
            counts=(1, 1),
            source=str(runs.folder),
            row=number,
        )
        for number, (prompt, *pair) in enumerate(zip(prompts, ours, theirs, strict=True))
    ]
    verdicts, _ = runs.compare(rows, {row.id: {0, 1} for row in rows})
    return [verdicts.get(row.id, {}).get((0, 1)) for row in rows]


def duel_hits(ours: Judged, theirs: Judged) -> list[float]:
    """Return for each prompt 1 if our answer has the larger true reward, one half for a tie, otherwise 0."""
    return [0.5 if a == b else float(a > b) for a, b in zip(ours.gold, theirs.gold, strict=True)]


def _duel_tables(backbone: str, duels: Mapping[str, Duel], *, rewards: bool) -> Iterator[Table]:
    """Tabulate whether the policies learn, if the judge gives rewards, and each category's policies by step."""
    if rewards:
        yield policies.learning_table(
            f"Does PPO learn? ({backbone})",
            {
                f"{category}, {label}": duel.points[rival]
                for category, duel in duels.items()
                for rival, label in _RIVALS.items()
            },
        )
    gold = ["judge's reward"] if rewards else []
    columns = [f"{what}, {label}" for what in (*gold, "reward", "KL", "tokens") for label in _RIVALS.values()]
    for category, duel in duels.items():
        rows = []
        for place, (step, (rate, ends)) in enumerate(duel.win_rates.items()):
            pair = [duel.points[rival][place] for rival in _RIVALS]
            cells = (
                *(f"{statistics.fmean(point.gold):.2f}" for point in pair if rewards),
                *(f"{statistics.fmean(point.proxy):.2f}" for point in pair),
                *(f"{point.kl:.1f}" for point in pair),
                *(f"{point.length:.1f}" for point in pair),
            )
            equal, missing = duel.undecided[step]
            undecided = f"{equal}, {missing} without a verdict" if missing else str(equal)
            rows.append((str(step), with_interval(rate, ends, percent), undecided, *cells))
        prompts = count(len(duel.points["haf"][0].gold), "prompt")
        yield Table(f"{category}, {backbone}: {prompts}", ("step", "HAF wins, %", "undecided", *columns), rows)


def _figures(backbone: str, duels: Mapping[str, Duel]) -> Iterator[tuple[str, Markup]]:
    def curves(duel: Duel, reward: Literal["gold", "proxy"], by: Literal["step", "kl"]) -> tuple[Curve, ...]:
        return tuple(
            policies.reward_curve(label, rival, duel.points[rival], reward, by) for rival, label in _RIVALS.items()
        )

    wins = [Panel(f"{category}: HAF wins, %", tuple(_win_curves(duel))) for category, duel in duels.items()]
    yield (
        f"figure5-{backbone}",
        curve_panels(f"Share of prompts that HAF's policy answers better, {backbone}", wins),
    )
    gold = [Panel(f"{category}: judge's reward", curves(duel, "gold", "step")) for category, duel in duels.items()]
    yield f"figure5-gold-{backbone}", curve_panels(f"Judge's reward over steps, {backbone}", gold)
    rewards: Mapping[Literal["proxy", "gold"], str] = {"proxy": "reward trained on", "gold": "judge's reward"}
    both = [
        Panel(f"{category}: {title}", curves(duel, reward, "kl"), "KL from the start, nats")
        for category, duel in duels.items()
        for reward, title in rewards.items()
    ]
    yield (
        f"figure5-over-optimisation-{backbone}",
        curve_panels(f"The reward that is trained on and the judge's over KL, {backbone}", both),
    )


def _win_curves(duel: Duel) -> Iterator[Curve]:
    rates = duel.win_rates.items()
    yield Curve("win rate", "haf", tuple((float(step), 100 * value) for step, (value, _) in rates))
    if intervals := [(float(step), ends) for step, (_, ends) in rates if ends is not None]:
        yield Curve("95% interval", "haf dash3", tuple((step, 100 * ends.low) for step, ends in intervals))
        yield Curve("", "haf dash3", tuple((step, 100 * ends.high) for step, ends in intervals))
    yield Curve("even", "zero dash2", tuple((float(step), 50.0) for step, _ in rates))
