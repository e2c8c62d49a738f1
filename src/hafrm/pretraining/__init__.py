"""Pieces of pretraining a small causal language model: its shape, its tokenizer, its blocks of text.

They work on token ids and stock transformers models, independent of files and training loops, and are shared by the
simulated world's backbones and `hafrm pretrain`.
"""

from __future__ import annotations

from hafrm.pretraining.blocks import IGNORED, Blocks, Sample, document_sample, perplexity, response_sample
from hafrm.pretraining.shape import LlamaShape, new_llama, no_progress_bars, untie
from hafrm.pretraining.vocabulary import train_tokenizer

__all__ = [
    "IGNORED",
    "Blocks",
    "LlamaShape",
    "Sample",
    "document_sample",
    "new_llama",
    "no_progress_bars",
    "perplexity",
    "response_sample",
    "train_tokenizer",
    "untie",
]
