"""Which reward head transformers' own sequence classifier of an architecture has: asked of its class, without weights.

A run is saved for two stock classes. The causal one always exists; of the classifiers most have a linear head named
`score`, some one of another name, some a head of several layers that no `Linear(H, 1, bias=False)` fits, and many
architectures have none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

__all__ = ["SCORE", "StockClassifier", "head_name", "stock_classifier"]

SCORE = "score.weight"
"""The name of the reward head's weight, where no stock class calls it otherwise."""


@dataclass(frozen=True)
class StockClassifier:
    """transformers' sequence classifier of an architecture."""

    name: str
    """The class."""
    head: str | None
    """The name of the one weight, [1, H], that it has beside the causal model's; None where its head is another."""
    width: int | None
    """That weight's H."""
    own: tuple[str, ...]
    """The names of all parameters that the causal model does not have."""


def stock_classifier(config: PreTrainedConfig) -> StockClassifier | None:
    """Transformers' sequence classifier for what `AutoModelForCausalLM` makes of a config; None where it has none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # one that brings code of its own
        return None
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        own_config = copy.deepcopy(causal.config)  # of a composite config some classes take the part that they need
        if type(own_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            return None
        own_config.num_labels = 1
        classifier = AutoModelForSequenceClassification.from_config(own_config)
    known = {name for name, _ in causal.named_parameters()}
    own = {name: tuple(weight.shape) for name, weight in classifier.named_parameters() if name not in known}
    plain = len(own) == 1 and all(len(shape) == 2 and shape[0] == 1 for shape in own.values())
    name, width = next((name, shape[1]) for name, shape in own.items()) if plain else (None, None)
    return StockClassifier(type(classifier).__name__, name, width, tuple(own))


def head_name(config: PreTrainedConfig) -> str:
    """The name under which a reward head is saved, by which the stock classifier finds it where there is one."""
    found = stock_classifier(config)
    return SCORE if found is None or found.head is None else found.head
