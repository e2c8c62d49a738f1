"""Results of scored candidates: agreement, wins, recall, and the gain from a larger n.

Equal responses are one candidate. Rates are over prompts with at least two distinct responses, and recall of the best k
is over those with more than k, because other prompts do not distinguish scorers. If two responses share a scorer's
highest reward, recall breaks the tie at random, and the scorer selects the one that was drawn first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hafrm.stats import Floats, bootstrap_interval, top_k_hits

RANDOM, LONGEST = "random", "the longest response"
"""Names of the baselines: a random response, and the one with the most characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """A prompt's candidates with all rewards and judgements; one value per distinct response."""

    id: str
    group: str
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    """In characters."""
    rewards: Mapping[str, tuple[float, ...]]
    """By scorer."""
    gold: tuple[float, ...] | None = None
    """The judge's rewards; None if it gives none."""
    ranks: tuple[float, ...] | None = None
    """The judge's ranks, 1 for the best, infinity for unranked responses; None if it did not rank this prompt."""
    preferred: Mapping[tuple[int, int], float] | None = None
    """By pair of indices, the lower one first: 1 if the judge prefers the first response, 0 if the second, 1/2 for a
    tie. None if the judge gives rewards, or did not compare all pairs.
    """

    def selected(self, model: str) -> int:
        """Return the index of the response with the highest reward."""
        return int(np.argmax(self.rewards[model]))

    def preference(self, first: int, second: int) -> float | None:
        """Return 1 if the first response is better than the second, 0 if worse, 1/2 for a tie."""
        if self.gold is not None:
            return float(np.sign(self.gold[first] - self.gold[second]) + 1) / 2
        if self.preferred is None:
            return None
        if first == second:
            return 0.5
        return self.preferred[first, second] if first < second else 1 - self.preferred[second, first]


Scores = Callable[[ScoredPrompt], Sequence[float]]
"""Function that returns a prompt's selection scores, one value per response."""


def summarise(prompts: Sequence[ScoredPrompt], models: Sequence[str]) -> dict[str, Any]:
    """Summarise each scorer's selections for prompts of which every scorer has rewarded all responses.

    Returns:
        Rates are in [0, 1], each with `n` and a 95% bootstrap interval over prompt groups in `ci95` (null if there are
        fewer than six groups); null if there is no such prompt. `models` has each scorer's recall of the judge's best
        (`top_1`, `top_2`), the judge's mean reward of its selections (`gold`) and how often they beat a random draw
        (`against_random`); `baselines` the same of a random response, of the longest, and of the best. `agreement`: how
        often all scorers, and each two, select the same. `best`: whose selections are the best of all selected
        responses (Figure 4: `circles` may overlap, `regions` do not). `wins`: each two scorers against each other.
        `curve`: the expected `gold` and `reward` of the best of n draws, and `kl`, the upper bound on the policy's
        change by selection, in nats.
    """
    varied = [prompt for prompt in prompts if len(prompt.counts) > 1]
    return {
        "prompts": len(prompts),
        "alike": len(prompts) - len(varied),
        "draws": sum(sum(prompt.counts) for prompt in prompts),
        "distinct": sum(len(prompt.counts) for prompt in prompts),
        "models": {model: _of_model(varied, model) for model in models},
        "baselines": _baselines(varied),
        "agreement": _agreement(varied, models),
        "best": _best(varied, models),
        "wins": [_wins(varied, a, b) for a, b in combinations(models, 2)],
        "curve": _curve(prompts, models),
    }


def recall_hits(prompts: Sequence[ScoredPrompt], scores: Scores, k: int) -> dict[str, float]:
    """Return whether the highest score is among the judge's best k, by the prompt's id.

    Only prompts with ranks and more than k distinct responses are included.
    """
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
    """Return the probability that a response beats a random draw, which may be the same response."""
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
    """Return whose selections are the best of all selected responses to a prompt (Figure 4), by the prompt's id.

    Returns:
        For each judged prompt, the scorers that selected the best response, with a share of 1; equally good responses
        have equal shares.
    """
    return {prompt.id: found for prompt in prompts if (found := _best_selections(prompt, models)) is not None}


def _best_selections(prompt: ScoredPrompt, models: Sequence[str]) -> dict[tuple[str, ...], float] | None:
    """Return whose selections are best, each with its share of the prompt; None if unjudged."""
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
    """Compute the curves over n, up to the smallest number of draws of a prompt."""
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
    """Average a value over the prompts that have it; None if none has."""
    known = [(found, prompt.group) for prompt in prompts if (found := value(prompt)) is not None]
    return _mean(np.array([each for each, _ in known]), [group for _, group in known]) if known else None


def _rate_of(prompts: Sequence[ScoredPrompt], values: Mapping[str, float]) -> dict[str, Any] | None:
    return _rate(prompts, lambda prompt: values.get(prompt.id))


def _mean(values: Floats, groups: Sequence[str]) -> dict[str, Any]:
    return {"n": len(values), "value": float(values.mean()), "ci95": bootstrap_interval(values, groups)}


def best_of_n_curve(scores: ArrayLike, values: ArrayLike, counts: ArrayLike) -> Floats:
    """Return the expected value of the best of n by score, for every n up to N, [N].

    This is the mean over all subsets of n of the N draws, an unbiased estimate from one sample of N: sorted by score,
    draw i (from 1) is the best of C(N - i, n - 1) of the C(N, n) subsets (Stiennon et al., 2020, take subsets too).
    Ties in score are broken at random.

    Args:
        scores: Scores that select, [R].
        values: Values to average, such as the true reward, [R].
        counts: How often each response was drawn, positive integers, [R].

    Raises:
        ValueError: the shapes are not the same [R] with R > 0, or a count is below 1.
    """
    scores, values = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    counts = np.asarray(counts, dtype=np.int64)
    if scores.ndim != 1 or not scores.size or not scores.shape == values.shape == counts.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (scores, values, counts))
        raise ValueError(f"scores, values and counts must all be [R], got {shapes}")
    if (counts < 1).any():
        raise ValueError(f"counts must be at least 1, got {counts.min()}")
    _, tied = np.unique(-scores, return_inverse=True)  # best first; equal scores share a rank
    draws = np.bincount(tied, weights=counts).astype(np.int64)
    means = np.bincount(tied, weights=counts * values) / draws
    return np.asarray(_best_shares(int(counts.sum())) @ np.repeat(means, draws), dtype=np.float64)


@lru_cache(maxsize=64)
def _best_shares(draws: int) -> Floats:
    """Return the share of subsets of n of N draws whose best is draw i, [n, i], with i in order from the best."""
    return np.array(
        [[math.comb(draws - 1 - i, n - 1) / math.comb(draws, n) for i in range(draws)] for n in range(1, draws + 1)]
    )


def kl_bound(n: int) -> float:
    """Return the upper bound on KL(best-of-n || policy) in nats: log n - (n - 1) / n.

    Exact if no single response has a noticeable probability (Beirami et al., 2024).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n
