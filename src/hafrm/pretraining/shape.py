"""Create, load and save small Llamas of a given shape, without progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

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
    """Tokens of a training block, and the model's maximum."""

    def __post_init__(self) -> None:
        if self.vocabulary < 300:
            raise ConfigError(f"vocabulary must hold 256 bytes, 4 special tokens and some words, got {self.vocabulary}")
        for name in ("hidden", "heads", "layers", "intermediate", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"hidden must be a multiple of twice the heads, got {self.hidden} and {self.heads}")


def new_llama(shape: LlamaShape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create a Llama with random weights from torch's generator, with tied embeddings: see `untie`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def untie(model: LlamaForCausalLM) -> None:
    """Give the model its own policy head, equal to its current embeddings.

    With tied embeddings, a small model needs far fewer steps to learn to repeat a prompt's topic; untied, training the
    policy head does not change the backbone, as in the paper's models.
    """
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Suppress transformers' progress bars for loading and saving, since these models are small."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
