"""Policies trained by PPO: Figure 5, and a check that PPO learns.

Section 4.2.2 trains a Safety reward model (BS and Harmless) and a Chat one (AHP, CA and Helpful), and GPT-4 compares
the policies' answers. In the world its oracle compares them, by the true reward of the prompt's own set; elsewhere a
judge does. A judge that gives rewards, like the oracle, also shows over-optimisation: how its reward diverges from the
trained one as a policy leaves its start.

The check is not in the paper: trained on the judge's own reward, does PPO raise that reward on new prompts?
Differences between reward models mean nothing if the trainer does not learn.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from markupsafe import Markup

from hafrm.data import load_pairs
from hafrm.errors import ConfigError, DataError
from hafrm.judging.options import Budget
from hafrm.models.generating import prompt_ids
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import Scorer
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.paper.numbers import CATEGORIES
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.probes import remembered
from hafrm.paper.runs import Policy
from hafrm.paper.scales import Job, in_paper_order
from hafrm.paper.tables import build_findings
from hafrm.paper.world import oracle_reward
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Cell, Findings, Table
from hafrm.report.wording import count, interval, percent
from hafrm.rewards import load_reward
from hafrm.rlhf.checkpoints import Answers, checkpoint_answers
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.rewards import answered, scores_of
from hafrm.sampling.candidates import Candidates
from hafrm.sampling.judged import JudgeRuns
from hafrm.stats import Interval, bootstrap_interval, paired_bootstrap
from hafrm.training.manifest import read_manifest

_Rival = Literal["haf", "baseline"]
_RIVALS: Mapping[_Rival, str] = {"haf": "HAF", "baseline": "baseline"}
"""Methods whose rewards train policies, with their display names."""

PROMPTS = 240
"""Test prompts that each checkpoint answers once, divided evenly among the sets."""

_LINES = ("haf", "baseline", "dpo", "zero", "haf dash1", "baseline dash1")
"""Curve styles of the seeds of the check, in turn."""


@dataclass(frozen=True)
class Judged:
    """A checkpoint's answers with both rewards, in the order of the prompts."""

    answers: Answers
    gold: list[float]
    """The judge's reward; for a judge that only compares, the result of each duel: 1 won, 0 lost, 1/2 undecided."""
    proxy: list[float]
    """Reward used in training."""


@dataclass(frozen=True)
class Point:
    """Policies of several seeds after the same number of steps."""

    step: int
    gold: tuple[float, ...]
    """True reward per prompt, averaged over seeds."""
    proxy: tuple[float, ...]
    """Reward used in training, per prompt, averaged over seeds."""
    kl: float
    length: float
    gold_by_seed: tuple[float, ...]
    """Mean true reward per seed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the means as a JSON-serialisable dict."""
        return {
            "gold": statistics.fmean(self.gold),
            "gold_by_seed": list(self.gold_by_seed),
            "proxy": statistics.fmean(self.proxy),
            "kl": self.kl,
            "length": self.length,
        }


def held_out_prompts(job: Job, backbone: str, sets: Sequence[str], most: int) -> dict[Prompt, str]:
    """Return distinct test prompts that fit, evenly from each set, mapped to their set's data name.

    Raises:
        DataError: fewer than two prompts fit.
    """
    tokenizer = load_tokenizer(job.model(backbone))
    policy = Policy(backbone=backbone, sets=tuple(sets), rewarded_by=None, seed=job.seeds[0])
    longest = policy.config(job).max_prompt_tokens
    found: dict[Prompt, str] = {}
    for name in sets:
        data = job.scale.sets[name].test
        prompts = dict.fromkeys(pair.prompt for pair in load_pairs(data, split="test").pairs)
        fitting = [prompt for prompt in prompts if len(prompt_ids(tokenizer, prompt)) <= longest]
        found |= dict.fromkeys(fitting[: most // len(sets)], data)
    if len(found) < 2:
        raise DataError(f"{', '.join(sets)}: fewer than two test prompts have at most {longest} tokens.")
    return found


def judged_answers(job: Job, policy: Policy, prompts: Mapping[Prompt, str]) -> list[Judged]:
    """Return the answers of every checkpoint with both rewards, starting with the untrained policy.

    Answers are sampled once and stored, so that later comparisons use the same ones.

    Raises:
        DataError: the reward model can't score an answer.
    """
    config = policy.config(job)
    scorer = load_reward(config.reward, config, config.score)
    judged = []
    for answers in _answers(job, config, policy, list(prompts)):
        talks = [answered(prompt, text) for prompt, text in zip(prompts, answers.texts, strict=True)]
        gold = _rewards(job, talks, prompts) if gives_rewards(job) else [0.5] * len(talks)
        judged.append(Judged(answers, gold, _all_scores(config.reward, scorer, talks)))
    return judged


def gives_rewards(job: Job) -> bool:
    """Return whether the judge gives rewards, and does not only compare."""
    return job.judge is None or job.judge.kind in ("reward", "oracle")


def _rewards(job: Job, talks: Sequence[Conversation], prompts: Mapping[Prompt, str]) -> list[float]:
    if job.judge is None:
        names = (data.removeprefix("world/") for data in prompts.values())
        return [oracle_reward(talk, name) for talk, name in zip(talks, names, strict=True)]
    choice = ScorerChoice(trust_remote_code=job.trust_remote_code)
    return _all_scores(job.judge.model, choice.load(job.judge.model, ScoreOptions(overlong="truncate")), talks)


def _all_scores(model: str, scorer: Scorer, talks: Sequence[Conversation]) -> list[float]:
    scores = [score for score in scores_of(scorer, talks) if score is not None]
    if len(scores) < len(talks):
        raise DataError(f"{model} can't score {len(talks) - len(scores)} answers. Raise --max_length.")
    return scores


def _answers(job: Job, config: RlhfConfig, policy: Policy, prompts: Sequence[Prompt]) -> list[Answers]:
    depends_on = {
        "options": asdict(config),
        "trained": (read_manifest(Path(config.out)) or {}).get("started"),
        "prompts": [prompt.as_row() for prompt in prompts],
    }

    def compute() -> list[dict[str, Any]]:
        return [asdict(answers) for answers in checkpoint_answers(config, prompts, seed=policy.seed)]

    kept = remembered(job.root / "answers" / policy.name, "answers", depends_on, compute)
    return [Answers(**value) for value in cast(list[dict[str, Any]], kept)]


def mean_over_seeds(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Average each prompt over seeds.

    Args:
        rows: One row per seed, with one value per prompt.
    """
    return tuple(map(statistics.fmean, zip(*rows, strict=True)))


def points_of(seeds: Sequence[Sequence[Judged]]) -> tuple[Point, ...]:
    """Combine the checkpoints of several seeds' policies by step."""
    return tuple(
        Point(
            step=checkpoints[0].answers.step,
            gold=mean_over_seeds([each.gold for each in checkpoints]),
            proxy=mean_over_seeds([each.proxy for each in checkpoints]),
            kl=statistics.fmean(value for each in checkpoints for value in each.answers.kl),
            length=statistics.fmean(value for each in checkpoints for value in each.answers.lengths),
            gold_by_seed=tuple(statistics.fmean(each.gold) for each in checkpoints),
        )
        for checkpoints in zip(*seeds, strict=True)
    )


def learnt(points: Sequence[Point]) -> dict[str, Any]:
    """Compute the gain in true reward from the first point to the last.

    Returns:
        `{"gain", "ci95", "by_seed"}`; the 95% interval is over prompts, of the mean over seeds, and None for too few.
    """
    first, last = points[0], points[-1]
    found = paired_bootstrap(last.gold, first.gold, range(len(first.gold)))
    by_seed = [after - before for before, after in zip(first.gold_by_seed, last.gold_by_seed, strict=True)]
    return {"gain": found.difference, "ci95": found.interval, "by_seed": by_seed}


def learning_table(title: str, policies: Mapping[str, Sequence[Point]]) -> Table:
    """Tabulate the true reward at the start and at the end, one row per policy."""
    rows = []
    for name, points in policies.items():
        gain = learnt(points)
        rows.append(
            (
                name,
                f"{statistics.fmean(points[0].gold):.2f}",
                f"{statistics.fmean(points[-1].gold):.2f}",
                f"{gain['gain']:+.2f} {interval(gain['ci95'], '{:+.2f}'.format)}".strip(),
                ", ".join(f"{each:+.2f}" for each in gain["by_seed"]),
            )
        )
    columns = ("policy", "judge's reward at the start", "at the end", "gain, 95% interval", "by seed")
    return Table(title, columns, tuple(rows))


def reward_curve(
    label: str, kind: str, points: Sequence[Point], reward: Literal["gold", "proxy"], by: Literal["step", "kl"]
) -> Curve:
    """Return the curve of a mean reward over steps or over KL."""
    drawn = tuple((float(getattr(point, by)), statistics.fmean(getattr(point, reward))) for point in points)
    return Curve(label, kind, drawn)


def plan_check(job: Job) -> Plan:
    """Plan one policy per backbone and seed, trained on the true reward of the first set (by default Helpful).

    Raises:
        ConfigError: outside the world, no reward model is given as judge.
    """
    require_rewards(job, "ppo")
    return with_answers(job, [policy for backbone in job.backbones for policy in _checked(job, backbone)])


def require_rewards(job: Job, name: str) -> None:
    """Raise if the judge of an experiment gives no rewards.

    Raises:
        ConfigError: outside the world, no reward model is given as judge.
    """
    if not job.in_world and (job.judge is None or job.judge.kind != "reward"):
        raise ConfigError(
            f"{name}: at scale {job.scale.name} the true reward is unknown. Name a reward model instead, such as a run "
            "or a server's address, by --judge.kind reward and --judge.model."
        )


def with_answers(job: Job, policies: Sequence[Policy]) -> Plan:
    """Plan policies, and the answers of their checkpoints: read by policy, reference, reward and a judge's own reward.

    A judge that only compares is asked once about both policies' answers, or once in each order.
    """
    compared = job.judge if job.judge is not None and job.judge.kind == "openai" else None
    orders = 0 if compared is None else 2 if compared.orders == "both" else 1
    answers = []
    for policy in policies:
        config = policy.config(job, model=policy.backbone)
        draws = 1 + min(config.checkpoints, config.steps)
        answers.append(
            Responses(
                made=f"answers/{policy.name}/*.json",
                backbone=policy.backbone,
                sets=policy.sets,
                prompts=PROMPTS,
                draws=draws,
                new_tokens=config.sampling.max_new_tokens,
                readers=3 + (job.judge is not None and job.judge.kind == "reward"),
                questions=orders * draws if policy.rewarded_by == "haf" else 0,
            )
        )
    return Plan(policies=tuple(policies), responses=tuple(answers))


def _checked(job: Job, backbone: str) -> list[Policy]:
    return [Policy(backbone=backbone, sets=job.sets[:1], rewarded_by=None, seed=seed) for seed in job.seeds]


def find_check(job: Job) -> Findings:
    """Report the true reward before and after training, its gain, and its curve for each seed."""
    judged = {}
    for backbone in job.backbones:
        prompts = held_out_prompts(job, backbone, job.sets[:1], PROMPTS)
        judged[backbone] = [judged_answers(job, policy, prompts) for policy in _checked(job, backbone)]
    points = {backbone: points_of(seeds) for backbone, seeds in judged.items()}
    panels = {
        backbone: Panel(
            f"{job.sets[0]}: judge's reward",
            tuple(
                reward_curve(f"seed {seed}", _LINES[place % len(_LINES)], points_of([each]), "gold", "step")
                for place, (seed, each) in enumerate(zip(job.seeds, seeds, strict=True))
            ),
        )
        for backbone, seeds in judged.items()
    }
    steps = {backbone: {str(point.step): point.as_dict() for point in each} for backbone, each in points.items()}
    return build_findings(
        job,
        "ppo",
        results={
            "seeds": list(job.seeds),
            "set": job.sets[0],
            "learnt": {backbone: learnt(each) for backbone, each in points.items()},
            "steps": steps,
        },
        tables=[
            learning_table(
                "Judge's reward of answers to new prompts",
                {f"{name}, {count(len(each[0].gold), 'prompt')}": each for name, each in points.items()},
            )
        ],
        figures={
            f"ppo-{backbone}": curve_panels(f"Judge's reward over PPO steps, {backbone}", [panel])
            for backbone, panel in panels.items()
        },
        prompts=PROMPTS,
    )


@dataclass(frozen=True)
class Duel:
    """Policies of the two methods on one category."""

    points: Mapping[_Rival, tuple[Point, ...]]
    wins: Mapping[int, tuple[float, ...]]
    """By step: per prompt, the share of seeds in which HAF's answer has the larger true reward; ties count one half."""
    undecided: Mapping[int, tuple[int, int]]
    """By step, over prompts and seeds: duels that count one half, and those of them without a verdict."""

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
            "policies": {
                rival: {str(point.step): point.as_dict() for point in points} for rival, points in self.points.items()
            },
            "learnt": {rival: learnt(points) for rival, points in self.points.items()},
        }


def plan_duels(job: Job) -> Plan:
    """Plan HAF and the baseline for each category and seed, and a policy for each.

    Raises:
        ConfigError: outside the world, no judge is given.
    """
    if not job.in_world and (job.judge is None or job.judge.kind == "oracle"):
        raise ConfigError(
            f"judge: at scale {job.scale.name} the true reward is unknown. Name a judge with --judge.kind "
            "(openai, local or reward) and --judge.model."
        )
    policies = [
        Policy(backbone=backbone, sets=sets, rewarded_by=rival, seed=seed)
        for backbone in job.backbones
        for sets in _categories(job).values()
        for seed in job.seeds
        for rival in _RIVALS
    ]
    return Plan(tuple(policy.reward for policy in policies if policy.reward)) + with_answers(job, policies)


def _categories(job: Job) -> dict[str, tuple[str, ...]]:
    """Return the job's sets by category, Safety first, as in the paper's figure."""
    found = {category: [name for name in CATEGORIES[category] if name in job.sets] for category in ("Safety", "Chat")}
    return {category: in_paper_order(sets) for category, sets in found.items() if sets}


def find_duels(job: Job) -> Findings:
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
            for table in _duel_tables(backbone, each, rewards=gives_rewards(job))
        ],
        figures={
            name: figure
            for backbone, each in duels.items()
            for name, figure in _figures(backbone, each)
            if gives_rewards(job) or name == f"figure5-{backbone}"
        },
        prompts=PROMPTS,
    )


def _duel(job: Job, backbone: str, sets: tuple[str, ...]) -> Duel:
    prompts = held_out_prompts(job, backbone, sets, PROMPTS)
    seeds: dict[_Rival, list[list[Judged]]] = {
        rival: [
            judged_answers(job, Policy(backbone=backbone, sets=sets, rewarded_by=rival, seed=seed), prompts)
            for seed in job.seeds
        ]
        for rival in _RIVALS
    }
    missing: Counter[int] = Counter()
    if not gives_rewards(job):
        seeds = _compared(job, backbone, sets, seeds, list(prompts), missing)
    points = {rival: points_of(found) for rival, found in seeds.items()}
    pairs = [list(zip(ours, theirs, strict=True)) for ours, theirs in zip(*seeds.values(), strict=True)]
    hits = {
        point.step: [duel_hits(*pair[place]) for pair in pairs] for place, point in enumerate(points["haf"])
    }  # of each seed
    return Duel(
        points,
        {step: mean_over_seeds(each) for step, each in hits.items()},
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
        sides: dict[_Rival, list[Judged]] = {rival: [] for rival in seeds}
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
            sides["haf"].append(replace(haf, gold=won))
            sides["baseline"].append(replace(baseline, gold=[1 - value for value in won]))
        for rival, judged in sides.items():
            found[rival].append(judged)
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
        yield learning_table(
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
        rows: list[tuple[Cell, ...]] = []
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
            rows.append((str(step), f"{percent(rate)} {interval(ends, percent)}".strip(), undecided, *cells))
        prompts = count(len(duel.points["haf"][0].gold), "prompt")
        yield Table(f"{category}, {backbone}: {prompts}", ("step", "HAF wins, %", "undecided", *columns), tuple(rows))


def _figures(backbone: str, duels: Mapping[str, Duel]) -> Iterator[tuple[str, Markup]]:
    def curves(duel: Duel, reward: Literal["gold", "proxy"], by: Literal["step", "kl"]) -> tuple[Curve, ...]:
        return tuple(reward_curve(label, rival, duel.points[rival], reward, by) for rival, label in _RIVALS.items())

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
