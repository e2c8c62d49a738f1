"""Selections of the best of several responses: for Figures 4, 8 and 9 and Tables 4 and 11 (`best`).

Backbones answer test prompts, and the methods' models choose. As in section 4.2.1, reward models and responses come
from the same backbone, with 8 responses per prompt (4 for Phi-2). A set's models choose among responses to that set's
test prompts. In the world, its oracle judges.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from hafrm.errors import ConfigError, DataError
from hafrm.judging.options import JudgeOptions
from hafrm.options import command_line
from hafrm.paper.measures import Measured
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.runs import expandable, seed_runs
from hafrm.paper.scales import METHODS, Job
from hafrm.sampling.analysis import LONGEST, RANDOM, ScoredPrompt, best_shares, recall_hits
from hafrm.sampling.best_of_n import RESULTS_FILE, best_of_n
from hafrm.sampling.options import BestOfNConfig, SampleConfig, SampleOptions
from hafrm.sampling.run import sample

_PROMPTS = 200
"""Test prompts per set; the paper does not state its number."""

_DRAWS, _DRAWS_OF = 8, {"Phi-2": 4}

Region = frozenset[str]
"""Methods that chose the best response."""


@dataclass(frozen=True)
class Selections:
    """Selections among one backbone's responses to one set's prompts."""

    prompts: Sequence[ScoredPrompt]
    models: Mapping[str, tuple[str, ...]]
    """Each method's runs, one per seed."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Prompts excluded from rates, by reason; an endpoint may have ranked without comparing, or vice versa."""

    @property
    def decided(self) -> list[ScoredPrompt]:
        """Prompts with more than one distinct response."""
        return [prompt for prompt in self.prompts if len(prompt.counts) > 1]


def plan(job: Job, name: str) -> Plan:
    """Plan the runs of Table 2, whose models choose.

    Raises:
        ConfigError: no judge is available, or it is not a reward model as Figure 9 needs.
    """
    if name == "figure9" and job.judge is not None and job.judge.kind != "reward":
        raise ConfigError("judge.kind: figure9 is judged by a reward model: use --judge.kind reward.")
    if not job.in_world and job.judge is None:
        raise ConfigError(
            f"judge: at scale {job.scale.name} the true reward is unknown. Name a judge with --judge.kind openai (or "
            "reward) and --judge.model."
        )
    if job.judge is not None and job.judge.kind not in ("openai", "reward"):
        raise ConfigError(f"judge.kind: {job.judge.kind} can't rank several responses. Use openai or reward.")
    pairs = [(backbone, name) for name in job.sets for backbone in job.backbones]
    return Plan(
        tuple(
            run for pair in pairs for method in METHODS for run in seed_runs(job, pair[0], (pair[1],), method=method)
        ),
        commands=tuple(command for pair in pairs for command in _commands(job, *pair)),
        responses=tuple(_responses(job, *pair) for pair in pairs),
    )


def _responses(job: Job, backbone: str, name: str) -> Responses:
    """Return the responses that a set's models choose from; DPO's models read them with a reference too."""
    draws, seeds, judge = draws_of(job, backbone), len(job.seeds), job.judge
    questions = 0
    if judge is not None and judge.kind == "openai":
        orders = 2 if judge.orders == "both" else 1
        rankings = {4: 1, 8: 3}[draws]
        questions = rankings + orders * math.comb(min(draws, len(METHODS) * seeds), 2)
    return Responses(
        made=str(Path(_choosing(job, backbone, name).out).relative_to(job.root) / RESULTS_FILE),
        backbone=backbone,
        sets=(name,),
        prompts=_PROMPTS,
        draws=draws,
        new_tokens=_sampling(job, backbone, name).sampling.max_new_tokens,
        readers=(len(METHODS) + 1) * seeds + (judge is not None and judge.kind == "reward"),
        questions=questions,
    )


def _commands(job: Job, backbone: str, name: str) -> tuple[str, str]:
    """Return the equivalent commands that sample responses, and that let a set's models choose."""
    sampling = replace(_sampling(job, backbone, name), model=job.scale.backbone(backbone).shown)
    choosing, judge = asdict(_choosing(job, backbone, name)), judge_of(job, name)
    values = asdict(judge)
    asked = {each.name: values[each.name] for each in fields(judge) if values[each.name] != each.default}
    return (
        expandable(command_line("hafrm sample", SampleConfig, asdict(sampling), positional="model")),
        command_line("hafrm best-of-n", BestOfNConfig, choosing | {"judge": asked}, positional="models"),
    )


def draws_of(job: Job, backbone: str) -> int:
    """Return the number of responses per prompt."""
    return _DRAWS_OF.get(job.scale.backbone(backbone).paper_name or "", _DRAWS)


def select(job: Job, backbone: str, name: str) -> Selections:
    """Sample from a backbone and let all models of a set choose; existing results are reused.

    Raises:
        HafrmError: a model can't be loaded, or nothing could be sampled or scored.
    """
    sample(replace(_sampling(job, backbone, name), model=job.model(backbone)), wait=True)
    found = best_of_n(_choosing(job, backbone, name), wait=True)
    selections = Selections(found.prompts, _models(job, backbone, name))
    lost = Counter(found.results["left_out"]) + Counter(found.results["unscored"])
    lost["with equal responses"] = len(found.prompts) - len(selections.decided)
    lost["without a ranking"] = sum(prompt.ranks is None for prompt in selections.decided)
    uncompared = [prompt for prompt in selections.decided if prompt.gold is None and prompt.preferred is None]
    lost["without a comparison"] = len(uncompared)
    return replace(selections, left_out=+lost)


def _sampling(job: Job, backbone: str, name: str) -> SampleConfig:
    return sampling_config(job, backbone, name, folder=name, draws=draws_of(job, backbone), prompts=_PROMPTS)


def sampling_config(job: Job, backbone: str, name: str, *, folder: str, draws: int, prompts: int) -> SampleConfig:
    """Return how a backbone answers a set's test prompts; `model` is its name at the scale."""
    return SampleConfig(
        model=backbone,
        data=[job.scale.sets[name].test],
        out=str(job.root / "samples" / backbone / folder),
        n=draws,
        prompts=prompts,
        max_length=job.scale.max_length,
        chat_template=job.scale.backbone(backbone).chat_template,
        sampling=SampleOptions(max_new_tokens=job.scale.max_length // 2),  # as in the paper's RLHF: 256 of 512
    )


def judge_of(job: Job, name: str) -> JudgeOptions:
    """Return the judge of a set's responses: the job's, or the world's oracle."""
    return job.judge or JudgeOptions(kind="oracle", model=job.scale.sets[name].test.removeprefix("world/"))


def _models(job: Job, backbone: str, name: str) -> dict[str, tuple[str, ...]]:
    return {
        str(method): tuple(str(run.folder(job)) for run in seed_runs(job, backbone, (name,), method=method))
        for method in METHODS
    }


def _choosing(job: Job, backbone: str, name: str) -> BestOfNConfig:
    place = "best-of-n" if job.judge is None else f"best-of-n-{re.sub(r'[^A-Za-z0-9._-]+', '-', job.judge.model)}"
    return BestOfNConfig(
        models=[run for runs in _models(job, backbone, name).values() for run in runs],
        samples=str(job.root / "samples" / backbone / name),
        out=str(job.root / place / backbone / name),
        judge=judge_of(job, name),
        trust_remote_code=job.trust_remote_code,
    )


def recalls(selections: Selections, k: int, what: str) -> dict[str, Measured]:
    """Measure how often each method's choice is among the judge's best k, as well as a random and the longest response.

    Raises:
        DataError: no prompt has more than k distinct responses.
    """
    prompts = selections.decided
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
        **{method: measured(*map(of_run, runs)) for method, runs in selections.models.items()},
    }


def win_rates(selections: Selections) -> dict[str, Measured]:
    """Measure how often each method's choice is the best of the three choices: Figure 4's circles.

    Picking the longest response does not apply here, so `length_accuracy` is NaN.
    """
    prompts = selections.decided
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
        shares = best_shares(selections.decided, runs)
        for each in shares.values():
            for whose, share in each.items():
                found.setdefault(frozenset(method_of[run] for run in whose), []).append(share / len(shares))
    return {whose: sum(shares) / len(by_seed) for whose, shares in found.items()}


def agreements(selections: Selections) -> dict[tuple[str, str], float]:
    """Return the share of prompts for which two methods choose the same response, averaged over seeds."""
    prompts = selections.decided

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


Chosen = Mapping[str, Mapping[str, Selections]]
"""Selections by backbone and set."""


def choose(job: Job) -> Chosen:
    """Let the models of each backbone and set choose; existing results are reused."""
    return {backbone: {name: select(job, backbone, name) for name in job.sets} for backbone in job.backbones}


def left_out_of(chosen: Chosen) -> dict[str, Mapping[str, int]]:
    """Return the prompts excluded from all rates, by set with backbone, and by reason."""
    return {
        f"{name} ({backbone})": each.left_out for backbone, by_set in chosen.items() for name, each in by_set.items()
    }
