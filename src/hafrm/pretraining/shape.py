"""The size of a small Llama."""

from __future__ import annotations

from dataclasses import dataclass

from hafrm.errors import ConfigError
from hafrm.options import check, option


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Size of a model; the defaults give about 5 million parameters."""

    hidden: int = option(256, least=1)
    """Width of the hidden states."""
    layers: int = option(4, least=1)
    heads: int = option(4, least=1)
    intermediate: int = option(704, least=1)
    """Width of the gated feed-forward layers."""
    vocabulary: int = option(4096, least=300)  # 256 bytes, 4 special tokens and some words
    """Tokens of the byte-level BPE, including the four special ones."""
    context: int = option(512, least=1)
    """Tokens per training block, which is also the model's maximum."""

    def __post_init__(self) -> None:
        check(self)
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"hidden must be a multiple of twice the heads, got {self.hidden} and {self.heads}")
