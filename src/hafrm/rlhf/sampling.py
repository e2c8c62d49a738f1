"""Responses drawn from a policy: prompts' token ids in, token ids and texts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hafrm.models.generating import continuations, stop_tokens
from hafrm.rlhf.options import SamplingOptions

__all__ = ["Response", "sample_responses"]


@dataclass(frozen=True, slots=True)
class Response:
    """What a policy answered."""

    ids: tuple[int, ...]
    """The tokens drawn, the one that ends the turn included."""
    text: str
    """Without special tokens and surrounding white space."""
    ended: bool
    """Whether it came to its end within the limit."""


def sample_responses(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions
) -> list[Response]:
    """One response to each prompt, in order, by the program's random numbers.

    Nothing but `sampling` shapes the distribution, or log-probs would not be of what was drawn.

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
    """Cut a row of generated tokens behind the first that ends it."""
    stop = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if stop is None else row[: stop + 1]
    text = tokenizer.decode(row[:stop], skip_special_tokens=True)
    return Response(tuple(ids), text.strip(), stop is not None)
