"""What all algorithms share: the prompts with their order in batches, and the run's folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hafrm.data import ReadOptions, load_prompts
from hafrm.errors import BadRowReason, DataError
from hafrm.models.generating import count_prompt_tokens, prompt_lengths
from hafrm.models.hybrid import HybridModel
from hafrm.pairs import Prompt
from hafrm.rlhf.checkpoints import save_policy
from hafrm.rlhf.options import RlhfConfig
from hafrm.training.folders import make_folder
from hafrm.training.manifest import save_manifest


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts within the limit, and an account of all prompts that were read."""

    prompts: tuple[Prompt, ...]
    account: dict[str, Any]
    """For the manifest: each source with its fingerprint and counts, and the numbers of dropped and kept prompts."""


def prompt_set(
    names: Sequence[str], tokenizer: Any, *, max_tokens: int, options: ReadOptions | None = None
) -> PromptSet:
    """Read prompts.

    Args:
        names: Files whose rows have `prompt` (a string or chat messages) or are pairs with an implicit prompt, or the
            names of data sets of pairs.
        tokenizer: The policy's tokenizer, prepared.
        max_tokens: Maximum tokens of a prompt, including the template's.

    Raises:
        BadRowError: a row is invalid or refused by the chat template, and `on_bad_row` is not `skip`.
        DataError: there are no usable prompts.
    """
    options = options or ReadOptions()
    read = load_prompts(names, options, split="train")
    found = {row.prompt: row.id for row in read.rows}
    lengths = prompt_lengths(
        {place: prompt for prompt, place in found.items()},
        partial(count_prompt_tokens, tokenizer),
        skip=options.on_bad_row == "skip",
    )
    fitting = [prompt for prompt, place in found.items() if lengths.get(place, math.inf) <= max_tokens]
    if not fitting:
        raise DataError(f"{', '.join(names)}: {_why_none(len(found), len(found) - len(lengths), max_tokens)}")
    account = {
        "sources": [
            {"name": report.name, "kept": report.kept, "sha256": report.sha256, "skipped": dict(report.left_out)}
            for report in read.reports
        ],
        "repeated": read.repeated,
        BadRowReason.REFUSED_BY_TEMPLATE.value: len(found) - len(lengths),
        "overlong": len(lengths) - len(fitting),
        "pairs": len(fitting),
    }
    return PromptSet(tuple(fitting), account)


def _why_none(prompts: int, refused: int, max_tokens: int) -> str:
    """Explain why no prompt is usable; the chat template refuses `refused` of them."""
    template = f"the policy's chat template refuses {'all' if prompts == refused else refused} of {prompts} prompts"
    if prompts == refused > 0:
        return f"{template}. Change their roles, or use a tokenizer with another chat template."
    others = f"; {template}" if refused else ""
    return (
        f"none of {prompts - refused} prompts has at most {max_tokens} tokens{others}. Raise max_prompt_tokens, or "
        "give other prompts."
    )


def deal(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the indices of a step's prompts (from step 1), in passes over the whole set, each in a new random order.

    The result does not depend on earlier calls, so a resumed run gets the same prompts.
    """
    first = (step - 1) * batch_size
    orders: dict[int, list[int]] = {}
    for place in range(first, first + batch_size):
        if place // count not in orders:
            generator = torch.Generator().manual_seed(seed + 1_000_003 * (place // count))
            orders[place // count] = torch.randperm(count, generator=generator).tolist()
    return [orders[place // count][place % count] for place in range(first, first + batch_size)]


_PICTURES = ("curves.svg", "learning.svg")
"""Charts that `hafrm rlhf` writes into the folder."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Function that is called with each finished step and its metrics."""


@dataclass(frozen=True)
class RlhfResult:
    """The result of a policy's training."""

    folder: Path
    steps: int
    last: Mapping[str, float]
    """Metrics of the last step; empty if no step was left to do."""


@dataclass(frozen=True)
class RlhfJob:
    """Validated options, with model and prompts."""

    config: RlhfConfig
    model: HybridModel
    """The initial policy, with adapters if any; its value head is zero."""
    tokenizer: Any
    prompts: PromptSet
    manifest: dict[str, Any]
    progress: Progress
    say: Callable[[str], None]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    def begin(self) -> None:
        """Create the folder with the manifest of an unfinished run."""
        if kept := make_folder(self.folder, start_over=self.config.overwrite and self.folder.exists(), more=_PICTURES):
            self.say(kept)
        save_manifest(self.manifest, self.folder)

    def opening(self, done: int) -> str:
        """Return the line that a run prints when it starts, after `done` earlier steps."""
        config, overlong = self.config, self.prompts.account["overlong"]
        left_out = f" ({overlong} over {config.max_prompt_tokens} tokens left out)" if overlong else ""
        ahead = f"resumes after step {done}" if done else f"{config.steps} steps of {config.batch_size} responses"
        return (
            f"{config.algorithm} on {len(self.prompts.prompts)} prompts{left_out}, rewarded by {config.reward}: {ahead}"
        )

    def finish(self, last: Mapping[str, float]) -> RlhfResult:
        """Save the final policy in the folder, and mark the run as finished in the manifest."""
        save_policy(self.model, self.tokenizer, self.folder)
        save_manifest(self.manifest | {"status": "finished", "steps": self.config.steps}, self.folder)
        return RlhfResult(self.folder, self.config.steps, last)
