"""Selection experiment of Figure 4 and Tables 4 and 11: backbones answer test prompts, the methods' models choose.

As in section 4.2.1, reward models and responses come from the same backbone, with 8 responses per prompt (4 for
Phi-2). A set's models choose among responses to that set's test prompts. In the world, its oracle judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hafrm.errors import ConfigError, DataError
from hafrm.judging.options import JudgeOptions
from hafrm.paper.measures import Measured
from hafrm.paper.plans import ALL_METHODS, Job, Plan
from hafrm.sampling.analysis import LONGEST, RANDOM, ScoredPrompt, best_shares, recall_hits
from hafrm.sampling.best_of_n import BestOfNConfig, best_of_n
from hafrm.sampling.engines import SampleOptions
from hafrm.sampling.run import SampleConfig, sample
from hafrm.training.config import Method

_PROMPTS = 200
"""Test prompts per set; the paper does not state its number."""

_DRAWS, _DRAWS_OF = 8, {"Phi-2": 4}

Region = frozenset[Method]
"""Methods that chose the best response."""


@dataclass(frozen=True)
class Selections:
    """Selections among one backbone's responses to one set's prompts."""

    prompts: Sequence[ScoredPrompt]
    models: Mapping[Method, tuple[str, ...]]
    """Each method's runs, one per seed."""

    @property
    def telling(self) -> list[ScoredPrompt]:
        """Prompts with more than one distinct response."""
        return [prompt for prompt in self.prompts if len(prompt.counts) > 1]


def plan(job: Job) -> Plan:
    """Plan the runs of Table 2.

    Raises:
        ConfigError: no judge is available.
    """
    if job.scale.name != "world" and job.judge is None:
        raise ConfigError(
            f"judge: at scale {job.scale.name} nobody knows the true reward. Name a reward model with --judge, or use "
            "`hafrm sample` and `hafrm best-of-n` with a judge of another kind."
        )
    return Plan(
        tuple(
            run
            for name in job.sets
            for backbone in job.backbones
            for method in ALL_METHODS
            for run in job.runs((name,), method, backbone=backbone)
        )
    )


def draws_of(job: Job, backbone: str) -> int:
    """Return the number of responses per prompt."""
    return _DRAWS_OF.get(job.scale.backbone(backbone).paper_name or "", _DRAWS)


def select(job: Job, backbone: str, name: str) -> Selections:
    """Sample from a backbone and let all models of a set choose; existing results are reused.

    Raises:
        HafrmError: a model can't be loaded, or nothing could be sampled or scored.
    """
    test = job.scale.sets[name].test
    samples = job.root / "samples" / backbone / name
    sample(
        SampleConfig(
            model=job.scale.backbone(backbone).model(),
            data=[test],
            out=str(samples),
            n=draws_of(job, backbone),
            prompts=_PROMPTS,
            max_length=job.scale.max_length,
            sampling=SampleOptions(max_new_tokens=job.scale.max_length // 2),  # as in the paper's RLHF: 256 of 512
        )
    )
    models = {
        method: tuple(str(run.folder(job.scale, job.out)) for run in job.runs((name,), method, backbone=backbone))
        for method in ALL_METHODS
    }
    world = job.scale.name == "world"
    judge = JudgeOptions(
        kind="oracle" if world else "reward", model=test.removeprefix("world/") if world else job.judge or ""
    )
    found = best_of_n(
        BestOfNConfig(
            models=[run for runs in models.values() for run in runs],
            samples=str(samples),
            out=str(job.root / "best-of-n" / backbone / name),
            judge=judge,
        )
    )
    return Selections(found.prompts, models)


def recalls(selections: Selections, k: int, what: str) -> dict[str, Measured]:
    """Measure how often each method's choice is among the judge's best k, as well as a random and the longest response.

    Raises:
        DataError: no prompt has more than k distinct responses.
    """
    prompts = selections.telling
    random = recall_hits(prompts, lambda prompt: [0.0] * len(prompt.counts), k)
    longest = recall_hits(prompts, lambda prompt: prompt.lengths, k)
    if not random:
        raise DataError(f"{what}: no prompt has more than {k} distinct responses. Sample at a higher temperature.")

    def measured(*seeds: Mapping[str, float]) -> Measured:
        return _measured(prompts, seeds, longest)

    def of_run(run: str) -> Mapping[str, float]:
        return recall_hits(prompts, lambda prompt: prompt.rewards[run], k)

    seeds = len(selections.models["haf"])
    return {
        RANDOM: measured(*[random] * seeds),
        LONGEST: measured(*[longest] * seeds),
        **{str(method): measured(*map(of_run, runs)) for method, runs in selections.models.items()},
    }


def win_rates(selections: Selections) -> dict[Method, Measured]:
    """Measure how often each method's choice is the best of the three choices: Figure 4's circles.

    Picking the longest response does not apply here, so `length_accuracy` is NaN.
    """
    prompts = selections.telling
    by_seed = [best_shares(prompts, runs) for runs in zip(*selections.models.values(), strict=True)]

    def won(run: str, shares: Mapping[str, Mapping[tuple[str, ...], float]]) -> dict[str, float]:
        return {each: sum(share for whose, share in found.items() if run in whose) for each, found in shares.items()}

    return {
        method: _measured(prompts, [won(run, shares) for run, shares in zip(runs, by_seed, strict=True)], {})
        for method, runs in selections.models.items()
    }


def regions(selections: Selections) -> dict[Region, float]:
    """Return the share of prompts whose best choice was made by exactly these methods, averaged over seeds."""
    found: dict[Region, list[float]] = {}
    by_seed = list(zip(*selections.models.values(), strict=True))
    for runs in by_seed:
        method_of = dict(zip(runs, selections.models, strict=True))
        shares = best_shares(selections.telling, runs)
        for each in shares.values():
            for whose, share in each.items():
                found.setdefault(frozenset(method_of[run] for run in whose), []).append(share / len(shares))
    return {whose: sum(shares) / len(by_seed) for whose, shares in found.items()}


def agreements(selections: Selections) -> dict[tuple[Method, Method], float]:
    """Return the share of prompts for which two methods choose the same response, averaged over seeds."""
    prompts = selections.telling

    def same(first: str, second: str) -> float:
        return float(np.mean([prompt.selected(first) == prompt.selected(second) for prompt in prompts]))

    return {
        (a, b): float(np.mean([same(*runs) for runs in zip(selections.models[a], selections.models[b], strict=True)]))
        for a, b in combinations(selections.models, 2)
    }


def _measured(
    prompts: Sequence[ScoredPrompt], seeds: Sequence[Mapping[str, float]], longest: Mapping[str, float]
) -> Measured:
    groups = {prompt.id: prompt.group for prompt in prompts if prompt.id in seeds[0]}
    return Measured(
        accuracies=tuple(float(np.mean(list(each.values()))) for each in seeds),
        pair_hits={each: float(np.mean([values[each] for values in seeds])) for each in groups},
        groups=groups,
        length_accuracy=float(np.mean(list(longest.values()))) if longest else math.nan,
    )
