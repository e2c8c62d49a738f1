"""Pretraining small causal language models: shape, tokenizer and blocks of text.

Works on token ids and stock transformers models, and is independent of files and training loops. Used by
`hafrm pretrain` and for the backbones of the simulated world.
"""
