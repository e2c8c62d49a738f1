"""The interface between the sampling run and engines of any kind.

It deals in prompts, seeds and texts, and is independent of tokenizers and models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hafrm.errors import ConfigError
from hafrm.pairs import Prompt


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn."""

    top_p: float = 0.9
    """Nucleus sampling: the smallest set of tokens with at least this share of the probability."""

    temperature: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 32
    """Prompts per batch. The drawn responses depend on it."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"sampling.temperature must be a positive finite number, got {self.temperature}")
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError("sampling.max_new_tokens and sampling.batch_size must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Sampling):
    """Options for drawing responses."""

    max_new_tokens: int = 256
    """Maximum tokens of a response (256 in the paper's RLHF; not given for best-of-N)."""

    batch_size: int = 32
    """Responses drawn at a time; those of one prompt stay together. vLLM makes its own batches."""

    seed: int = 0
    """Random seed. The same seed draws the same responses to a prompt, whatever other prompts there are."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled response."""

    text: str
    """Without special tokens and surrounding white space; may be empty."""
    tokens: int
    """Number of drawn tokens, including the one that ends the response."""
    finished: bool
    """Whether the model ended it, as opposed to the limit of tokens."""


class Generator(Protocol):
    """Samples responses."""

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of each prompt, for laying out batches and finding over-long prompts.

        Raises:
            RefusedError: some prompts can't be rendered; names them, so that a caller can leave them out.
        """
        ...

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int) -> list[list[Draw]]:
        """Return N responses to each prompt, in order; response j to a prompt is determined by its seed + j."""
        ...


def prompt_seed(seed: int, prompt: Prompt) -> int:
    """Return a prompt's seed, which depends only on the run's seed and the prompt's text."""
    turns = (f"{turn.role}\x1f{turn.content}{turn.more}" for turn in prompt.turns)
    text = "\x1e".join([str(seed), *turns]) + prompt.arguments
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])  # 48 bits: seed + j fits every engine
