"""Generation with stock transformers: prompts as token ids, their lengths, and continuations of them.

Shape letters: S prompts, T tokens of the longest continuation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from hafrm.errors import BadRowError, RefusedError
from hafrm.models.modules import evaluating
from hafrm.pairs import Prompt
from hafrm.templates import TemplateRefusalError, render


@torch.no_grad()
def continuations(
    causal_lm: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    processors: LogitsProcessorList | None = None,
    **options: Any,
) -> Tensor:
    """Generate new tokens for each prompt, [S, T], with pad tokens after the end of each.

    Only the given arguments shape the distribution: the model's generation config (top-k, repetition penalty) is
    ignored.

    Args:
        causal_lm: A stock causal LM, or a PEFT model around one.
        tokenizer: Its prepared tokenizer.
        prompts: Token ids.
        **options: Fields of a generation config: the sampling method, and `max_new_tokens`.
    """
    wrapped: Any = causal_lm
    stock = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    pad, width = tokenizer.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=stock.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=stock.device)
    config = GenerationConfig(**options, pad_token_id=pad, eos_token_id=stop_tokens(stock, tokenizer))
    with evaluating(stock), _without_defaults(stock):
        output: Tensor = stock.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
        )
    return output[:, width:]


def stop_tokens(causal_lm: nn.Module, tokenizer: Any) -> list[int]:
    """Return the tokens that end a response: the tokenizer's, and those in the model's generation config."""
    own = getattr(getattr(causal_lm, "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    return sorted({token for token in (*named, tokenizer.eos_token_id) if token is not None})


def prompt_ids(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """Return a prompt's token ids, up to the start of the response.

    Raises:
        TemplateRefusalError: the chat template refuses the prompt.
    """
    (text,) = render(tokenizer, [(prompt, ())], opening=True)
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def count_prompt_tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> list[int]:
    """Count the tokens of each prompt as rendered by the chat template.

    Raises:
        RefusedError: the template refuses some prompts.
    """
    counts: list[int] = []
    refused: dict[int, str] = {}
    for place, prompt in enumerate(prompts):
        try:
            counts.append(len(prompt_ids(tokenizer, prompt)))
        except TemplateRefusalError as error:
            refused[place] = str(error)
    if refused:
        raise RefusedError(refused)
    return counts


def prompt_lengths(
    prompts: Mapping[str, Prompt],
    count: Callable[[Sequence[Prompt]], list[int]],
    *,
    skip: bool,
) -> dict[str, int]:
    """Count the tokens of each prompt that the chat template renders.

    Args:
        prompts: The prompts, by `source:row`.
        count: Counts the tokens of prompts, as `count_prompt_tokens` does.
        skip: Whether to leave out prompts that the template refuses; otherwise they raise an error.

    Raises:
        BadRowError: the template refuses a prompt, and `skip` is False.
    """
    names = list(prompts)
    try:
        counts = count(list(prompts.values()))
    except RefusedError as error:
        if not skip:
            first = min(error.reasons)
            source, _, row = names[first].rpartition(":")
            raise BadRowError.refused(error.reasons[first], source=source, row=int(row.split(".")[0])) from error
        names = [name for place, name in enumerate(names) if place not in error.reasons]
        counts = count([prompts[name] for name in names])
    return dict(zip(names, counts, strict=True))


@contextlib.contextmanager
def _without_defaults(stock: Any) -> Iterator[None]:
    """Remove the model's generation config temporarily: `generate` would take missing options from it."""
    saved, stock.generation_config = stock.generation_config, GenerationConfig()
    try:
        yield
    finally:
        stock.generation_config = saved
