"""Policy heads as generators: does HAF's head write better than DPO's at the same distance from the start? Not in the
paper.

HAF keeps the policy head that it trains next to the reward head. A policy that moves further from its start usually
wins more and drifts more, and HAF's small policy loss moves it less, so checkpoints are compared at equal KL: each
run's values are interpolated between its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hafrm.pairs import Message, Prompt
from hafrm.paper.plans import Plan, Responses
from hafrm.paper.policies import held_out_prompts, judges_rewards, require_rewards
from hafrm.paper.probes.writing import Written, distinct, written
from hafrm.paper.record import values_line
from hafrm.paper.runs import Run, seed_runs
from hafrm.paper.samples import pairs_of
from hafrm.paper.scales import Job, ScaleName
from hafrm.paper.tables import build_findings
from hafrm.report.figures import Curve, Panel, curve_panels
from hafrm.report.findings import Findings, Table
from hafrm.report.wording import percent, points, with_interval
from hafrm.rlhf.rewards import answered
from hafrm.stats import FEWEST_GROUPS, Floats

_SIZES: Mapping[ScaleName, tuple[int, int]] = {"world": (240, 96), "small": (64, 64), "paper": (240, 256)}
"""Test prompts, and the maximum tokens of a response."""

_WAYS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "DPO": ({"method": "dpo"}, "dpo"),
    "HAF": ({"method": "haf"}, "haf"),
    "HAF, ratio 1": ({"method": "haf", "policy_ratio": 1.0}, "haf dash1"),
}
"""Options of the runs, and the style of curves. Ratio 1 adds DPO's full loss to the reward loss; it is only used in the
world, because other runs take long.
"""

_PAIRS = (("HAF", "DPO"), ("HAF, ratio 1", "DPO"))
"""Ways to compare, the first with the second."""

_LEVELS = (0.5, 1.0)
"""KLs at which ways are compared, as shares of the largest that both reach."""

_RESAMPLES = 2000


class _Measure(NamedTuple):
    """How to show a measure in tables."""

    value: Any
    difference: Any


_MEASURES: Mapping[str, _Measure] = {
    "win rate, %": _Measure(percent, points),
    "judge's reward": _Measure("{:.2f}".format, "{:+.2f}".format),
    "perplexity": _Measure("{:.2f}".format, "{:+.2f}".format),
    "distinct-1": _Measure("{:.3f}".format, "{:+.3f}".format),
    "distinct-2": _Measure("{:.3f}".format, "{:+.3f}".format),
    "distinct-3": _Measure("{:.3f}".format, "{:+.3f}".format),
    "tokens": _Measure("{:.1f}".format, "{:+.1f}".format),
}
_DRAWN = ("win rate, %", "judge's reward", "perplexity", "distinct-2")
"""Measures of the figure."""


@dataclass(frozen=True)
class Point:
    """A checkpoint: for each measure, a numerator and a denominator per prompt, [2, N].

    A measure is the ratio of their sums, and the perplexity its exponential.
    """

    step: int
    parts: Mapping[str, Floats]

    @classmethod
    def of(cls, found: Written, gold: Sequence[float], of_start: Sequence[float]) -> Point:
        """Build a checkpoint's measures.

        Args:
            found: What it writes.
            gold: The judge's rewards of its responses.
            of_start: The judge's rewards of the starting model's responses to the same prompts.
        """
        ours, theirs, one = np.array(gold), np.array(of_start), np.ones(len(gold))
        parts = {
            "kl": (found.kl, one),
            "kl per token": (found.kl, found.lengths),
            "win rate, %": ((np.sign(ours - theirs) + 1) / 2, one),
            "judge's reward": (ours, one),
            "perplexity": (found.surprisal, found.known_lengths),
            **{f"distinct-{n}": distinct(found.texts, n) for n in (1, 2, 3)},
            "tokens": (found.lengths, one),
        }
        return cls(found.step, {name: np.array(each, dtype=np.float64) for name, each in parts.items()})

    def value(self, name: str, weights: Floats | None = None) -> Floats:
        """Return a measure, [R].

        Args:
            name: The measure.
            weights: How often each prompt is in each of R resamples, [R, N]; None for all prompts once.
        """
        sums = self.parts[name] @ (np.ones((self.size, 1)) if weights is None else weights.T)
        found: Floats = sums[0] / np.maximum(sums[1], 1)  # texts that are too short have no n-grams
        return np.exp(found) if name == "perplexity" else found

    @property
    def size(self) -> int:
        """N, the number of prompts."""
        return len(self.parts["kl"][0])


def at_kl(checkpoints: Sequence[Point], name: str, kl: Sequence[float], weights: Floats | None = None) -> Floats:
    """Interpolate a measure linearly between a run's checkpoints, [R, L]; beyond the last it stays the same.

    Args:
        checkpoints: The start and the checkpoints, in any order.
        kl: The L divergences at which to read it.
    """
    x, y = (np.stack([each.value(what, weights) for each in checkpoints], -1) for what in ("kl", name))
    order = np.argsort(x, -1)
    x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    return np.stack([np.interp(kl, at, values) for at, values in zip(x, y, strict=True)])


def compared(ours: Sequence[Sequence[Point]], theirs: Sequence[Sequence[Point]]) -> list[dict[str, Any]]:
    """Compare two ways at equal KL.

    Args:
        ours: The checkpoints of each seed's run, with the start.
        theirs: The other way's, of the same seeds.

    Returns:
        For each level its `kl`, and for each measure `difference`, `ci95` and `by_seed`. Intervals are over prompts, of
        the mean over seeds, and None for too few prompts.
    """
    size = ours[0][0].size
    reach = min(max(float(each.value("kl")[0]) for each in run) for run in (*ours, *theirs))
    levels = [share * reach for share in _LEVELS]
    draws = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=_RESAMPLES)

    def differences(name: str, weights: Floats | None) -> Floats:
        both = zip(ours, theirs, strict=True)
        return np.stack([at_kl(a, name, levels, weights) - at_kl(b, name, levels, weights) for a, b in both])

    found: list[dict[str, Any]] = [{"kl": level} for level in levels]
    for name in _MEASURES:
        by_seed, drawn = differences(name, None)[:, 0], differences(name, draws.astype(np.float64)).mean(0)
        for place, level in enumerate(found):
            ends = np.quantile(drawn[:, place], [0.025, 0.975]).tolist()
            level[name] = {
                "difference": float(by_seed[:, place].mean()),
                "ci95": ends if size >= FEWEST_GROUPS else None,
                "by_seed": by_seed[:, place].tolist(),
            }
    return found


def plan(job: Job) -> Plan:
    """Plan a run of each way and seed with all checkpoints, and their responses.

    Raises:
        ConfigError: outside the world, no reward model is given as judge.
    """
    require_rewards(job, "generators")
    prompts, new_tokens = _SIZES[job.scale.name]
    runs = tuple(run for way in _ways(job) for run in _runs(job, way))
    responses = tuple(
        Responses(
            made=f"answers/{run.name}/*.json",
            backbone=run.backbone,
            sets=run.sets,
            prompts=prompts,
            draws=job.scale.evaluations(kept=True) + 1,
            new_tokens=new_tokens,
            readers=3 + (job.judge is not None),  # policy and reference; the policy also reads known responses
        )
        for run in runs
    )
    return Plan(runs, responses=responses)


def _ways(job: Job) -> list[str]:
    return [way for way in _WAYS if job.in_world or way != "HAF, ratio 1"]


def _runs(job: Job, way: str) -> list[Run]:
    return seed_runs(job, job.backbones[0], job.sets[:1], keep_checkpoints=True, **_WAYS[way][0])


def find(job: Job) -> Findings:
    """Report each checkpoint's measures, and differences between ways at equal KL."""
    most, new_tokens = _SIZES[job.scale.name]
    prompts = held_out_prompts(job, job.backbones[0], job.sets[:1], most)
    known: dict[Prompt, Sequence[Message]] = {}
    for pair in pairs_of(job.scale.sets[job.sets[0]].test, "test"):
        if pair.prompt in prompts:
            known.setdefault(pair.prompt, pair.chosen)
    known = {prompt: known[prompt] for prompt in prompts}
    found = {way: [_points(job, run, prompts, known, new_tokens) for run in _runs(job, way)] for way in _ways(job)}
    means = {way: [_mean(seeds) for seeds in zip(*runs, strict=True)] for way, runs in found.items()}
    pairs = [(ours, theirs) for ours, theirs in _PAIRS if ours in found]
    differences = {f"{ours} - {theirs}": compared(found[ours], found[theirs]) for ours, theirs in pairs}
    return build_findings(
        job,
        "generators",
        results={
            "seeds": list(job.seeds),
            "set": job.sets[0],
            "prompts": len(prompts),
            "checkpoints": means,
            "by_seed": {way: [[_values(each) for each in run] for run in runs] for way, runs in found.items()},
            "at_equal_kl": differences,
        },
        tables=[_table(means), _differences_table(differences)],
        figures={"generators": _figure(job, means)},
        values=(
            values_line(way, _columns(point), seed=seed, step=point.step)
            for way, runs in found.items()
            for seed, run in zip(job.seeds, runs, strict=True)
            for point in run
        ),
        prompts=len(prompts),
        new_tokens=new_tokens,
    )


def _points(
    job: Job, run: Run, prompts: Mapping[Prompt, str], known: Mapping[Prompt, Sequence[Message]], new_tokens: int
) -> list[Point]:
    """Return a run's start and checkpoints, with the judge's rewards."""
    steps = written(job, run, known, new_tokens)
    gold = [judges_rewards(job, list(map(answered, prompts, each.texts)), prompts) for each in steps]
    return [Point.of(each, rewards, gold[0]) for each, rewards in zip(steps, gold, strict=True)]


def _columns(point: Point) -> dict[str, Floats]:
    """Return the parts for the record: numerators by name, and the denominators of ratios by name with " of".

    KL per token and the win rate are left out, because they follow from the others.
    """
    found: dict[str, Floats] = {}
    for name, (above, below) in point.parts.items():
        if name not in ("kl per token", "win rate, %"):
            found[name] = above
            if name not in ("kl", "judge's reward", "tokens"):  # these are divided by the number of prompts
                found[f"{name} of"] = below
    return found


def _values(point: Point) -> dict[str, float]:
    return {"step": point.step, **{name: float(point.value(name)[0]) for name in point.parts}}


def _mean(seeds: Sequence[Point]) -> dict[str, float]:
    """Average the measures of checkpoints over seeds."""
    values = [_values(each) for each in seeds]
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]}


def _table(means: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    rows = [
        (
            way,
            f"{each['step']:.0f}",
            f"{each['kl']:.2f}",
            f"{each['kl per token']:.3f}",
            *(measure.value(each[name]) for name, measure in _MEASURES.items()),
        )
        for way, checkpoints in means.items()
        for each in checkpoints
    ]
    return Table("Checkpoints", ("policy head of", "step", "KL, nats", "KL per token", *_MEASURES), rows)


def _differences_table(differences: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    def cell(level: Mapping[str, Any], name: str) -> str:
        found, worded = level[name], _MEASURES[name].difference
        return with_interval(found["difference"], found["ci95"], worded)

    rows = [
        (ways, f"{level['kl']:.2f}", *(cell(level, name) for name in _MEASURES))
        for ways, levels in differences.items()
        for level in levels
    ]
    columns = ("ways", "KL, nats", *(name.replace(", %", ", points") for name in _MEASURES))
    return Table("Differences at equal KL, 95% intervals", columns, rows)


def _figure(job: Job, means: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    def curve(way: str, name: str) -> Curve:
        factor = 100 if "%" in name else 1
        drawn = sorted((each["kl"], factor * each[name]) for each in means[way])
        return Curve(way, _WAYS[way][1], tuple(drawn))

    panels = [Panel(name, tuple(curve(way, name) for way in means), "KL from the start, nats") for name in _DRAWN]
    return curve_panels(f"{job.sets[0]}: what policy heads write, over KL from the start", panels)
