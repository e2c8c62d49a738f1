"""Responses drawn from a policy by transformers' `generate`: left-padded prompts in, token ids and texts out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from hafrm.models.modes import evaluating
from hafrm.rlhf.options import SamplingOptions

__all__ = ["Response", "end_tokens", "sample_responses"]


@dataclass(frozen=True, slots=True)
class Response:
    """What a policy answered."""

    ids: tuple[int, ...]
    """The tokens drawn, the one that ends the turn included."""
    text: str
    """Without special tokens and surrounding white space."""
    ended: bool
    """Whether it came to its end within the limit."""


@torch.no_grad()
def sample_responses(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions
) -> list[Response]:
    """One response to each prompt, in order, by the program's random numbers.

    Nothing but `sampling` shapes the distribution: what the model's own generation config would add (top-k, a penalty
    on repetition) is kept out, or log-probs would not be of what was drawn.

    Args:
        causal_lm: A stock causal LM, or a PEFT model around one.
        tokenizer: Its prepared tokenizer.
        prompts: Token ids.
        sampling: How to draw.
    """
    wrapped: Any = causal_lm
    stock = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    device = stock.device
    ends, pad, width = end_tokens(stock, tokenizer), tokenizer.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    asked = GenerationConfig(
        do_sample=True,
        top_p=sampling.top_p,
        top_k=0,
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(ends),
    )
    with evaluating(stock), _own_habits_aside(stock):
        output = stock.generate(input_ids=ids, attention_mask=mask, generation_config=asked)
    return [_response(row, ends, tokenizer) for row in output[:, width:].tolist()]


def end_tokens(causal_lm: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens that end a response: the tokenizer's and those that the model's generation config names."""
    own = getattr(getattr(causal_lm, "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    return {token for token in (*named, tokenizer.eos_token_id) if token is not None}


@contextlib.contextmanager
def _own_habits_aside(stock: Any) -> Iterator[None]:
    """Take the model's own generation config away for a while: `generate` fills what is not asked for out of it."""
    habits, stock.generation_config = stock.generation_config, GenerationConfig()
    try:
        yield
    finally:
        stock.generation_config = habits


def _response(row: Sequence[int], ends: set[int], tokenizer: Any) -> Response:
    """Cut a row of generated tokens behind the first that ends it."""
    stop = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if stop is None else row[: stop + 1]
    text = tokenizer.decode(row[:stop], skip_special_tokens=True)
    return Response(tuple(ids), text.strip(), stop is not None)
