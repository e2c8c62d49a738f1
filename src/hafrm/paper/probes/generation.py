"""Sample responses from a run's policy head with stock transformers, reproducibly per seed on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hafrm.models.generating import continuations, prompt_ids
from hafrm.pairs import Prompt
from hafrm.sampling.engines import SampleOptions


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
        prompts: The prompts.
        sampling: Sampling options.
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
