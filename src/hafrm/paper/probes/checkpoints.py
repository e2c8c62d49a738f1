"""A run's checkpoints for Figure 2: their validation metrics, matches of two runs, and responses of policy heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import optimize
from torch import nn

from hafrm.errors import DataError, ModelError
from hafrm.models.generating import prompt_ids
from hafrm.pairs import Prompt
from hafrm.rlhf.options import SamplingOptions
from hafrm.rlhf.policy import Response, sample_responses
from hafrm.sampling.options import SampleOptions
from hafrm.training.metrics import METRICS_FILE, read_metrics

Matching = Literal["reward", "acc", "loss", "margin", "step"]
"""Criteria by which checkpoints are matched (Appendix E.1).

"reward" is the oracle's mean reward of their responses; "acc", "loss" and "margin" are the accuracy, loss and mean
margin of their policy heads on the validation pairs; "step" is the number of training steps.
"""

MATCHINGS: tuple[Matching, ...] = get_args(Matching)

_METRICS = {"acc": "eval_policy/accuracies", "loss": "eval_loss/policy", "margin": "eval_policy/margins"}
"""Policy-head metrics in both runs: a hybrid's total loss and reward margins have another scale than DPO's."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run."""

    step: int
    folder: Path
    values: Mapping[str, float]
    """Values by `Matching`; "reward" is added only once responses are scored."""


@dataclass(frozen=True)
class Match:
    """A checkpoint of the first run with its match in the second."""

    by: Matching
    first: Checkpoint
    second: Checkpoint

    @property
    def gap(self) -> float:
        """Absolute difference of the matched values."""
        return abs(self.first.values[self.by] - self.second.values[self.by])


def run_checkpoints(run: Path) -> list[Checkpoint]:
    """Return a run's checkpoints, ordered by step, with the validation metrics of that step.

    Raises:
        ModelError: the run kept no checkpoints, or none was evaluated with its policy head.
    """
    measured = {int(row["step"]): row for row in read_metrics(run / METRICS_FILE) if "eval_loss" in row}
    found = []
    for folder in run.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        values = measured.get(int(number)) if number.isdecimal() else None
        if values is not None and all(name in values for name in _METRICS.values()):
            kept = {by: float(values[name]) for by, name in _METRICS.items()}
            found.append(Checkpoint(int(number), folder, kept | {"step": float(number)}))
    if not found:
        raise ModelError(
            f"{run} has no checkpoint with the validation metrics of a policy head. Train it with `--method haf` or "
            "`dpo`, validation pairs, and `--training.save_total_limit null`, so that all checkpoints are kept."
        )
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def match_checkpoints(first: Sequence[Checkpoint], second: Sequence[Checkpoint], by: Matching) -> list[Match]:
    """Pair checkpoints of two runs, each at most once, minimising the sum of gaps.

    The paper does not define how close "similar" is: every checkpoint of the shorter list is matched, and `Match.gap`
    shows how closely.

    Raises:
        DataError: a checkpoint has no value of the criterion.
    """
    if any(by not in checkpoint.values for checkpoint in (*first, *second)):
        raise DataError(f"Some checkpoints have no value of {by!r} to be matched by.")
    gaps = [[abs(one.values[by] - other.values[by]) for other in second] for one in first]
    rows, columns = optimize.linear_sum_assignment(np.array(gaps))
    return [Match(by, first[row], second[column]) for row, column in zip(rows, columns, strict=True)]


def prompts_that_fit(
    prompts: Sequence[Prompt], tokenizer: Any, sampling: SampleOptions, max_length: int
) -> list[Prompt]:
    """Return the prompts that leave room for a whole response within `max_length` tokens."""
    room = max_length - sampling.max_new_tokens
    return [prompt for prompt in prompts if len(prompt_ids(tokenizer, prompt)) <= room]


def generate_responses(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], sampling: SampleOptions
) -> list[str]:
    """Sample one response per prompt, in order, without special tokens and surrounding white space.

    Random numbers depend only on the seed; the program's own random state is left unchanged.

    Args:
        causal_lm: A stock causal LM, or a PEFT model around one.
        tokenizer: Its prepared tokenizer, with a chat template.
    """
    options = SamplingOptions(
        max_new_tokens=sampling.max_new_tokens, top_p=sampling.top_p, temperature=sampling.temperature
    )
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(sampling.seed)
        return [each.text for each in sample_in_batches(causal_lm, tokenizer, ids, options, sampling.batch_size)]


def sample_in_batches(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, size: int
) -> list[Response]:
    """Call `sample_responses` for `size` prompts at a time; the drawn responses depend on it."""
    starts = range(0, len(prompts), size)
    batches = (sample_responses(causal_lm, tokenizer, prompts[at : at + size], sampling) for at in starts)
    return [response for batch in batches for response in batch]
