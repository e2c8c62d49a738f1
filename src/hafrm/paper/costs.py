"""Estimate how long runs will take by counting operations, corrected by finished runs of the same study.

Counts the operations of matrix products: training pairs three times (one forward pass, and a backward pass that costs
two; with adapters only, it costs one), validation and test pairs once, the reference once per set. The estimate is
accurate to about a third until the journal has times of finished runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hafrm.data import DataOptions, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.plans import Scoring
from hafrm.paper.runs import Run
from hafrm.paper.scales import Job

_SPEED, _LARGE_SPEED = 50e9, 100e9
"""Operations per second of one thread, for backbones of a few million parameters and for those of `_LARGE` or more."""

_LARGE = 50_000_000

_OVERHEAD = 3.0
"""Seconds to read pairs, load a model and write it."""

_SAMPLE = 64
"""Pairs per set that are encoded to estimate lengths."""


@dataclass(frozen=True)
class _SetSize:
    """Pairs per split of a set, and mean lengths of a pair."""

    pairs: Mapping[str, int]
    tokens: float
    """Mean tokens per pair, counting its prompt once."""
    responses: float
    """Mean response tokens per pair, which a policy loss reads."""


class Costs:
    """Estimates the seconds of runs and scorings.

    Args:
        job: The reproduction job; its backbones must be local folders.
        slowness: Factor that multiplies all estimates.
    """

    def __init__(self, job: Job, slowness: float = 1.0) -> None:
        self.job, self.slowness = job, slowness

    def run(self, run: Run) -> float:
        """Estimate the seconds of a training run."""
        scale = self.job.scale
        steps = scale.training["max_steps"]
        batch = scale.training.get("per_device_train_batch_size", 16)
        every = scale.training.get("eval_steps", max(20, steps // 40))
        backward = 1 if scale.backbone(run.backbone).lora.enabled else 2
        policy = run.method != "baseline"
        first = run.seed == self.job.seeds[0] and run.recipe == "haf" and run.policy_ratio is None
        train = self._mean(run, "train")
        seen = (1 + backward) * steps * batch + first * train
        held_out = (steps // every + 1) * self._mean(run, "validation")
        return self._seconds(run, seen + held_out, policy=policy) + self.slowness * _OVERHEAD

    def scoring(self, scoring: Scoring) -> float:
        """Estimate the seconds of a scoring; a policy's rewards also need the reference."""
        (run,) = scoring.runs
        policy = run.method == "dpo" or scoring.head in ("policy", "combined")
        pairs = sum(self._sets[name].pairs["test"] for name in scoring.tested_on)
        return self._seconds(run, pairs * (1 + policy), policy=policy, sets=scoring.tested_on) + self.slowness

    def _mean(self, run: Run, split: str) -> float:
        """Return the pairs in a run's split; a mixture has as many from each set as the smallest has."""
        counts = [self._sets[name].pairs[split] for name in run.sets]
        return min(counts) * len(counts) / (run.share if split == "train" else 1)

    def _seconds(self, run: Run, pairs: float, *, policy: bool, sets: tuple[str, ...] | None = None) -> float:
        body, head = self._products[run.backbone]
        sizes = [self._sets[name] for name in sets or run.sets]
        tokens, responses = fmean(each.tokens for each in sizes), fmean(each.responses for each in sizes)
        speed = _SPEED if body < _LARGE else _LARGE_SPEED
        return self.slowness * 2 * pairs * (tokens * body + policy * responses * head) / speed

    @cached_property
    def _products(self) -> dict[str, tuple[int, int]]:
        """Parameters that every token is multiplied with, and parameters of the LM head, by backbone."""
        found = {}
        for name in self.job.backbones:
            config = AutoConfig.from_pretrained(self.job.model(name))
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            head = model.get_output_embeddings().weight.numel()
            held = {id(weight): weight.numel() for weight in model.parameters()}
            embeddings = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
            found[name] = sum(count for key, count in held.items() if key not in embeddings), head
        return found

    @cached_property
    def _sets(self) -> dict[str, _SetSize]:
        scale = self.job.scale
        tokenizer = load_tokenizer(self.job.model(self.job.backbones[0]))
        encoder = ConversationEncoder(tokenizer, scale.max_length)
        sizes = {}
        for name in self.job.sets:
            pairs = {
                split: load_pairs(getattr(scale.sets[name], split), split=split).pairs
                for split in ("train", "validation", "test")
            }
            groups = encode_pairs(pairs["train"][:_SAMPLE], encoder, DataOptions(max_length=scale.max_length))
            counts = {split: len(each) for split, each in pairs.items()}
            counts["train"] = min(counts["train"], scale.cap or counts["train"])
            sizes[name] = _SetSize(
                counts,
                fmean(group.unique_tokens for group in groups),
                fmean(sum(map(len, group.responses)) for group in groups),
            )
        return sizes


def is_local(job: Job) -> bool:
    """Return whether all backbones are local folders, so that costs can be estimated without downloads."""
    return all(Path(job.scale.backbone(name).shown).is_dir() for name in job.backbones)
