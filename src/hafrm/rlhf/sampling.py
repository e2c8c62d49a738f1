"""Sample responses from a policy: takes prompts as token ids, returns token ids and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hafrm.models.generating import continuations, stop_tokens
from hafrm.rlhf.options import SamplingOptions


@dataclass(frozen=True, slots=True)
class Response:
    """A policy's response."""

    ids: tuple[int, ...]
    """The drawn tokens, including the one that ends the turn."""
    text: str
    """Without special tokens and surrounding white space."""
    ended: bool
    """Whether it ended within the limit."""


def sample_responses(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions
) -> list[Response]:
    """Sample one response to each prompt, in order, with the program's random numbers.

    Only `sampling` shapes the distribution; anything else would make the log-probs those of another distribution.

    Args:
        causal_lm: A stock causal LM, or a PEFT model around one.
        tokenizer: Its prepared tokenizer.
        prompts: Token ids.
        sampling: How to draw.
    """
    rows = continuations(causal_lm, tokenizer, prompts, do_sample=True, top_k=0, **asdict(sampling))
    ends = stop_tokens(causal_lm, tokenizer)
    return [_response(row, ends, tokenizer) for row in rows.tolist()]


def _response(row: Sequence[int], ends: Sequence[int], tokenizer: Any) -> Response:
    """Cut a row of generated tokens after the first that ends it."""
    stop = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if stop is None else row[: stop + 1]
    text = tokenizer.decode(row[:stop], skip_special_tokens=True)
    return Response(tuple(ids), text.strip(), stop is not None)
