"""Prompts to answer: read, told apart, cut to those that fit, and dealt out in batches that follow from a seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hafrm.data import ReadOptions, read_prompts
from hafrm.errors import BadRowReason, DataError
from hafrm.models.generating import count_prompt_tokens, prompt_lengths
from hafrm.pairs import Prompt

__all__ = ["PromptSet", "deal", "load_prompts"]


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts that fit, and the whereabouts of all that were read."""

    prompts: tuple[Prompt, ...]
    account: dict[str, Any]
    """For the manifest: each source with its prompts and their fingerprint, what was left out, what is left."""


def load_prompts(
    names: Sequence[str], tokenizer: Any, *, max_tokens: int, options: ReadOptions | None = None, split: str = "train"
) -> PromptSet:
    """Read prompts.

    Args:
        names: Files whose rows hold `prompt` (a string or chat messages; without it a pair's implicit one is found), or
            the names of data sets of pairs.
        tokenizer: The policy's tokenizer, prepared.
        max_tokens: The most tokens of a prompt, the template's included.
        options: What to do with bad rows.
        split: Which split of a named data set; a file is read whole.

    Raises:
        BadRowError: a row breaks the contract, or the chat template refuses it, and such rows are not to be skipped.
        DataError: no prompt is left.
    """
    options = options or ReadOptions()
    sources: list[dict[str, Any]] = []
    found: dict[Prompt, str] = {}
    for name in names:
        skipped: Counter[str] = Counter()
        rows = list(read_prompts(name, options, split=split, skipped=skipped))
        for row in rows:
            found.setdefault(row.prompt, row.id)
        prompts = [row.prompt for row in rows]
        sources.append({"name": name, "kept": len(prompts), "sha256": _fingerprint(prompts), "skipped": dict(skipped)})
    lengths = prompt_lengths(
        {place: prompt for prompt, place in found.items()},
        partial(count_prompt_tokens, tokenizer),
        skip=options.on_bad_row == "skip",
    )
    fitting = [prompt for prompt, place in found.items() if lengths.get(place, math.inf) <= max_tokens]
    if not fitting:
        raise DataError(f"{', '.join(names)}: {_why_none(len(found), len(found) - len(lengths), max_tokens)}")
    account = {
        "sources": sources,
        "repeated": sum(source["kept"] for source in sources) - len(found),
        BadRowReason.REFUSED_BY_TEMPLATE.value: len(found) - len(lengths),
        "overlong": len(lengths) - len(fitting),
        "pairs": len(fitting),
    }
    return PromptSet(tuple(fitting), account)


def _why_none(prompts: int, refused: int, max_tokens: int) -> str:
    """Why no prompt is left, and what to do: `refused` are those that the chat template can't render."""
    if not prompts:
        return "no row holds a prompt that can be read. Give other prompts."
    template = f"the policy's chat template refuses {'all' if prompts == refused else refused} of {prompts} prompts"
    if prompts == refused > 0:
        return f"{template}. Change their roles, or use a tokenizer with another chat template."
    others = f"; {template}" if refused else ""
    return (
        f"none of {prompts - refused} prompts has at most {max_tokens} tokens{others}. Raise max_prompt_tokens, or "
        "give other prompts."
    )


def deal(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The places of one step's prompts: the set is gone through in a fresh order again and again.

    Nothing is remembered from step to step, so a run that goes on is dealt what it would have been.

    Args:
        count: How many prompts there are.
        batch_size: How many to deal.
        step: The step, from 1.
        seed: Seed of the orders.
    """
    first = (step - 1) * batch_size
    orders: dict[int, list[int]] = {}
    for place in range(first, first + batch_size):
        if place // count not in orders:
            generator = torch.Generator().manual_seed(seed + 1_000_003 * (place // count))
            orders[place // count] = torch.randperm(count, generator=generator).tolist()
    return [orders[place // count][place % count] for place in range(first, first + batch_size)]


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update((json.dumps([turn.as_dict() for turn in prompt.turns]) + prompt.arguments).encode() + b"\n")
    return digest.hexdigest()
