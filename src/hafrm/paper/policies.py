"""Answers of policies trained by PPO with the judge's and the trained reward, and a check that PPO learns.

The check is not in the paper: trained on the judge's own reward, does PPO raise that reward on new prompts?
Differences between reward models mean nothing if the trainer does not learn.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from hafrm.data import load_pairs
from hafrm.errors import ConfigError, DataError
from hafrm.models.generating import prompt_ids
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import Scorer
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Conversation, Prompt
from hafrm.paper.measures import compared_by_prompt
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.probes import remembered
from hafrm.paper.record import values_line
from hafrm.paper.runs import Policy, seed_policies
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings, difference_cells
from hafrm.paper.world import oracle_reward
from hafrm.report.figures import Curve, Panel, curve_kind, curve_panels
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import count
from hafrm.rewards import load_reward
from hafrm.rlhf.checkpoints import Answers, checkpoint_answers
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.rewards import answered, scores_of
from hafrm.training.manifest import read_manifest

PROMPTS = 240
"""Test prompts that each checkpoint answers once, divided evenly among the sets."""


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


def by_step(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Return the means of points by step, in the format of `results.json`."""
    return {
        str(point.step): {
            "gold": statistics.fmean(point.gold),
            "gold_by_seed": list(point.gold_by_seed),
            "proxy": statistics.fmean(point.proxy),
            "kl": point.kl,
            "length": point.length,
        }
        for point in points
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
        gold = judges_rewards(job, talks, prompts) if gives_rewards(job) else [0.5] * len(talks)
        judged.append(Judged(answers, gold, _all_scores(config.reward, scorer, talks)))
    return judged


def gives_rewards(job: Job) -> bool:
    """Return whether the judge gives rewards, and does not only compare."""
    return job.judge is None or job.judge.kind in ("reward", "oracle")


def judges_rewards(job: Job, talks: Sequence[Conversation], prompts: Mapping[Prompt, str]) -> list[float]:
    """Return the judge's rewards of answers, in the order of the prompts: in the world the true ones.

    Raises:
        DataError: the judge can't score an answer.
    """
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


def averaged(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Average rows of equal length element by element, such as the values of prompts over seeds."""
    return tuple(map(statistics.fmean, zip(*rows, strict=True)))


def points_of(seeds: Sequence[Sequence[Judged]]) -> tuple[Point, ...]:
    """Combine the checkpoints of several seeds' policies by step."""
    return tuple(
        Point(
            step=checkpoints[0].answers.step,
            gold=averaged(each.gold for each in checkpoints),
            proxy=averaged(each.proxy for each in checkpoints),
            kl=statistics.fmean(value for each in checkpoints for value in each.answers.kl),
            length=statistics.fmean(value for each in checkpoints for value in each.answers.lengths),
            gold_by_seed=tuple(statistics.fmean(each.gold) for each in checkpoints),
        )
        for checkpoints in zip(*seeds, strict=True)
    )


def answers_lines(policies: Mapping[str, Sequence[Sequence[Judged]]], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the record's lines of all answers: the judge's reward, KL and number of tokens of each.

    `policies` has by name the checkpoints of each seed's policy.
    """
    for name, by_seed in policies.items():
        for seed, checkpoints in zip(seeds, by_seed, strict=True):
            for each in checkpoints:
                columns: dict[str, Sequence[float]] = {"gold": each.gold, "kl": each.answers.kl}
                columns["tokens"] = each.answers.lengths
                yield values_line(name, columns, seed=seed, step=each.answers.step)


def learnt(points: Sequence[Point]) -> dict[str, Any]:
    """Compute the gain in true reward from the first point to the last.

    Returns:
        `{"gain", "ci95", "by_seed"}`; the 95% interval is over prompts, of the mean over seeds, and None for too few.
    """
    first, last = points[0], points[-1]
    by_seed = (after - before for before, after in zip(first.gold_by_seed, last.gold_by_seed, strict=True))
    found = compared_by_prompt(last.gold, first.gold, by_seed)
    return {"gain": found.pop("mean"), **found}


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
                *difference_cells(gain["gain"], gain["ci95"], gain["by_seed"], "{:+.2f}".format),
            )
        )
    columns = ("policy", "judge's reward at the start", "at the end", "gain, 95% interval", "by seed")
    return Table(title, columns, rows)


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
    return with_answers(job, [policy for name in job.backbones for policy in _checked(job, name)])


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
    return seed_policies(job, backbone, job.sets[:1], rewarded_by=None)


def find_check(job: Job) -> Findings:
    """Report the true reward before and after training, its gain, and its curve for each seed."""
    judged = {}
    for backbone in job.backbones:
        prompts = held_out_prompts(job, backbone, job.sets[:1], PROMPTS)
        judged[backbone] = [judged_answers(job, policy, prompts) for policy in _checked(job, backbone)]
    points = {backbone: points_of(seeds) for backbone, seeds in judged.items()}
    figures = {}
    for backbone, seeds in judged.items():
        curves = tuple(
            reward_curve(f"seed {seed}", curve_kind(place), points_of([each]), "gold", "step")
            for place, (seed, each) in enumerate(zip(job.seeds, seeds, strict=True))
        )
        panel = Panel(f"{job.sets[0]}: judge's reward", curves)
        figures[f"ppo-{backbone}"] = curve_panels(f"Judge's reward over PPO steps, {backbone}", [panel])
    return build_findings(
        job,
        "ppo",
        results={
            "seeds": list(job.seeds),
            "set": job.sets[0],
            "learnt": {backbone: learnt(each) for backbone, each in points.items()},
            "steps": {backbone: by_step(each) for backbone, each in points.items()},
        },
        tables=[
            learning_table(
                "Judge's reward of answers to new prompts",
                {f"{name}, {count(len(each[0].gold), 'prompt')}": each for name, each in points.items()},
            )
        ],
        figures=figures,
        values=answers_lines(judged, job.seeds),
        prompts=PROMPTS,
    )
