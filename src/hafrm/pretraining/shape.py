"""The size of a small Llama."""

from __future__ import annotations

from dataclasses import dataclass

from hafrm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Size of a model; the defaults give about 5 million parameters."""

    hidden: int = 256
    """Width of the hidden states."""
    layers: int = 4
    heads: int = 4
    intermediate: int = 704
    """Width of the gated feed-forward layers."""
    vocabulary: int = 4096
    """Tokens of the byte-level BPE, including the four special ones."""
    context: int = 512
    """Tokens per training block, which is also the model's maximum."""

    def __post_init__(self) -> None:
        if self.vocabulary < 300:
            raise ConfigError(
                f"vocabulary must have room for 256 bytes, 4 special tokens and some words, got {self.vocabulary}"
            )
        for name in ("hidden", "heads", "layers", "intermediate", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"hidden must be a multiple of twice the heads, got {self.hidden} and {self.heads}")
