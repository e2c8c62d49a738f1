"""Estimate how long runs will take by counting operations, corrected by finished runs of the same study.

Counts the operations of matrix products: training pairs three times (one forward pass, and a backward pass that costs
two; with adapters only, it costs one; with activation checkpointing one more), validation and test pairs once, the
reference once per set. A response that is sampled counts once, and once for each model that scores it. The estimate is
accurate to about a third until the journal has times of finished runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from hafrm.data import DataOptions, encode_pairs, load_pairs
from hafrm.data.registry import VALIDATION_SHARE
from hafrm.encoding import ConversationEncoder
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Message, PreferencePair
from hafrm.paper.numbers import TABLE_1, TEST_PAIRS
from hafrm.paper.plans import Responses, Scoring
from hafrm.paper.resources import shape_of
from hafrm.paper.runs import Policy, Run
from hafrm.paper.scales import Job

_SPEED, _LARGE_SPEED = 50e9, 100e9
"""Operations per second of one thread, for backbones of a few million parameters and for those of `_LARGE` or more."""

_LARGE = 50_000_000

_GPU_SPEED, _GPU_MEMORY = 0.4 * 312e12, 2.0e12
"""Operations and bytes of memory per second of an A100 of 80 GB: 40% of its products in half precision."""

_OVERHEAD = 3.0
"""Seconds to read pairs, load a model and write it."""

_SAMPLE = 64
"""Pairs per set that are encoded to estimate lengths."""

_PROMPT = 64
"""Approximate number of tokens in a prompt."""

_AT_ONCE = 32
"""Responses that are sampled at a time."""

QUESTION = 2.0
"""Approximate number of seconds in which an endpoint answers a judge's question."""


@dataclass(frozen=True)
class _SetSize:
    """Pairs per split of a set, and mean lengths of a pair."""

    pairs: Mapping[str, int]
    tokens: float
    """Mean tokens per pair, counting its prompt once."""
    responses: float
    """Mean number of response tokens per pair, which a policy loss processes."""


class Costs:
    """Estimates the seconds of runs and scorings.

    Args:
        slowness: Factor that multiplies all estimates.
    """

    def __init__(self, job: Job, slowness: float = 1.0) -> None:
        self.job, self.slowness = job, slowness
        self._sets: dict[str, _SetSize] = {}

    @property
    def machine(self) -> str:
        """The machine for which times are estimated."""
        return "an A100 of 80 GB" if self.job.scale.name == "paper" else "one thread of a CPU"

    def seconds(self, work: Run | Scoring | Policy) -> float:
        """Estimate the seconds of a training run, a scoring or a policy."""
        if isinstance(work, Run):
            return self.run(work)
        return self.scoring(work) if isinstance(work, Scoring) else self.policy(work)

    def run(self, run: Run) -> float:
        """Estimate the seconds of a training run."""
        scale = self.job.scale
        steps = scale.training["max_steps"]
        batch = scale.training.get("per_device_train_batch_size", 16)
        backward = 1 if scale.backbone(run.backbone).lora.enabled else 2
        backward += bool(scale.training.get("activation_checkpointing"))
        policy = run.method != "baseline"
        first = run.seed == self.job.seeds[0] and run.recipe == "haf" and run.policy_ratio is None
        train = self._mean(run, "train")
        seen = (1 + backward) * steps * batch + first * train
        held_out = (scale.evaluations(kept=run.keep_checkpoints) + 1) * self._mean(run, "validation")
        return self._seconds(run, seen + held_out, policy=policy) + self.slowness * _OVERHEAD

    def scoring(self, scoring: Scoring) -> float:
        """Estimate the seconds of a scoring; a policy's rewards also need the reference."""
        total = 0.0
        for run in scoring.runs:
            policy = run.method == "dpo" or scoring.head in ("policy", "combined")
            pairs = sum(self._set(name).pairs["test"] for name in scoring.tested_on)
            total += self._seconds(run, pairs * (1 + policy), policy=policy, sets=scoring.tested_on) + self.slowness
        return total

    def policy(self, policy: Policy) -> float:
        """Estimate the seconds of PPO: sampling, the reference, rewards, and its epochs."""
        config = policy.config(self.job, model=policy.backbone)
        readers = 2 + 3 * config.ppo.epochs
        count, new = config.steps * config.batch_size, config.sampling.max_new_tokens
        return self._answered(policy.backbone, count, new, at_once=config.batch_size, readers=readers)

    def responses(self, each: Responses) -> float:
        """Estimate the seconds of sampling and scoring responses; a judging reward model counts as a backbone."""
        count = self._prompts(each) * each.draws
        return self._answered(each.backbone, count, each.new_tokens, at_once=_AT_ONCE, readers=each.readers)

    def questions(self, each: Responses) -> int:
        """Return the maximum number of questions to a judge at an endpoint."""
        return self._prompts(each) * each.questions

    def _prompts(self, each: Responses) -> int:
        return min(each.prompts, sum(self._set(name).pairs["test"] for name in each.sets))

    def _answered(self, backbone: str, count: int, new: int, *, at_once: int, readers: int) -> float:
        """Estimate the seconds of sampling `count` responses of `new` tokens, and of `readers` passes over each.

        Sampling on a GPU reads all weights for each token.
        """
        shape = shape_of(self.job, backbone)
        if shape is None:
            return 0.0
        products = 2 * count * (_PROMPT + new) * shape.body * (1 + readers)
        on_gpu = self.job.scale.name == "paper"
        read = math.ceil(count / at_once) * new * 2 * shape.weights / _GPU_MEMORY if on_gpu else 0.0
        return self.slowness * (products / self._speed(shape.body) + read)

    def _mean(self, run: Run, split: str) -> float:
        """Return the pairs in a run's split; a mixture has as many from each set as the smallest has."""
        counts = [self._set(name).pairs[split] for name in run.sets]
        return min(counts) * len(counts) / (run.share if split == "train" else 1)

    def _seconds(self, run: Run, pairs: float, *, policy: bool, sets: tuple[str, ...] | None = None) -> float:
        shape = shape_of(self.job, run.backbone)
        if shape is None:
            return 0.0
        sizes = [self._set(name) for name in sets or run.sets]
        tokens, responses = fmean(each.tokens for each in sizes), fmean(each.responses for each in sizes)
        products = 2 * pairs * (tokens * shape.body + policy * responses * shape.head)
        return self.slowness * products / self._speed(shape.body)

    def _speed(self, body: int) -> float:
        if self.job.scale.name == "paper":
            return _GPU_SPEED
        return _SPEED if body < _LARGE else _LARGE_SPEED

    def _set(self, name: str) -> _SetSize:
        if name not in self._sets:
            of = {"paper": self._printed, "world": self._counted, "small": self._encoded}[self.job.scale.name]
            self._sets[name] = of(name)
        return self._sets[name]

    def _printed(self, name: str) -> _SetSize:
        """Return the size that Table 1 prints; its tokens are of a question with one answer."""
        printed, cap = TABLE_1[name], self.job.scale.cap
        train = min(printed.size, cap or printed.size)
        pairs = {"train": train, "validation": round(printed.size * VALIDATION_SHARE), "test": TEST_PAIRS}
        return _SetSize(pairs, 2 * printed.tokens, 2 * printed.tokens)

    def _counted(self, name: str) -> _SetSize:
        """Return a simulated set's size, with words for tokens: its tokenizer may not exist yet."""
        pairs = self._pairs(name)
        sample = pairs["train"][:_SAMPLE]
        responses = fmean(_words((*pair.chosen, *pair.rejected)) for pair in sample)
        return self._sized(pairs, responses + fmean(_words(pair.prompt.turns) for pair in sample), responses)

    def _encoded(self, name: str) -> _SetSize:
        scale, backbone = self.job.scale, self.job.backbones[0]
        encoder = ConversationEncoder(load_tokenizer(self.job.model(backbone)), scale.max_length)
        pairs = self._pairs(name)
        groups = encode_pairs(pairs["train"][:_SAMPLE], encoder, DataOptions(max_length=scale.max_length))
        tokens = fmean(group.unique_tokens for group in groups)
        return self._sized(pairs, tokens, fmean(sum(map(len, group.responses)) for group in groups))

    def _pairs(self, name: str) -> dict[str, tuple[PreferencePair, ...]]:
        files = self.job.scale.sets[name]
        splits = ("train", "validation", "test")
        return {split: tuple(load_pairs(getattr(files, split), split=split).pairs) for split in splits}

    def _sized(self, pairs: Mapping[str, tuple[PreferencePair, ...]], tokens: float, responses: float) -> _SetSize:
        counts = {split: len(each) for split, each in pairs.items()}
        counts["train"] = min(counts["train"], self.job.scale.cap or counts["train"])
        return _SetSize(counts, tokens, responses)


def _words(turns: tuple[Message, ...]) -> int:
    return sum(len(re.findall(r"\w+|[^\w\s]", turn.text)) for turn in turns)


def can_estimate(job: Job) -> bool:
    """Return whether the architectures of all backbones are known here, without downloads."""
    return all(shape_of(job, name) is not None for name in job.backbones)
