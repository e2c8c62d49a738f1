"""Advice for error messages about models that transformers refuses to load."""

from __future__ import annotations

from pathlib import Path

_BY_WORD = {
    "trust_remote_code": "It contains Python code, which `--trust_remote_code true` would run. Such code can do "
    "anything that you can: read it first.",
    "gated": "Its owners ask for consent: accept the terms on the model's page and run `hf auth login`.",
    "safetensors": "Weights are only read from safetensors, because pickles can run code. If you trust this model, "
    "load it with transformers and save it again.",
}
"""Advice by a word in transformers' message."""


def advice(error: Exception) -> str:
    """Return advice to append to an error message, with a leading space; empty if there is none."""
    return next((f" {text}" for word, text in _BY_WORD.items() if word in str(error)), "")


def not_here(model: str) -> str:
    """Return a sentence saying that there is no such local folder, with a leading space; empty if there is one."""
    return "" if Path(model).exists() else " There is no such folder here."
