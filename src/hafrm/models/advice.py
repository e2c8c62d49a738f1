"""Advice on the two cases in which transformers refuses a model for security reasons."""

from __future__ import annotations

__all__ = ["advice"]

_BY_WORD = {
    "trust_remote_code": "It brings Python code of its own, which `--trust_remote_code true` would run: such code can "
    "do anything that you can. Read it first.",
    "safetensors": "Weights are read as safetensors alone, as pickles can run code: a model that has only those, and "
    "that you trust, can be loaded with transformers and saved again.",
}
"""Advice by a word in transformers' message."""


def advice(error: Exception) -> str:
    """Return advice to append to an error message, with a leading space; empty if there is none."""
    return next((f" {text}" for word, text in _BY_WORD.items() if word in str(error)), "")
