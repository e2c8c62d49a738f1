"""Run folders of tiny models, as training writes them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hafrm.models.checkpoints import save_run
from hafrm.models.options import LoraOptions
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from tests.models.test_checkpoints import info


def saved_run(base: Path, folder: Path, *, lora: LoraOptions | None = None, **values: Any) -> Path:
    """A run's folder with both heads, of a model that has not been trained."""
    tokenizer = load_tokenizer(str(base))
    described = info(base, pad_token=tokenizer.pad_token, lora=asdict(lora) if lora else None, **values)
    save_run(new_model(str(base), tokenizer, lora=lora or LoraOptions()), tokenizer, described, folder)
    return folder
