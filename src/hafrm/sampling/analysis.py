"""From scored candidates to results: agreement, wins, recall, and what a larger n is worth.

Equal responses are one candidate. Rates are over prompts that can tell scorers apart: with two distinct responses or
more, and for a recall of the best k with more than k. Where a scorer gives two responses the same highest reward,
recall counts them by lot, and as selected counts the one that was drawn first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hafrm.sampling.curves import best_of_n_curve, kl_bound
from hafrm.stats import Floats, bootstrap_interval, top_k_hits

__all__ = ["LONGEST", "RANDOM", "ScoredPrompt", "best_shares", "recall_hits", "summarise"]

RANDOM, LONGEST = "random", "the longest response"
"""The rows beside the scorers: any response, and the one of the most characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """A prompt's candidates with all that is known of them; one value a distinct response."""

    id: str
    group: str
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    """Characters."""
    rewards: Mapping[str, tuple[float, ...]]
    """By scorer."""
    gold: tuple[float, ...] | None = None
    """The judge's rewards, where it gives rewards."""
    ranks: tuple[float, ...] | None = None
    """The judge's ranks, 1 the best, infinity for those that it left unranked; None where it did not rank them."""
    preferred: Mapping[tuple[int, int], float] | None = None
    """By two places, the lower one first: 1 where the judge prefers the response there, 0 where the other, else 1/2.
    None where a judge that gives no rewards was not asked, or gave no answer to a question about the prompt."""

    def selected(self, model: str) -> int:
        """The place of the response with the highest reward."""
        return int(np.argmax(self.rewards[model]))

    def preference(self, first: int, second: int) -> float | None:
        """1 where the response at the first place is better than that at the second, 0 where worse, 1/2 for a tie."""
        if self.gold is not None:
            return float(np.sign(self.gold[first] - self.gold[second]) + 1) / 2
        if self.preferred is None:
            return None
        if first == second:
            return 0.5
        return self.preferred[first, second] if first < second else 1 - self.preferred[second, first]


Scores = Callable[[ScoredPrompt], Sequence[float]]
"""What selects among a prompt's responses, one value each."""


def summarise(prompts: Sequence[ScoredPrompt], models: Sequence[str]) -> dict[str, Any]:
    """What selection by each scorer comes to.

    Args:
        prompts: Prompts all of whose responses every scorer gave a reward.
        models: The scorers.

    Returns:
        Rates are shares of 1, each with `n` and a 95% bootstrap interval over prompt groups in `ci95` (null of fewer
        than six groups); null where no prompt says anything. `models` holds each scorer's recall of the judge's best
        (`top_1`, `top_2`), the judge's mean reward of what it selects (`gold`) and how often that beats a random draw
        (`against_random`); `baselines` the same of a random response, of the longest, and of the best. `agreement`: how
        often all, and each two, select the same. `best`: how often the best of all selected responses is whose (Figure
        4: `circles` may overlap, `regions` say how). `wins`: each two against each other. `curve`: the expected `gold`
        and `reward` of the best of n draws, and `kl`, the most that selection moves the policy, in nats.
    """
    telling = [prompt for prompt in prompts if len(prompt.counts) > 1]
    return {
        "prompts": len(prompts),
        "alike": len(prompts) - len(telling),
        "draws": sum(sum(prompt.counts) for prompt in prompts),
        "distinct": sum(len(prompt.counts) for prompt in prompts),
        "models": {model: _of_model(telling, model) for model in models},
        "baselines": _baselines(telling),
        "agreement": _agreement(telling, models),
        "best": _best(telling, models),
        "wins": [_wins(telling, a, b) for a, b in combinations(models, 2)],
        "curve": _curve(prompts, models),
    }


def recall_hits(prompts: Sequence[ScoredPrompt], scores: Scores, k: int) -> dict[str, float]:
    """For each prompt with ranks and more than k distinct responses: is the highest score among the judge's best k?"""
    return {
        prompt.id: float(top_k_hits([scores(prompt)], [prompt.ranks], k)[0])
        for prompt in prompts
        if prompt.ranks is not None and len(prompt.counts) > k
    }


def _of_model(prompts: Sequence[ScoredPrompt], model: str) -> dict[str, Any]:
    return _recalls(prompts, lambda prompt: prompt.rewards[model]) | {
        "gold": _rate(prompts, lambda prompt: _gold_at(prompt, prompt.selected(model))),
        "against_random": _rate(prompts, lambda prompt: _against_random(prompt, prompt.selected(model))),
    }


def _baselines(prompts: Sequence[ScoredPrompt]) -> dict[str, Any]:
    return {
        RANDOM: _recalls(prompts, lambda prompt: [0.0] * len(prompt.counts)) | {"gold": _rate(prompts, _mean_gold)},
        LONGEST: _recalls(prompts, lambda prompt: prompt.lengths)
        | {"gold": _rate(prompts, lambda prompt: _gold_at(prompt, int(np.argmax(prompt.lengths))))},
        "the best": {"gold": _rate(prompts, lambda prompt: None if prompt.gold is None else max(prompt.gold))},
    }


def _recalls(prompts: Sequence[ScoredPrompt], scores: Scores) -> dict[str, Any]:
    hits = {k: recall_hits(prompts, scores, k) for k in (1, 2)}
    return {f"top_{k}": _rate_of(prompts, values) for k, values in hits.items()}


def _gold_at(prompt: ScoredPrompt, place: int) -> float | None:
    return None if prompt.gold is None else prompt.gold[place]


def _mean_gold(prompt: ScoredPrompt) -> float | None:
    return None if prompt.gold is None else float(np.average(prompt.gold, weights=prompt.counts))


def _against_random(prompt: ScoredPrompt, place: int) -> float | None:
    """The chance that a response is better than one draw, which may be the same response."""
    if prompt.gold is None:
        return None
    better = [prompt.preference(place, other) for other in range(len(prompt.counts))]
    return float(np.average(np.array(better, dtype=np.float64), weights=prompt.counts))


def _agreement(prompts: Sequence[ScoredPrompt], models: Sequence[str]) -> dict[str, Any]:
    def same(chosen: Sequence[str]) -> dict[str, Any] | None:
        return _rate(prompts, lambda prompt: float(len({prompt.selected(model) for model in chosen}) == 1))

    return {
        "all": same(models),
        "pairs": [{"a": a, "b": b} | (same((a, b)) or {}) for a, b in combinations(models, 2)],
    }


def _wins(prompts: Sequence[ScoredPrompt], a: str, b: str) -> dict[str, Any]:
    def preference(prompt: ScoredPrompt) -> float | None:
        return prompt.preference(prompt.selected(a), prompt.selected(b))

    values = [value for prompt in prompts if (value := preference(prompt)) is not None]
    return {
        "a": a,
        "b": b,
        "win_rate": _rate(prompts, preference),
        "wins": values.count(1.0),
        "ties": values.count(0.5),
        "losses": values.count(0.0),
        "same": sum(prompt.selected(a) == prompt.selected(b) for prompt in prompts),
    }


def _best(prompts: Sequence[ScoredPrompt], models: Sequence[str]) -> dict[str, Any]:
    shares = best_shares(prompts, models)
    judged = [prompt for prompt in prompts if prompt.id in shares]
    regions: dict[tuple[str, ...], float] = defaultdict(float)
    for found in shares.values():
        for whose, share in found.items():
            regions[whose] += share / len(judged)

    circles = {
        model: {each: sum(share for whose, share in found.items() if model in whose) for each, found in shares.items()}
        for model in models
    }
    return {
        "circles": {model: _rate_of(judged, values) for model, values in circles.items()},
        "regions": [{"models": list(whose), "share": share} for whose, share in sorted(regions.items())],
    }


def best_shares(prompts: Sequence[ScoredPrompt], models: Sequence[str]) -> dict[str, dict[tuple[str, ...], float]]:
    """Whose selections are the best of all selected responses to a prompt (Figure 4), by the prompt's id.

    Returns:
        For each judged prompt the scorers that selected the best response; where several responses are equally good,
        each takes an equal share of the prompt.
    """
    return {prompt.id: found for prompt in prompts if (found := _best_selections(prompt, models)) is not None}


def _best_selections(prompt: ScoredPrompt, models: Sequence[str]) -> dict[tuple[str, ...], float] | None:
    """Whose selections are best, with the share of the prompt that each such response takes; None if unjudged."""
    by_place: dict[int, list[str]] = defaultdict(list)
    for model in models:
        by_place[prompt.selected(model)].append(model)
    points: dict[int, float] = {}
    for place in by_place:
        against = [prompt.preference(place, other) for other in by_place]
        if any(value is None for value in against):
            return None
        points[place] = sum(value for value in against if value is not None)
    best = [place for place, value in points.items() if value == max(points.values())]
    return {tuple(by_place[place]): 1 / len(best) for place in best}


def _curve(prompts: Sequence[ScoredPrompt], models: Sequence[str]) -> dict[str, Any]:
    """Over prompts with equally many draws, the most that every one has."""
    most = min((sum(prompt.counts) for prompt in prompts), default=0)
    groups = [prompt.group for prompt in prompts]

    def growth(scores: Scores, values: Scores) -> list[dict[str, Any]]:
        each = [best_of_n_curve(scores(prompt), values(prompt), prompt.counts)[:most] for prompt in prompts]
        return [_mean(column, groups) for column in np.array(each).T]

    by_model = {model: _rewards_by(model) for model in models}
    found: dict[str, Any] = {
        "n": list(range(1, most + 1)),
        "kl": [kl_bound(n) for n in range(1, most + 1)],
        "reward": {model: growth(rewards, rewards) for model, rewards in by_model.items()},
        "gold": {},
    }
    if prompts and all(prompt.gold is not None for prompt in prompts):
        selectors = {**by_model, "the best": _gold_of}
        found["gold"] = {name: growth(scores, _gold_of) for name, scores in selectors.items()}
    return found


def _rewards_by(model: str) -> Scores:
    return lambda prompt: prompt.rewards[model]


def _gold_of(prompt: ScoredPrompt) -> Sequence[float]:
    assert prompt.gold is not None
    return prompt.gold


def _rate(prompts: Sequence[ScoredPrompt], value: Callable[[ScoredPrompt], float | None]) -> dict[str, Any] | None:
    """The mean of a value over the prompts that have it; None if none has."""
    known = [(found, prompt.group) for prompt in prompts if (found := value(prompt)) is not None]
    return _mean(np.array([each for each, _ in known]), [group for _, group in known]) if known else None


def _rate_of(prompts: Sequence[ScoredPrompt], values: Mapping[str, float]) -> dict[str, Any] | None:
    """The mean of values by prompt id."""
    return _rate(prompts, lambda prompt: values.get(prompt.id))


def _mean(values: Floats, groups: Sequence[str]) -> dict[str, Any]:
    return {"n": len(values), "value": float(values.mean()), "ci95": bootstrap_interval(values, groups)}
