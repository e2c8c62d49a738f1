"""What to say where transformers will not load a model: whether it is a folder, and what to do about two refusals."""

from __future__ import annotations

from pathlib import Path

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


def not_here(model: str) -> str:
    """That a model is not a folder of this machine, as a sentence with a space before it; empty where it is there."""
    return "" if Path(model).exists() else " There is no such folder here."
