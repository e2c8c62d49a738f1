"""Pieces of pretraining a small causal language model: its shape, its tokenizer, its blocks of text.

They work on token ids and stock transformers models, independent of files and training loops, and are shared by the
simulated world's backbones and `hafrm pretrain`.
"""
