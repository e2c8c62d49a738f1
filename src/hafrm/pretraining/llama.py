"""Create, load and save small Llamas of a given shape, without progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from hafrm.pretraining.shape import LlamaShape


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
