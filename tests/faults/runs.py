"""Runs of tiny models, as training leaves them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hafrm.models.checkpoints import RunInfo, new_model, save_run
from hafrm.models.lora import LoraOptions
from hafrm.models.tokenizers import load_tokenizer


def saved_run(base: Path, folder: Path, *, lora: LoraOptions | None = None, **values: Any) -> Path:
    """A run's folder with both heads, of a model that has not been trained."""
    tokenizer = load_tokenizer(str(base))
    described: dict[str, Any] = {
        "method": "haf",
        "base_model": str(base),
        "reward_weight": 1.0,
        "policy_ratio": 0.2,
        "policy_loss": "dpo",
        "beta": 0.1,
        "max_length": 128,
        "overlong": "drop",
        "pad_token": tokenizer.pad_token,
    }
    info = RunInfo(lora=asdict(lora) if lora else None, **(described | values))
    save_run(new_model(str(base), tokenizer, lora=lora or LoraOptions()), tokenizer, info, folder)
    return folder
