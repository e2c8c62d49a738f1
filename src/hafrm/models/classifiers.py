"""The reward head of transformers' own sequence classifier for an architecture, found without loading weights.

A run is saved for two stock classes. The causal one always exists. Most classifiers have a linear head named `score`;
some use another name, some have several layers, which `Linear(H, 1, bias=False)` does not fit, and many architectures
have no classifier.
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

SCORE = "score.weight"
"""Name of the reward head's weight, unless a stock class uses another."""


@dataclass(frozen=True)
class StockClassifier:
    """transformers' sequence classifier for an architecture."""

    name: str
    """Name of the class."""
    head: str | None
    """Name of its only weight, [1, H], that the causal model lacks; None if its head has a different form."""
    width: int | None
    """H of that weight."""
    own: tuple[str, ...]
    """Names of all parameters that the causal model lacks."""


def stock_classifier(config: PreTrainedConfig) -> StockClassifier | None:
    """Find transformers' sequence classifier for the causal LM of a config; None if there is none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # a config with custom code
        return None
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        own_config = copy.deepcopy(causal.config)  # for a composite config some classes use only the part they need
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
    """Return the name for saving a reward head, under which the stock classifier, if any, finds it."""
    found = stock_classifier(config)
    return SCORE if found is None or found.head is None else found.head
