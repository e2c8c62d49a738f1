"""Answers of policy checkpoints to test prompts, with the true reward and the reward used in training.

Answers are sampled once and stored, so that later comparisons use the same ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from hafrm.data import load_pairs
from hafrm.errors import DataError
from hafrm.models.generating import prompt_ids
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Prompt
from hafrm.paper.plans import Job
from hafrm.paper.policies import PolicyRun, policy_config
from hafrm.paper.probes.memory import remembered
from hafrm.paper.world import oracle_reward
from hafrm.report.findings import Table
from hafrm.report.wording import interval
from hafrm.rlhf.checkpoints import Answers, checkpoint_answers
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.rewards import answered, load_reward, scores_of
from hafrm.stats import Interval, paired_bootstrap
from hafrm.training.manifest import read_manifest


@dataclass(frozen=True)
class Judged:
    """A checkpoint's answers with both rewards, in the order of the prompts."""

    answers: Answers
    gold: list[float]
    """True reward according to the annotators of the prompt's own set."""
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


@dataclass(frozen=True)
class Gain:
    """Increase of the true reward from the start to the last step."""

    value: float
    interval: Interval | None
    """95% interval over prompts of the mean over seeds; None for too few prompts."""
    by_seed: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the gain as a JSON-serialisable dict."""
        return {"gain": self.value, "ci95": self.interval, "by_seed": list(self.by_seed)}


def held_out_prompts(job: Job, backbone: str, sets: Sequence[str], count: int) -> dict[Prompt, str]:
    """Return distinct test prompts that fit, evenly from each set, mapped to their set's data name.

    Raises:
        DataError: fewer than two prompts fit.
    """
    tokenizer = load_tokenizer(job.scale.backbone(backbone).model())
    policy = PolicyRun(backbone=backbone, sets=tuple(sets), rewarded_by=None, seed=job.seeds[0])
    longest = policy_config(job.scale, policy, job.out).max_prompt_tokens
    found: dict[Prompt, str] = {}
    for name in sets:
        data = job.scale.sets[name].test
        prompts = dict.fromkeys(pair.prompt for pair in load_pairs(data, split="test").pairs)
        fitting = [prompt for prompt in prompts if len(prompt_ids(tokenizer, prompt)) <= longest]
        found |= dict.fromkeys(fitting[: count // len(sets)], data)
    if len(found) < 2:
        raise DataError(f"{', '.join(sets)}: fewer than two test prompts have at most {longest} tokens.")
    return found


def judged_answers(job: Job, policy: PolicyRun, prompts: Mapping[Prompt, str]) -> list[Judged]:
    """Return the answers of every checkpoint with both rewards, starting with the untrained policy.

    Raises:
        DataError: the reward model can't score an answer.
    """
    config = policy_config(job.scale, policy, job.out)
    scorer = load_reward(config.reward, config, config.score)
    judged = []
    for answers in _answers(job, config, policy, list(prompts)):
        talks = [answered(prompt, text) for prompt, text in zip(prompts, answers.texts, strict=True)]
        names = (data.removeprefix("world/") for data in prompts.values())
        gold = [oracle_reward(talk, name) for talk, name in zip(talks, names, strict=True)]
        proxy = [score for score in scores_of(scorer, talks) if score is not None]
        if len(proxy) < len(talks):
            raise DataError(f"{config.reward} can't score {len(talks) - len(proxy)} answers. Raise --max_length.")
        judged.append(Judged(answers, gold, proxy))
    return judged


def _answers(job: Job, config: RlhfConfig, policy: PolicyRun, prompts: Sequence[Prompt]) -> list[Answers]:
    """Sample the checkpoints' answers, or load them if they are already stored."""
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


def learnt(points: Sequence[Point]) -> Gain:
    """Compute the gain in true reward from the first point to the last."""
    first, last = points[0], points[-1]
    found = paired_bootstrap(last.gold, first.gold, range(len(first.gold)))
    by_seed = tuple(after - before for before, after in zip(first.gold_by_seed, last.gold_by_seed, strict=True))
    return Gain(found.difference, found.interval, by_seed)


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
                f"{gain.value:+.2f} {interval(gain.interval, '{:+.2f}'.format)}".strip(),
                ", ".join(f"{each:+.2f}" for each in gain.by_seed),
            )
        )
    header = ("policy", "true reward at the start", "at the end", "gain, 95% interval", "by seed")
    return Table(title, header, tuple(rows))


def reward_curve(
    points: Sequence[Point], reward: Literal["gold", "proxy"], by: Literal["step", "kl"]
) -> tuple[tuple[float, float], ...]:
    """Return the points of a mean reward over steps or over KL."""
    return tuple((float(getattr(point, by)), statistics.fmean(getattr(point, reward))) for point in points)
