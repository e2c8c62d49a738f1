"""What gives responses: the contract between the sampling run and engines of any kind.

Knows prompts, seeds and texts. Knows no tokenizer and no model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hafrm.errors import ConfigError
from hafrm.pairs import Prompt

__all__ = ["Draw", "Generator", "SampleOptions", "Sampling", "prompt_seed"]


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


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Sampling):
    """How responses are drawn."""

    max_new_tokens: int = 256
    """The most tokens of a response (the paper's RLHF: 256; of best-of-N it does not say)."""

    batch_size: int = 32
    """Responses drawn at a time; those of one prompt stay together. vLLM makes batches of its own."""

    seed: int = 0
    """The same seed draws the same responses to a prompt, whatever other prompts there are."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled response."""

    text: str
    """Without special tokens and surrounding white space; may be empty."""
    tokens: int
    """Tokens drawn, with the one that ends the response."""
    finished: bool
    """Whether the model ended it, rather than the limit of tokens."""


class Generator(Protocol):
    """Samples responses."""

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt, by which batches are laid out and over-long prompts are found.

        Raises:
            RefusedError: some prompts can't be rendered; says which, so that a caller can leave them out.
        """
        ...

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int) -> list[list[Draw]]:
        """N responses to each prompt, in order; response j to a prompt follows from its seed + j."""
        ...


def prompt_seed(seed: int, prompt: Prompt) -> int:
    """A prompt's own seed: it depends on the run's seed and the prompt's text alone."""
    turns = (f"{turn.role}\x1f{turn.content}{turn.more}" for turn in prompt.turns)
    text = "\x1e".join([str(seed), *turns]) + prompt.arguments
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])  # 48 bits: seed + j fits every engine
