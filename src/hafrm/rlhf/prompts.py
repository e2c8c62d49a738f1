"""Prompts to answer: read, told apart, cut to those that fit, and dealt out in batches that follow from a seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hafrm.data import RawRow, ReadOptions, load_pairs, read_rows
from hafrm.errors import BadRowError, DataError
from hafrm.pairs import Message, RowReader, parse_pair

__all__ = ["Prompt", "PromptSet", "deal", "load_prompts", "prompt_ids"]

Prompt = tuple[Message, ...]


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
        BadRowError: a row breaks the contract, and such rows are not to be skipped.
        DataError: no prompt is left.
    """
    options = options or ReadOptions()
    sources: list[dict[str, Any]] = []
    found: dict[Prompt, None] = {}
    for name in names:
        skipped: Counter[str] = Counter()
        if Path(name).is_file():
            prompts = list(_of_file(Path(name), options, skipped))
        else:
            prompts = [pair.prompt for pair in load_pairs(name, split=split, options=options).pairs]
        found |= dict.fromkeys(prompts)
        sources.append({"name": name, "kept": len(prompts), "sha256": _fingerprint(prompts), "skipped": dict(skipped)})
    fitting = [prompt for prompt in found if len(prompt_ids(tokenizer, prompt)) <= max_tokens]
    if not fitting:
        raise DataError(
            f"{', '.join(names)}: none of {len(found)} prompts has at most {max_tokens} tokens. Raise "
            "max_prompt_tokens, or give other prompts."
        )
    account = {"sources": sources, "overlong": len(found) - len(fitting), "pairs": len(fitting)}
    return PromptSet(tuple(fitting), account)


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


def prompt_ids(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """A prompt's token ids, up to where the answer begins."""
    messages = [message.as_dict() for message in prompt]
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def _of_file(path: Path, options: ReadOptions, skipped: Counter[str]) -> Iterator[Prompt]:
    for row in read_rows(path):
        try:
            yield _of_row(row, str(path))
        except BadRowError as error:
            if options.on_bad_row == "error":
                raise
            skipped[error.reason.value] += 1


def _of_row(row: RawRow, source: str) -> Prompt:
    if row.error is not None:
        raise row.error
    reader = RowReader(row.value, source=source, number=row.number)
    if reader.has("chosen"):
        return parse_pair(row.value, source=source, number=row.number).prompt
    prompt = reader.messages("prompt", "user")
    reader.check_prompt(prompt)
    return prompt


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([message.as_dict() for message in prompt]).encode() + b"\n")
    return digest.hexdigest()
