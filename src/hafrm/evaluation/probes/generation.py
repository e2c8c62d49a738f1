"""Responses sampled from a run's policy head by stock transformers, the same for the same seed on one machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hafrm.errors import ConfigError
from hafrm.models.generating import continuations, prompt_ids
from hafrm.pairs import Prompt

__all__ = ["Sampling", "generate_responses", "prompts_that_fit"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn."""

    top_p: float = 0.9
    """Nucleus: the smallest set of tokens that holds this share of the probability."""

    temperature: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 32
    """Prompts generated for at a time. Another size draws other responses."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"sampling.temperature must be a positive finite number, got {self.temperature}")
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError("sampling.max_new_tokens and sampling.batch_size must be at least 1")


def prompts_that_fit(prompts: Sequence[Prompt], tokenizer: Any, sampling: Sampling, max_length: int) -> list[Prompt]:
    """The prompts that leave room for a whole response within `max_length` tokens."""
    room = max_length - sampling.max_new_tokens
    return [prompt for prompt in prompts if len(prompt_ids(tokenizer, prompt)) <= room]


def generate_responses(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling
) -> list[str]:
    """One sampled response to each prompt, in order, without special tokens and surrounding white space.

    The random numbers are those of the seed alone, and the program's own are left as they were.

    Args:
        causal_lm: A stock causal LM, or a PEFT model around one.
        tokenizer: Its prepared tokenizer, with a chat template.
        prompts: The prompts.
        sampling: How to draw.
    """
    device = next(causal_lm.parameters()).device
    devices = [device] if device.type == "cuda" else []
    responses: list[str] = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        for start in range(0, len(prompts), sampling.batch_size):
            rows = continuations(
                causal_lm,
                tokenizer,
                [prompt_ids(tokenizer, prompt) for prompt in prompts[start : start + sampling.batch_size]],
                do_sample=True,
                top_p=sampling.top_p,
                top_k=0,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
            )
            responses += [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return responses
