"""What to do where transformers will not load a model, for the two refusals that are for safety's sake."""

from __future__ import annotations

__all__ = ["advice"]

_BY_WORD = {
    "trust_remote_code": "It brings Python code of its own, which `--trust_remote_code true` would run: such code can "
    "do anything that you can. Read it first.",
    "safetensors": "Weights are read as safetensors alone, as pickles can run code: a model that has only those, and "
    "that you trust, can be loaded with transformers and saved again.",
}
"""By a word in what transformers says."""


def advice(error: Exception) -> str:
    """A sentence to put behind the error's own, with a space before it; empty where there is nothing to add."""
    return next((f" {text}" for word, text in _BY_WORD.items() if word in str(error)), "")
