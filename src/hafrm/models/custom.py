"""Reward models with custom classes: loaded with `--trust_remote_code`, and read through one adapter.

The model's config names its class in `auto_map`. The class is called with `input_ids` and `attention_mask`, padded on
the right, and its reward is read from what it returns, the first of these that exists:

- `score` or `rewards`, one number per sequence (ArmoRM, QRM);
- `logits` with one number per sequence, as [S] or [S, 1] (InternLM2, most others), or with several objectives as
  [S, K], of which `score.objective` names one (URM);
- the last member of a tuple with one number per sequence (GRM).

Shape letters: S sequences, T tokens, K objectives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from hafrm.errors import ModelError
from hafrm.models.heads import architectures
from hafrm.models.runinfo import require_as_saved
from hafrm.models.scorers import StockScorer
from hafrm.models.sources import find_file
from hafrm.models.stock import load_whole
from hafrm.packing import SequenceBatch


def own_class(model: str) -> str | None:
    """Return the Auto class that loads a reward model with its own code; None if the model has none.

    A class counts if the config names it as the architecture and in `auto_map`, if transformers has none of
    its name, and if it is not a causal LM.

    Raises:
        ModelError: the config can't be read.
    """
    named = set(architectures(model))
    config = find_file(model, "config.json")
    mapped = json.loads(Path(config).read_text(encoding="utf-8")).get("auto_map", {}) if config else {}
    for auto, reference in mapped.items():
        name = str(reference).rpartition(".")[2]
        reward = "Reward" in name or auto not in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")
        if reward and name in named and hasattr(transformers, auto) and not hasattr(transformers, name):
            return str(auto)
    return None


def own_class_refused(model: str) -> ModelError:
    """Create the error for a model whose code is not to be run."""
    return ModelError(
        f"{model} is a reward model with a class of its own ({', '.join(architectures(model))}), which "
        "`--trust_remote_code true` would run. Such code can do anything that you can: read it first."
    )


def load_own_class(model: str, auto: str, tokenizer: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    """Load a reward model by running the code that comes with it.

    Raises:
        ModelError: the model can't be loaded.
    """
    require_as_saved(model)
    loaded = load_whole(getattr(transformers, auto), model, kind="reward model", dtype=dtype, trust_remote_code=True)
    if loaded.config.pad_token_id is None:  # many classes find the last token by it
        loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded


class OwnClassScorer(StockScorer):
    """Rewards of a model with a custom class."""

    def _score_batch(self, batch: SequenceBatch) -> Tensor:
        output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return reward_of(output, len(batch.input_ids), self.options.objective)


def reward_of(output: Any, sequences: int, objective: int | None = None) -> Tensor:
    """Read the rewards from a model's output, [S], in float32; see the module's docstring.

    Args:
        objective: The objective to read from `logits` of shape [S, K]; None if there is only one.

    Raises:
        ModelError: the model returns no reward of a known form.
    """
    for found in _candidates(output):
        if found.shape in ((sequences,), (sequences, 1)):
            return found.reshape(sequences).float()
        if found.ndim == 2 and len(found) == sequences:
            if objective is None:
                raise ModelError(
                    f"The model gives {found.shape[1]} objectives and no single score. Name one by its index, from 0, "
                    "with `--score.objective`."
                )
            if objective >= found.shape[1]:
                raise ModelError(f"score.objective is {objective}, and the model gives {found.shape[1]} objectives.")
            return found[:, objective].float()
    raise ModelError("The model's output has no `score`, `rewards` or `logits` with a number per sequence.")


def _candidates(output: Any) -> Iterator[Tensor]:
    for name in ("score", "rewards", "logits"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            yield value
    if isinstance(output, tuple):
        yield from (value for value in reversed(output) if isinstance(value, Tensor) and value.ndim <= 2)
